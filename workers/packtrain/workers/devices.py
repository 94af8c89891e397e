"""The memories of a node: that of the machine, and of each GPU that has one of its own.

A GPU that shares the machine's memory (Apple's, and those built into processors) is no second memory: what it takes is
taken from the same bytes, so it is named with them, as one.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from packtrain.broker.beats import DeviceMemory
from packtrain.broker.fields import Report

#: Of enum ggml_backend_dev_type; 0 is the CPU, 3 an accelerator without memory of its own.
GPU, SHARING_GPU = 1, 2
#: ggml calls Apple's GPUs plain ones; they have had no memory of their own since 2020.
_APPLE = ("Metal", "MTL")


class FoundDevice(Report):
    """A device as ggml describes it; bytes."""

    name: str
    description: str = ""
    type: int
    free: int = Field(0, ge=0)
    total: int = Field(0, ge=0)


def memories(total: int, free: int, found: Sequence[FoundDevice]) -> tuple[DeviceMemory, ...]:
    """The machine's memory first, then each GPU's own.

    Args:
        total: Bytes of the machine or its container.
        free: Of them.
        found: What ggml lists. A device of another machine (`RPC...`) is that machine's to report.
    """
    gpus = [device for device in found if device.type in (GPU, SHARING_GPU) and not device.name.startswith("RPC")]
    sharing = [d for d in gpus if d.type == SHARING_GPU or d.name.startswith(_APPLE)]
    machine = DeviceMemory(
        kind="ram",
        name=" + ".join(["RAM", *(_name(device) for device in sharing)]),
        total=total,
        free=free,
        unified=bool(sharing),
    )
    own = [
        DeviceMemory(kind="gpu", name=_name(device), total=device.total, free=device.free)
        for device in gpus
        if device not in sharing
    ]
    return (machine, *own)


def _name(device: FoundDevice) -> str:
    return f"{device.name} ({device.description})" if device.description else device.name
