"""Fitting: which models are loaded together when all are wanted, which must take turns, and which never fit.

No clock: the planner is asked again and again, and each load that it makes is there at once, until it makes no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from packtrain.broker.ids import ModelId, NodeId, model_of, route_of
from packtrain.broker.messages import InstanceBeat
from packtrain.broker.placement import Load, Snapshot, plan
from packtrain.broker.states import InstanceState


@dataclass(frozen=True, slots=True)
class Fit:
    """What fits together."""

    loads: tuple[Load, ...]  # of an empty fleet, in the planner's order
    turns: Mapping[ModelId, str] = field(default_factory=dict)  # models that fit only when others leave, and why
    never: Mapping[ModelId, str] = field(default_factory=dict)  # models that cannot be loaded, and why

    def on(self, node: NodeId) -> list[Load]:
        """What is loaded on a node."""
        return [load for load in self.loads if load.node == node]


def fit(fleet: Snapshot) -> Fit:
    """Place every model of an empty fleet.

    Args:
        fleet: Nodes, models and offers. What is loaded or waits there does not count: its memory is taken as free.
    """
    nodes = [node.model_copy(update={"memory_free": node.memory_total}) for node in fleet.nodes]
    waiting = {route_of(model): 1 for model in fleet.models}
    loads: list[Load] = []
    while True:
        there = {load.model for load in loads}
        beats = [_there(load, number, fleet.now_ms) for number, load in enumerate(loads)]
        taken = {node.node: sum(b.resident_bytes for b in beats if b.node == node.node) for node in nodes}
        now = replace(
            fleet,
            nodes=[node.model_copy(update={"memory_free": node.memory_free - taken[node.node]}) for node in nodes],
            instances=beats,
            waiting={route: count for route, count in waiting.items() if model_of(route) not in there},
            missing_since={},
            unserved_since={},
        )
        made = plan(now)
        if not made.loads:
            return Fit(
                tuple(loads),
                turns={model_of(route): why for route, why in made.waits.items()},
                never={model_of(reject.route): str(reject.error) for reject in made.rejects},
            )
        loads += made.loads


def _there(load: Load, number: int, now_ms: int) -> InstanceBeat:
    return InstanceBeat(
        instance=f"{load.model[:60]}-{number}", model=load.model, node=load.node, state=InstanceState.READY,
        n_slots=load.n_slots, slots_used=load.n_slots, reserved_bytes=load.reserved_bytes,
        resident_bytes=load.reserved_bytes, requested_ms=now_ms, ready_ms=now_ms, last_used_ms=now_ms,
    )  # fmt: skip
