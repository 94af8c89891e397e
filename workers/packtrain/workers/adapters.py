"""LoRA adapters of a loaded model: small matrices beside its weights that make it speak or know otherwise.

A job names some of them, each with a scale. What llama.cpp computes with holds for a whole context, so only sequences
with the same adapters share a step (`engine.turns`), and what the cache holds is only good for the same ones
(`engine.reuse`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from packtrain.broker.errors import AdapterUnavailable
from packtrain.broker.job_spec import JobSpec

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


def adapters_of(spec: JobSpec, offered: Mapping[str, Adapter]) -> AdapterSet:
    """What a job's sequence is computed with.

    Args:
        offered: The instance's, by name.

    Raises:
        AdapterUnavailable: It names one that is not there or cannot be used.
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
    return tuple(chosen)
