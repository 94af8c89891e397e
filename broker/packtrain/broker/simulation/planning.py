"""Planning: the planner of a real fleet, asked about one on paper, and only when it may have something to say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from packtrain.broker import placement
from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.ids import ModelId, NodeId, Route
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.offer_book import NodeOffers
from packtrain.broker.placement import Plan, Snapshot
from packtrain.broker.placement.replicas import another
from packtrain.broker.placement.view import View
from packtrain.broker.simulation.fleet_file import Settings


class Planning:
    """What the coordinator remembers from plan to plan.

    Args:
        nodes: Each with the models that it has.
    """

    def __init__(
        self, settings: Settings, infos: Mapping[ModelId, ModelInfo], nodes: Mapping[str, Iterable[str]]
    ) -> None:
        self._settings = settings
        self._infos = infos
        self._offers = {model: NodeOffers() for model in infos}
        for node, models in nodes.items():
            for model in models:
                self._offers[ModelId(model)][NodeId(node)] = infos[ModelId(model)]
        self._missing: dict[ModelId, int] = {}
        self._unserved: dict[Route, int] = {}

    def fetched(self, model: ModelId, node: NodeId) -> None:
        """One node more has the file of a model."""
        self._offers[model][node] = self._infos[model]
        self._offers[model].changed()

    def is_worth_it(
        self, now_ms: int, waiting: Mapping[Route, int], up: Mapping[Route, Sequence[InstanceBeat]]
    ) -> bool:
        """True when a model that jobs wait for is not loaded, or is worth one more replica.

        Else a plan is empty, if no instance came or went since the last one, or has been idle for too long.

        Args:
            up: Of each model that jobs wait for the instances that are ready or coming up.
        """
        view = View(Snapshot(now_ms, models=self._infos, offers=self._offers, waiting=waiting))
        return any(not up[route] or another(route, up[route], view) for route in waiting)

    def skip(self) -> None:
        """A tick without a plan: nobody waits for what is not there."""
        self._missing, self._unserved = {}, {}

    def plan(
        self,
        now_ms: int,
        waiting: Mapping[Route, int],
        nodes: Sequence[NodeBeat],
        instances: Sequence[InstanceBeat],
    ) -> Plan:
        """What the coordinator would see and decide, see `Coordinator.tick`."""
        seen = Snapshot(
            now_ms=now_ms,
            nodes=nodes,
            instances=instances,
            models=self._infos,
            offers=self._offers,
            waiting=waiting,
            max_wait_ms=round(self._settings.max_wait * 1000),
            min_residency_ms=round(self._settings.min_residency * 1000),
        )
        self._missing = placement.missing_since(seen, self._missing)
        self._unserved = placement.unserved_since(seen, self._unserved)
        return placement.plan(replace(seen, missing_since=self._missing, unserved_since=self._unserved))
