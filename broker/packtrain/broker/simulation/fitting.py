"""Fitting: if every model were wanted at once, which stay loaded, which take turns, and which can never run.

The planner itself says so. First it sees empty nodes and jobs for all models: what it loads fits together. What still
waits is then asked for alone, beside the others loaded and idle: those that it would unload take turns with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.fields import Report
from packtrain.broker.ids import ModelId, NodeId, Route, route_of
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.offer_book import Offers
from packtrain.broker.placement import Plan, Snapshot, plan
from packtrain.broker.placement.view import View
from packtrain.broker.placement.worth import guessed_load_s
from packtrain.broker.simulation.fleet_file import FleetFile
from packtrain.broker.simulation.parts import Node, info_of, load_s, to_ms
from packtrain.broker.states import InstanceState

#: Plans until nothing more is loaded: one for each replica that a model must have, and one that finds nothing.
MAX_PLANS = 1_001
#: Idle instances are taken to have been so for this much longer than they must stay, ms.
OLDER_MS = 1000

Fate = Literal["stays", "takes turns", "blocked", "never"]


class Pace(Report):
    """How fast one model is on one node that has nothing else to do. Null: not known."""

    load_s: float | None = None
    alone: float | None = Field(None, description="tokens a second of one job")
    full: float | None = Field(None, description="of all slots together")
    jobs_at_once: int | None = Field(None, description="that were running when `full` was measured; null: all slots")
    source: Literal["measured", "as the file says", "unknown"] = "unknown"


class Place(Report):
    """A model on a node."""

    node: str
    pace: Pace


class ModelFit(Report):
    """What becomes of one model."""

    model: str
    fate: Fate
    required_bytes: int = 0
    slots: int = 0
    places: tuple[Place, ...] = Field((), description="where it is loaded; of one that takes turns: would be")
    swaps_with: tuple[str, ...] = Field((), description="models that leave when it comes")
    could_run_on: int = Field(0, description="nodes whose budget would hold it")
    reason: str = Field("", description="why it waits, or what would have to change")


class NodeFit(Report):
    """What one node holds at once."""

    node: str
    budget_bytes: int
    free_bytes: int
    models: tuple[str, ...]
    closed: str = Field("", description="why nothing is loaded here")


class Fit(Report):
    """The whole answer."""

    nodes: tuple[NodeFit, ...]
    models: tuple[ModelFit, ...]


PaceOf = Callable[[ModelId, NodeId], Pace]


def fit(fleet: Snapshot, pace: PaceOf) -> Fit:
    """What fits together.

    Args:
        fleet: Nodes without instances and all their memory free, and models. Of `waiting` models with most jobs come
            first; models without any are wanted, too.
    """
    waiting = {route_of(model): 1 for model in fleet.models} | dict(fleet.waiting)
    loaded, last = _fill(replace(fleet, waiting=waiting), pace)
    errors = {reject.route: str(reject.error) for reject in last.rejects}
    view = View(fleet)
    placed = {i.model for i in loaded}
    could = {model: _could_run_on(model, view) for model in fleet.models}
    swaps = {
        model: plan(_alone(fleet, loaded, model)) for model in fleet.models if model not in placed and could[model]
    }
    # Those that leave because nobody needs them have no cost.
    leavers = {model: [u for u in swap.unloads if u.cost is not None] for model, swap in swaps.items()}

    def model_fit(model: ModelId) -> ModelFit:
        info, route = fleet.models[model], route_of(model)
        fate: Fate = "stays"
        nodes = [i.node for i in loaded if i.model == model]
        others = {by for by, who in leavers.items() if any(u.model == model for u in who)}
        reason = ""
        if others:
            fate = "takes turns"
        elif model not in placed and could[model]:
            fate = "takes turns" if leavers[model] else "blocked"
            others = {unload.model for unload in leavers[model]}
            nodes = [*dict.fromkeys(unload.node for unload in leavers[model])]
            reason = "" if others else swaps[model].waits.get(route, "")
        elif model not in placed:
            fate, reason = "never", errors.get(route) or last.waits.get(route, "")
        return ModelFit(
            model=model, fate=fate, required_bytes=info.required_bytes, slots=info.n_slots,
            places=tuple(Place(node=node, pace=pace(model, NodeId(node))) for node in nodes),
            swaps_with=tuple(sorted(others)), could_run_on=could[model], reason=reason,
        )  # fmt: skip

    return Fit(nodes=_node_fits(fleet, loaded), models=tuple(model_fit(model) for model in sorted(fleet.models)))


def on_paper(fleet: FleetFile) -> tuple[Snapshot, PaceOf]:
    """A fleet file as nodes without instances, and how fast its models are by what it says."""
    sections = {name: section for section in fleet.nodes for name in section.names}
    nodes = [Node(name, section, section.files(fleet.models)).beat() for name, section in sections.items()]
    infos = {ModelId(name): info_of(name, model) for name, model in fleet.models.items()}
    asked: dict[Route, float] = defaultdict(float)
    for jobs in fleet.jobs:
        count = jobs.count or (jobs.rate or 0) * (jobs.lasts or 0)
        for name, share in jobs.models.items():
            asked[route_of(ModelId(name))] += count * share / sum(jobs.models.values())

    def pace(model: ModelId, node: NodeId) -> Pace:
        said, section = fleet.models[model], sections[node]
        took = load_s(said, section, fleet.settings.start, fetches=model not in section.files(fleet.models))
        if said.decode is None:
            return Pace(load_s=took)
        full = said.decode.full or said.decode.alone
        return Pace(
            load_s=took, alone=said.decode.alone * section.speed, full=full * section.speed, source="as the file says"
        )

    waiting = {route: max(1, round(count)) for route, count in asked.items()}
    return Snapshot(now_ms=to_ms(0), nodes=nodes, models=infos, waiting=waiting), pace


def as_it_is(
    now_ms: int,
    nodes: Sequence[NodeBeat],
    instances: Sequence[InstanceBeat],
    models: Sequence[ModelInfo],
    offers: Offers,
    waiting: Mapping[Route, int],
) -> tuple[Snapshot, PaceOf]:
    """A live fleet as if nothing were loaded, and how fast its models are by what was measured where they are."""
    alive = [i for i in instances if not i.state.is_terminal]
    held: dict[str, int] = defaultdict(int)
    for instance in alive:
        held[instance.node] += instance.resident_bytes
    empty = [
        n.model_copy(update={"memory_free": min(n.memory_total, n.memory_free + held[n.node])})
        for n in sorted(nodes, key=lambda n: n.node)
    ]
    infos = {ModelId(info.id): info for info in models if not info.alias_of}
    ready = {(i.model, i.node): i for i in alive if i.ready_ms}

    def pace(model: ModelId, node: NodeId) -> Pace:
        found = ready.get((model, node))
        if found is None:
            return Pace()
        took = (found.ready_ms - found.requested_ms) / 1000 if found.requested_ms else None
        if not found.tokens_per_s:
            return Pace(load_s=took, source="unknown" if took is None else "measured")
        is_alone = found.slots_used == 1
        return Pace(
            load_s=took, alone=found.tokens_per_s if is_alone else None, full=None if is_alone else found.tokens_per_s,
            jobs_at_once=found.slots_used, source="measured",
        )  # fmt: skip

    asked = {route: waiting[route] for route in map(route_of, infos) if route in waiting}
    return Snapshot(now_ms=now_ms, nodes=empty, models=infos, offers=offers, waiting=asked), pace


def _could_run_on(model: ModelId, view: View) -> int:
    """Nodes that may load it and could hold it when empty; of those that have its file, or all if it can be fetched."""
    rules, offers = view.rules(model), view.offers(model)
    info = view.now.models[model]
    nodes = [node for node in view.open_nodes if node in offers or (offers and rules.is_fetchable)]
    return sum(
        rules.admit(view.open_nodes[node])
        and offers.get(node, info).required_bytes <= view.open_nodes[node].memory_budget
        for node in nodes
    )


def _fill(fleet: Snapshot, pace: PaceOf) -> tuple[list[InstanceBeat], Plan]:
    """Load until nothing more is loaded; what is, and the last plan."""
    loaded: list[InstanceBeat] = []
    for _ in range(MAX_PLANS):
        found = plan(replace(fleet, instances=loaded, nodes=_nodes(fleet, loaded)))
        if not found.loads:
            break
        for load in found.loads:
            ready_ms = fleet.now_ms - fleet.min_residency_ms - OLDER_MS
            took_s = pace(load.model, load.node).load_s or guessed_load_s(load.reserved_bytes)
            name = f"i{len(loaded):05}"
            head = InstanceBeat(
                instance=name, model=load.model, node=load.node, state=InstanceState.READY,
                n_slots=load.n_slots, slots_used=load.n_slots, n_ctx=load.n_ctx, numerics=load.numerics,
                reserved_bytes=load.reserved_bytes, resident_bytes=load.reserved_bytes,
                requested_ms=ready_ms - round(took_s * 1000), ready_ms=ready_ms, last_used_ms=ready_ms,
                group=name if load.shards else "", layers=load.layers,
            )  # fmt: skip
            loaded.append(head)
            for shard in load.shards:
                size = {"reserved_bytes": shard.reserved_bytes, "resident_bytes": shard.reserved_bytes}
                own = {"instance": f"i{len(loaded):05}", "node": shard.node, "layers": shard.layers, **size}
                holds = {"state": InstanceState.HOLDING, "n_slots": 0, "slots_used": 0, "ready_ms": 0}
                loaded.append(head.model_copy(update={**own, **holds}))
    return loaded, found


def _alone(fleet: Snapshot, loaded: list[InstanceBeat], model: ModelId) -> Snapshot:
    """Jobs wait for this model only, and all others are idle."""
    idle = [i.model_copy(update={"slots_used": 0}) for i in loaded]
    return replace(fleet, waiting={route_of(model): 1}, instances=idle, nodes=_nodes(fleet, loaded))


def _nodes(fleet: Snapshot, loaded: list[InstanceBeat]) -> list[NodeBeat]:
    held: dict[str, int] = defaultdict(int)
    for instance in loaded:
        held[instance.node] += instance.resident_bytes
    return [n.model_copy(update={"memory_free": n.memory_free - held[n.node]}) for n in fleet.nodes]


def _node_fits(fleet: Snapshot, loaded: list[InstanceBeat]) -> tuple[NodeFit, ...]:
    found = []
    for node in fleet.nodes:
        here = [i for i in loaded if i.node == node.node]
        free = min(node.memory_budget, node.memory_free) - sum(i.reserved_bytes for i in here)
        closed = node.quarantine or ("it drains" if node.draining else "")
        found.append(
            NodeFit(
                node=node.node, budget_bytes=node.memory_budget, free_bytes=free, models=tuple(i.model for i in here),
                closed=closed,
            )
        )  # fmt: skip
    return tuple(found)
