"""Who must leave a node whose memory budget was lowered below what its instances hold.

    1. idle instances, the longest unused first
    2. then busy ones, those with the fewest jobs first: they drain, so that their jobs end or go on elsewhere

and of either no more than the budget asks for. How long that may take is the drain's own bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packtrain.broker.ids import InstanceId


@dataclass(frozen=True, slots=True)
class Holder:
    """An instance that is not on its way out."""

    instance: InstanceId
    reserved_bytes: int
    resident_bytes: int
    slots_used: int  # 0: idle
    last_used_ms: int


def leaving(holders: Sequence[Holder], budget: int) -> list[InstanceId]:
    """Those that must leave, in order; none while reservations keep to the budget.

    The planner keeps reservations within the budget, and an instance may outgrow its own by a little: that alone
    makes nobody leave. But once somebody must, what is really held counts.

    >>> a, b = Holder(InstanceId("a"), 60, 60, 1, 0), Holder(InstanceId("b"), 40, 45, 0, 9)
    >>> leaving([a, b], 100), leaving([a, b], 70), leaving([a, b], 50)
    ([], ['b'], ['b', 'a'])
    """
    if sum(holder.reserved_bytes for holder in holders) <= budget:
        return []
    held = sum(map(_held_bytes, holders))
    gone = []
    for holder in sorted(holders, key=lambda h: (h.slots_used, h.last_used_ms, h.instance)):
        if held <= budget:
            break
        gone.append(holder.instance)
        held -= _held_bytes(holder)
    return gone


def _held_bytes(holder: Holder) -> int:
    return max(holder.reserved_bytes, holder.resident_bytes)
