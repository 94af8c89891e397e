"""The coordinator: a level-triggered loop that keeps jobs moving and models where they are wanted.

Each second the leader looks at the whole fleet and mends what it sees: leases that lapsed, doorbells that got lost,
models that should be loaded or unloaded. Nothing is remembered that it could not see again, so it may die at any
moment and a standby goes on. Serving does not depend on it: loaded instances claim and finish without a coordinator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Protocol

from packtrain.broker import placement
from packtrain.broker.celery_app import MAX_BELLS
from packtrain.broker.commanding import orders_of, unload_order
from packtrain.broker.deeds import of_instances, of_unloads
from packtrain.broker.deeds_store import DeedBook
from packtrain.broker.diverting import Diverter
from packtrain.broker.ids import InstanceId, ModelId, NodeId, Route, is_deterministic, model_of, new_instance_id
from packtrain.broker.jobs import JobStore
from packtrain.broker.journal import Entry, Journal, decisions_of
from packtrain.broker.losses import find_lost
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.orders import NodeCommand
from packtrain.broker.placement import Load, Plan, Snapshot, Unload
from packtrain.broker.registry import Registry
from packtrain.broker.states import JobState

logger = logging.getLogger(__name__)

#: Doorbells that one tick rings again for one model.
MAX_RERING = 64


class Bells(Protocol):
    """The part of Celery that the coordinator uses."""

    def ring(self, route: Route, count: int = 1) -> None:
        """Say that jobs wait on a route."""
        ...

    def command(self, node: NodeId, command: NodeCommand) -> None:
        """Order an agent."""
        ...


class Coordinator:
    """One tick of leadership at a time; `coordinator_main` gives it real parts and a clock.

    Args:
        jobs: Job records.
        registry: Nodes, instances, models.
        bells: Doorbells and commands.
        bells_waiting: Doorbells that lie in the queue of a route.
        new_instance_id: Makes ids; an argument so that tests know them.
        offer_wait_ms: How long jobs wait for a model that no live node offers.
        max_wait_ms: How long jobs wait for a place that models with work of their own hold.
        min_residency_ms: How long an instance stays at least.
        journal: Where decisions are kept; None: nowhere.
        deeds: Where it is counted what becomes of instances; None: nowhere.
    """

    def __init__(
        self,
        jobs: JobStore,
        registry: Registry,
        bells: Bells,
        bells_waiting: Callable[[Route], int],
        new_instance_id: Callable[[ModelId], InstanceId] = new_instance_id,
        offer_wait_ms: int = placement.OFFER_WAIT_MS,
        max_wait_ms: int = placement.MAX_WAIT_MS,
        min_residency_ms: int = placement.MIN_RESIDENCY_MS,
        journal: Journal | None = None,
        deeds: DeedBook | None = None,
    ) -> None:
        self._jobs = jobs
        self._registry = registry
        self._bells = bells
        self._bells_waiting = bells_waiting
        self._new_instance_id = new_instance_id
        self._offer_wait_ms = offer_wait_ms
        self._max_wait_ms = max_wait_ms
        self._min_residency_ms = min_residency_ms
        self._journal = journal
        self._deeds = deeds
        self._diverter = Diverter(jobs, bells)
        self._models: list[ModelInfo] = []
        self._short_before: dict[Route, int] = {}
        self._term = 0
        self._missing_since: dict[ModelId, int] = {}
        self._unserved_since: dict[Route, int] = {}

    def tick(self, term: int, *, reap: bool = True) -> Plan:
        """Look and mend once.

        Args:
            term: Of this leadership; goes with every command.
            reap: False for one lease after Redis was away: holders could not renew and must get their chance first.
        """
        self._registry.prune()
        if reap:
            self.reap()
            self._note_losses()
        snapshot = self._look(term)
        if reap:
            self._strand(snapshot)
            self._begin_anew(snapshot)
        if self._diverter.spill(snapshot, self._models):
            snapshot = replace(snapshot, waiting=self._jobs.waiting())
        self._ring_lost_bells(snapshot)
        plan = placement.plan(snapshot)
        self._diverter.note_plan(plan.waits)
        self._carry_out(plan, snapshot, term)
        if self._deeds:
            unloads = of_unloads(plan.unloads, snapshot.instances, snapshot.waiting)
            self._deeds.note([*of_instances(snapshot.instances), *unloads])
        self._registry.put_waits(plan.waits)
        return plan

    def reap(self, instance: InstanceId | None = None) -> None:
        """Requeue jobs of silent instances, or of one known to be gone, and ring for them."""
        for reaped in self._jobs.reap(instance):
            logger.info(
                "Job %s is %s after its lease lapsed", reaped.job_id, reaped.state,
                extra={"event": "job.reaped", "job": reaped.job_id, "state": reaped.state},
            )  # fmt: skip
            if reaped.state is JobState.QUEUED:
                self._bells.ring(reaped.route)

    def _note_losses(self) -> None:
        """Tell what a vanished node had as LOST, so that the plan of this tick counts on it no more."""
        for lost in find_lost(self._registry.instances(), {node.node for node in self._registry.nodes()}):
            self._registry.put_instance(lost)
            logger.warning(
                "%s is LOST: %s", lost.instance, lost.reason, extra={"event": "instance.lost", "node": lost.node}
            )

    def _look(self, term: int) -> Snapshot:
        self._models = self._registry.models()
        snapshot = Snapshot(
            now_ms=self._registry.now_ms(),
            nodes=self._registry.nodes(),
            instances=self._registry.instances(),
            models=real_models(self._models),
            offers=self._registry.offers(),
            waiting=self._jobs.waiting(),
            desired=self._registry.desired(),
            offer_wait_ms=self._offer_wait_ms,
            max_wait_ms=self._max_wait_ms,
            min_residency_ms=self._min_residency_ms,
        )
        # What was missing in an earlier leadership may have been there in between.
        before = self._missing_since if term == self._term else {}
        unserved = self._unserved_since if term == self._term else {}
        self._term, self._missing_since = term, placement.missing_since(snapshot, before)
        self._unserved_since = placement.unserved_since(snapshot, unserved)
        for route in snapshot.waiting:
            model = model_of(route)
            if model in self._missing_since and model not in before:
                logger.warning(
                    "No live node offers %s; jobs wait for it, and fail in %.0f s unless one comes", model,
                    self._offer_wait_ms / 1000, extra={"event": "model.missing", "model": model},
                )  # fmt: skip
        return replace(snapshot, missing_since=self._missing_since, unserved_since=self._unserved_since)

    def _strand(self, snapshot: Snapshot) -> None:
        """Fail what waits for somebody who is gone: it would keep its model loaded and be rung for until it expires."""
        serving = {route: placement.serving(route, snapshot) for route in snapshot.waiting}
        if serving and (failed := self._jobs.strand(serving)):
            logger.warning("Failed %d jobs meant for somebody gone", failed, extra={"event": "jobs.stranded"})

    def _begin_anew(self, snapshot: Snapshot) -> None:
        """Let go of tokens of a numerics class that is gone: nobody would go on with them, so others begin anew."""
        classes = {
            route: placement.numerics_classes(route, snapshot) for route in snapshot.waiting if is_deterministic(route)
        }
        if not any(classes.values()):
            return
        for begun in self._jobs.begin_anew(classes):
            logger.warning(
                "Job %s begins anew: no instance has the numerics class of its tokens", begun.job_id,
                extra={"event": "job.anew", "job": begun.job_id},
            )  # fmt: skip
            self._bells.ring(begun.route)

    def _ring_lost_bells(self, snapshot: Snapshot) -> None:
        """Jobs that outnumber their doorbells on two ticks in a row have lost some.

        One tick is not enough: between a submit and its ring, and between the pop of a bell and its claim, they
        outnumber them rightly.
        """
        short: dict[Route, int] = {}
        for route, ready in snapshot.waiting.items():
            missing = min(ready, MAX_BELLS) - self._bells_waiting(route)
            if missing > 0:
                short[route] = missing
                lost = min(missing, self._short_before.get(route, 0), MAX_RERING)
                if lost:
                    logger.info("Ringing %d lost bells for %s", lost, route, extra={"event": "bell.rerung"})
                    self._bells.ring(route, lost)
                    if self._deeds:
                        self._deeds.rerung(lost)
        self._short_before = short

    def _carry_out(self, plan: Plan, snapshot: Snapshot, term: int) -> None:
        told: dict[Route, int] = {}
        for reject in plan.rejects:
            self._diverter.leave(reject.route, str(reject.error))
            if failed := self._jobs.reject(reject.route, reject.error):
                told[reject.route] = failed
                logger.warning(
                    "Failed %d jobs for %s: %s", failed, reject.route, reject.error, extra={"event": "jobs.rejected"}
                )
        names = [self._load(load, snapshot, term) for load in plan.loads]
        for unload in plan.unloads:
            self._unload(unload, term)
        if self._journal and (plan.loads or plan.unloads or told):
            decisions = [
                made.model_copy(update={"instance": name} if name else {"jobs": told.get(Route(made.route), 0)})
                for made, name in zip_longest(decisions_of(plan), names)
            ]
            entry = Entry(at_ms=snapshot.now_ms, term=term, decisions=tuple(decisions), waits=dict(plan.waits))
            self._journal.write(entry, snapshot)

    def _load(self, load: Load, snapshot: Snapshot, term: int) -> InstanceId:
        names = [self._new_instance_id(load.model) for _ in range(1 + len(load.shards))]
        nodes = {NodeId(node.node): node for node in snapshot.nodes}
        info = snapshot.models.get(load.model)
        orders = orders_of(load, names, nodes, info, now_ms=snapshot.now_ms, term=term)
        # Records come first: they reserve the memory. If a command is lost, its record expires and we plan anew.
        self._registry.put_instances(orders.records)
        logger.info(
            "Load %s on %s as %s: %s", load.model, load.node, names[0], load.reason, extra={"event": "instance.load"}
        )
        for node, command in orders.commands:
            self._bells.command(node, command)
        return names[0]

    def _unload(self, unload: Unload, term: int) -> None:
        logger.info(
            "Unload %s from %s: %s", unload.instance, unload.node, unload.reason, extra={"event": "instance.unload"}
        )
        self._bells.command(unload.node, unload_order(unload, term))


def real_models(models: list[ModelInfo]) -> dict[ModelId, ModelInfo]:
    """Models by id, without aliases."""
    return {ModelId(info.id): info for info in models if not info.alias_of}
