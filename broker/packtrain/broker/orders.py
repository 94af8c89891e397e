"""Orders: what the coordinator tells an agent, and what an operator has asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from packtrain.broker.fields import Numerics, Report, SafeId


class NodeCommand(Report):
    """An order from the leading coordinator to one agent. Idempotent: `id` names the intent."""

    v: Literal[1] = 1
    id: str
    term: int
    verb: Literal["load", "unload"]
    instance: SafeId
    model: SafeId
    n_slots: int = 0
    n_ctx: int = 0
    numerics: Numerics = "fast"
    reserved_bytes: int = 0
    fetch_from: str = Field("", description="node that has the model's file, when this one has not; empty: it has")
    reason: str = ""


class Desired(Report):
    """What an operator asked for by `packtrain load` and `packtrain unload`."""

    replicas: int = Field(0, description="keep at least this many loaded")
    asked_ms: int = Field(0, description="when that was asked for: loads that failed before do not count any more")
    unload_before_ms: int = Field(0, description="unload instances requested before this moment")
