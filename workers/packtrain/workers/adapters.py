"""LoRA adapters of a loaded model: small matrices beside its weights that make it speak or know otherwise.

A job names some of them, each with a scale. What llama.cpp computes with holds for a whole context, so only sequences
with the same adapters share a step (`engine.turns`), and what the cache holds is only good for the same ones
(`engine.reuse`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from packtrain.broker.errors import AdapterUnavailable, InvalidRequest
from packtrain.broker.messages import JobSpec, Numerics

#: Names and scales, by name, none with scale 0: equal sets compute alike. Empty: the model as it is.
AdapterSet = tuple[tuple[str, float], ...]


class AdapterFile(BaseModel):
    """An adapter that an instance shall load beside its model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: str  # from the node's own catalog, never from a message
    scale: float = 1.0  # of jobs that name it without one


@dataclass(frozen=True, slots=True)
class Adapter:
    """One that an instance was told to load."""

    scale: float = 1.0  # of jobs that name it without one
    fault: str = ""  # why it cannot be used; empty: it can


def adapters_of(spec: JobSpec, offered: Mapping[str, Adapter], numerics: Numerics) -> AdapterSet:
    """What a job's sequence is computed with.

    Args:
        offered: The instance's, by name.
        numerics: Of the instance.

    Raises:
        AdapterUnavailable: It names one that is not there or cannot be used.
        InvalidRequest: It names more than deterministic numerics can have.
    """
    chosen = []
    for name, scale in sorted(spec.adapters.items()):
        adapter = offered.get(name)
        if adapter is None or adapter.fault:
            usable = [other for other, its in offered.items() if not its.fault]
            raise AdapterUnavailable(
                adapter=name, model=spec.model, usable=usable, fault=adapter.fault if adapter else ""
            )
        if used := adapter.scale if scale is None else scale:
            chosen.append((name, used))
    # llama.cpp keeps them by their addresses, so the order in which several are added up is another in each process.
    if numerics == "deterministic" and len(chosen) > 1:
        raise InvalidRequest(
            f"{spec.model!r} is loaded in deterministic numerics, where a job takes one adapter at most and not "
            f"{len(chosen)}; name one, or merge them into one file",
            model=spec.model,
        )
    return tuple(chosen)
