"""Orders: what the coordinator tells an agent, and what an operator has asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from packtrain.broker.fields import Numerics, Report, SafeId


class ShardOrder(Report):
    """A shard of a group, as the agent of its head is told of it."""

    instance: SafeId
    node: SafeId
    layers: int = Field(ge=1, description="the last ones of the model, dealt to the shards in their order")
    certificate: str = Field(description="of its node's tunnels, PEM")


class NodeCommand(Report):
    """An order from the leading coordinator to one agent. Idempotent: `id` names the intent.

    `shard` starts a part of a group, which is one model over several nodes: `group` is the instance of its head, and
    `peer` the certificate of the head's node. `load` with `shards` starts such a head, once they answer.
    """

    v: Literal[1] = 1
    id: str
    term: int
    verb: Literal["load", "unload", "shard"]
    instance: SafeId
    model: SafeId
    n_slots: int = 0
    n_ctx: int = 0
    numerics: Numerics = "fast"
    reserved_bytes: int = 0
    fetch_from: str = Field("", description="node that has the model's file, when this one has not; empty: it has")
    reason: str = ""
    shards: tuple[ShardOrder, ...] = Field((), description="of a head, in the order of their layers")
    forecast_tokens_per_s: float = Field(0, description="of a head: of one job alone; 0: not known")
    group: str = Field("", description="of a shard: the instance of its head")
    layers: int = Field(0, description="of a shard: how many it holds")
    peer: str = Field("", description="of a shard: certificate of the head's node, PEM")
    cache_key: str = Field("", description="of a shard: equal for equal model files; empty: nothing is kept on disk")


class Desired(Report):
    """What an operator asked for by `packtrain load` and `packtrain unload`."""

    replicas: int = Field(0, description="keep at least this many loaded")
    asked_ms: int = Field(0, description="when that was asked for: loads that failed before do not count any more")
    unload_before_ms: int = Field(0, description="unload instances requested before this moment")
