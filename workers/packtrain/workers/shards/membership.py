"""Membership: what becomes of a part of a group when the others of it live, leave or die. Pure.

No agent commands another one, and no coordinator is needed: each looks at what the others report. So whichever part
dies, all others let go of their memory, and the jobs go back to the queue.

    a shard    ends with its head
    a head     begins when all its shards wait for it, drains when one of them must leave, ends when one has ended
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.ids import InstanceId
from packtrain.broker.orders import ShardOrder
from packtrain.broker.states import InstanceState

#: A member of which nothing was known for so long is gone: its node is, or its order was lost, seconds. A beat lives
#: for 15 s, and a broker that comes back empty has all beats again after 2.
GONE_S = 15.0
#: From the order until all shards wait for their head: Python and llama.cpp's start on a busy machine, seconds.
GATHER_S = 120.0

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fate:
    """What is to be done, and why."""

    shall: Literal["wait", "go", "drain", "end"]
    reason: str = ""


WAIT, GO = Fate("wait"), Fate("go")


def fate_of_shard(head: InstanceBeat | None, *, missing_s: float) -> Fate:
    """`go`: its head has loaded all it wants.

    Args:
        head: As its node reports it; None: nothing is known of it.
        missing_s: For how long that has been so.
    """
    if head is None:
        return Fate("end", "nothing is known of its head any more") if missing_s > GONE_S else WAIT
    if head.state.is_terminal:
        return Fate("end", f"its head on {head.node} is {head.state}" + (f": {head.reason}" if head.reason else ""))
    return GO if head.state in (InstanceState.READY, InstanceState.DRAINING) else WAIT


def fate_of_head(
    orders: Sequence[ShardOrder],
    shards: Mapping[InstanceId, InstanceBeat],
    *,
    missing_s: Mapping[InstanceId, float],
    waited_s: float,
) -> Fate:
    """`go`: all its shards can be used.

    Args:
        orders: Its shards.
        shards: What is known of them.
        missing_s: For how long nothing has been known of those that are not among them.
        waited_s: Since its order, of one that has not begun; else 0.
    """
    late = ""
    for order in orders:
        beat = shards.get(InstanceId(order.instance))
        if beat is None:
            if missing_s.get(InstanceId(order.instance), 0.0) > GONE_S:
                return Fate("end", f"nothing is known of its shard on {order.node} any more")
            late = late or order.node
        elif beat.state.is_terminal:
            return Fate("end", f"its shard on {beat.node} is {beat.state}: {beat.reason}")
        elif not _may_be_used(beat):
            late = late or order.node
    for order in orders:
        beat = shards.get(InstanceId(order.instance))
        if beat and beat.state is InstanceState.DRAINING:
            return Fate("drain", f"its shard on {beat.node} must leave: {beat.reason}")
    if not late:
        return GO
    if waited_s > GATHER_S:
        return Fate("end", f"its shard on {late} did not come within {GATHER_S:.0f} s; see to that node")
    return Fate("wait", f"waits for its shard on {late}")


def progress(orders: Sequence[ShardOrder], shards: Mapping[InstanceId, InstanceBeat]) -> str:
    """How far the weights are that a head sends to its shards, for people."""
    return "; ".join(_each_progress(orders, shards))


def _each_progress(orders: Sequence[ShardOrder], shards: Mapping[InstanceId, InstanceBeat]) -> Iterator[str]:
    for order in orders:
        if beat := shards.get(InstanceId(order.instance)):
            yield f"{order.node} has {beat.resident_bytes // MIB} of at most {beat.reserved_bytes // MIB} MiB"


def _may_be_used(beat: InstanceBeat) -> bool:
    return bool(beat.address) and beat.state in (InstanceState.LOADING, InstanceState.HOLDING)
