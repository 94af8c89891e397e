"""Commanding a load: the records that reserve its memory, and the orders for agents. Pure.

A load is one instance, or a group of them: a head and its shards, each with a record and an order of its own. All
records are written at once and before any order, so memory is reserved on all nodes or on none. Shards are ordered
first, since their head waits for them. If an order is lost, its record expires, the others of the group let go, and
the next plan begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.ids import InstanceId, NodeId
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.orders import NodeCommand, ShardOrder
from packtrain.broker.placement import Load, Unload
from packtrain.broker.states import InstanceState


@dataclass(frozen=True, slots=True)
class Orders:
    """What carries out one load."""

    records: tuple[InstanceBeat, ...]  # the head's or only one first
    commands: tuple[tuple[NodeId, NodeCommand], ...]  # in the order in which they go out


def orders_of(
    load: Load, names: Sequence[InstanceId], nodes: Mapping[NodeId, NodeBeat], info: ModelInfo | None, *,
    now_ms: int, term: int,
) -> Orders:  # fmt: skip
    """What carries out a load.

    Args:
        names: Of its instance, then of its shards.
        nodes: As the plan saw them.
        info: The model.
        now_ms: The broker's clock.
    """
    name, *shard_names = names
    head = InstanceBeat(
        instance=name, model=load.model, node=load.node, state=InstanceState.REQUESTED, n_slots=load.n_slots,
        n_ctx=load.n_ctx, numerics=load.numerics, reserved_bytes=load.reserved_bytes, requested_ms=now_ms,
        group=name if load.shards else "", layers=load.layers, forecast_tokens_per_s=load.forecast_tokens_per_s,
    )  # fmt: skip
    command = NodeCommand(
        id=f"load-{name}", term=term, verb="load", instance=name, model=load.model, n_slots=load.n_slots,
        n_ctx=load.n_ctx, numerics=load.numerics, reserved_bytes=load.reserved_bytes, fetch_from=load.fetch_from,
        reason=load.reason, layers=load.layers, forecast_tokens_per_s=load.forecast_tokens_per_s,
    )  # fmt: skip
    records, commands, shards = [head], [], []
    for shard, shard_name in zip(load.shards, shard_names, strict=True):
        own = {"instance": shard_name, "reserved_bytes": shard.reserved_bytes, "layers": shard.layers}
        records.append(head.model_copy(update={**own, "node": shard.node, "n_slots": 0, "forecast_tokens_per_s": 0}))
        told = {
            "id": f"shard-{shard_name}", "verb": "shard", "group": name, "peer": nodes[load.node].certificate,
            "cache_key": info.file_key if info else "", "n_slots": 0, "forecast_tokens_per_s": 0,
        }  # fmt: skip
        commands.append((shard.node, command.model_copy(update={**own, **told})))
        certificate = nodes[shard.node].certificate
        shards.append(
            ShardOrder(instance=shard_name, node=shard.node, layers=shard.layers, certificate=certificate)
        )  # fmt: skip
    commands.append((load.node, command.model_copy(update={"shards": tuple(shards)})))
    return Orders(tuple(records), tuple(commands))


def unload_order(unload: Unload, term: int) -> NodeCommand:
    """The order that carries out an unload."""
    return NodeCommand(
        id=f"unload-{unload.instance}", term=term, verb="unload", instance=unload.instance, model=unload.model,
        reason=unload.reason,
    )  # fmt: skip
