"""Routes: who serves the jobs that wait on them, and since when nobody does."""

from __future__ import annotations

from collections.abc import Mapping

from packtrain.broker.ids import ModelId, Route, model_of
from packtrain.broker.placement.snapshot import Snapshot
from packtrain.broker.placement.view import View
from packtrain.broker.states import InstanceState


def missing_since(now: Snapshot, before: Mapping[ModelId, int]) -> dict[ModelId, int]:
    """Models that jobs wait for and that no live node offers, each with when that was first seen, ms.

    Args:
        before: What this gave the last time. What nobody looked at does not count: a fleet that was down with its
            coordinator has had no time to come back yet.
    """
    view = View(now)
    wanted = sorted({model_of(route) for route, count in now.waiting.items() if count})
    nodes = view.open_nodes

    def is_offered(model: ModelId) -> bool:
        rules = view.rules(model)
        return any(node in nodes and rules.admit(nodes[node]) for node in view.offers(model))

    return {model: before.get(model, now.now_ms) for model in wanted if not is_offered(model)}


def unserved_since(now: Snapshot, before: Mapping[Route, int]) -> dict[Route, int]:
    """Routes that jobs wait on while no instance serves them or comes up, each with when that was first seen, ms.

    This, and not the age of the oldest job, is what the longest wait bounds: of two models with endless work that
    take turns in one place, each always has old jobs, and would drive out the other as soon as it is loaded.

    Args:
        before: What this gave the last time; a new leader begins to count anew.
    """
    view = View(now)
    waiting = (route for route, count in now.waiting.items() if count)
    return {route: before.get(route, now.now_ms) for route in waiting if not view.up(route)}


def serving(route: Route, now: Snapshot) -> set[str]:
    """Names that a waiting job of this route may be meant for: instances and nodes that serve it.

    When none does, all nodes, for one of them will load it.
    """
    instances = [i for i in now.instances if i.serves(route) and not i.state.is_terminal]
    nodes = {i.node for i in instances} or {n.node for n in now.nodes}
    return {i.instance for i in instances} | nodes


def numerics_classes(route: Route, now: Snapshot) -> set[tuple[str, str]]:
    """Classes that waiting jobs of this route can be computed in, when that is certain; empty while one comes up.

    Each with whom a job may be meant for to be computed there: nobody ("") or the instance or its node.
    """
    instances = [i for i in now.instances if i.serves(route) and not i.state.is_terminal]
    if any(not i.numerics_class for i in instances):
        return set()
    computing = [i for i in instances if i.state is not InstanceState.DRAINING]
    return {(name, i.numerics_class) for i in computing for name in ("", i.instance, i.node)}
