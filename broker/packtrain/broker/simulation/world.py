"""The world of a simulation: jobs come and end, loads get ready, and once a virtual second the coordinator plans."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from packtrain.broker.ids import ModelId, NodeId, Route, model_of, route_of
from packtrain.broker.messages import InstanceBeat
from packtrain.broker.offer_book import NodeOffers
from packtrain.broker.placement import Load, Plan, Snapshot, missing_since, plan, unserved_since
from packtrain.broker.simulation.fleet import SimFleet, SimJob
from packtrain.broker.simulation.queues import SimQueue
from packtrain.broker.simulation.report import Report
from packtrain.broker.simulation.units import Unit
from packtrain.broker.states import InstanceState

TICK_MS = 1000
#: Between ticks while nothing waits and nothing comes up or leaves: only keep-alives may lapse.
QUIET_TICK_MS = 10_000
#: When no job has ended for so long, the rest waits for ever.
PATIENCE_MS = 3_600_000

_Event = tuple[float, int, Literal["ready", "end"], Unit, SimJob | None]


class World:
    """One simulation.

    Args:
        max_wait_ms, min_residency_ms: As the coordinator's settings have them.
    """

    def __init__(self, fleet: SimFleet, *, max_wait_ms: int, min_residency_ms: int) -> None:
        self._fleet = fleet
        self._models = {name: model.info for name, model in fleet.models.items()}
        self._nodes = {node.beat.node: node for node in fleet.nodes}
        names = [NodeId(name) for name in self._nodes]
        self._offers = {name: NodeOffers(dict.fromkeys(names, info)) for name, info in self._models.items()}
        self._queues = {name: SimQueue() for name in fleet.models}
        self._units: dict[str, Unit] = {}
        self._of_model: dict[ModelId, list[Unit]] = {name: [] for name in fleet.models}
        self._events: list[_Event] = []
        self._numbers = itertools.count(1)
        self._max_wait_ms, self._min_residency_ms = max_wait_ms, min_residency_ms
        self._missing: dict[ModelId, int] = {}
        self._unserved: dict[Route, int] = {}
        self._now = 0.0
        self._moving = 0  # instances that come up or leave
        self.report = Report(fleet)

    def run(self, jobs: Iterable[SimJob]) -> Report:
        """Until all jobs have ended, or none has for an hour."""
        coming = iter(jobs)
        job = next(coming, None)
        next_tick = last_end = 0.0
        while job or self.report.done < self.report.submitted:
            at = min(
                job.at_ms if job else float("inf"), self._events[0][0] if self._events else float("inf"), next_tick
            )
            self._now = at
            if job and job.at_ms == at:
                self._submit(job)
                job = next(coming, None)
                next_tick = min(next_tick, (at // TICK_MS + 1) * TICK_MS)
            elif self._events and self._events[0][0] == at:
                _, _, kind, unit, ended = heapq.heappop(self._events)
                if kind == "end" and ended:
                    self._end(unit, ended)
                    last_end = at
                else:
                    self._get_ready(unit)
            else:
                self._tick()
                is_quiet = not self._moving and not any(map(len, self._queues.values()))
                next_tick = at + (QUIET_TICK_MS if is_quiet else TICK_MS)
                if not job and at - last_end > PATIENCE_MS:
                    break
        for unit in self._units.values():
            self.report.gone(unit, self._now)
        self.report.finish(self._now)
        return self.report

    def _submit(self, job: SimJob) -> None:
        self.report.submitted += 1
        queue = self._queues[job.model]
        queue.push(job)
        for unit in self._of_model[job.model]:
            if unit.can_begin and (job.lane == "interactive" or unit.can_begin_bulk):
                self._claim(unit)
                break

    def _claim(self, unit: Unit) -> None:
        queue = self._queues[ModelId(unit.beat.model)]
        while len(queue) and unit.can_begin and (job := queue.pop(bulk=unit.can_begin_bulk)):
            self.report.begun(job, self._now)
            self._push(unit.begin(job, self._now), "end", unit, job)

    def _end(self, unit: Unit, job: SimJob) -> None:
        unit.end(job, self._now)
        self.report.ended(job)
        if unit.beat.state is InstanceState.DRAINING and not unit.running:
            self._remove(unit)
        else:
            self._claim(unit)

    def _get_ready(self, unit: Unit) -> None:
        self._moving -= 1
        now = int(self._now)
        unit.last_used_ms = unit.up_since = self._now
        unit.change(state=InstanceState.READY, ready_ms=now, last_used_ms=now, resident_bytes=unit.beat.reserved_bytes)
        self._claim(unit)

    def _remove(self, unit: Unit) -> None:
        self._moving -= 1
        del self._units[unit.beat.instance]
        self._of_model[ModelId(unit.beat.model)].remove(unit)
        self.report.gone(unit, self._now)

    def _tick(self) -> None:
        snapshot = self._look()
        self._obey(plan(snapshot))

    def _look(self) -> Snapshot:
        beats = [unit.look() for unit in self._units.values()]
        taken: dict[str, int] = {}
        for beat in beats:
            taken[beat.node] = taken.get(beat.node, 0) + beat.resident_bytes
        nodes = [
            node.beat.model_copy(update={"memory_free": node.beat.memory_free - taken[name]})
            if name in taken
            else node.beat
            for name, node in self._nodes.items()
        ]
        snapshot = Snapshot(
            now_ms=int(self._now), nodes=nodes, instances=beats, models=self._models, offers=self._offers,
            waiting={route_of(name): len(queue) for name, queue in self._queues.items() if len(queue)},
            max_wait_ms=self._max_wait_ms, min_residency_ms=self._min_residency_ms,
        )  # fmt: skip
        self._missing = missing_since(snapshot, self._missing)
        self._unserved = unserved_since(snapshot, self._unserved)
        return replace(snapshot, missing_since=self._missing, unserved_since=self._unserved)

    def _obey(self, made: Plan) -> None:
        for reject in made.rejects:
            self.report.rejected(self._queues[model_of(reject.route)].clear(), reject)
        for load in made.loads:
            self._load(load)
        for unload in made.unloads:
            unit = self._units[unload.instance]
            self.report.unloaded(unload)
            self._moving += 1
            unit.change(state=InstanceState.DRAINING)
            if not unit.running:
                self._remove(unit)

    def _load(self, load: Load) -> None:
        node, model = self._nodes[load.node], self._fleet.models[load.model]
        beat = InstanceBeat(
            instance=f"{load.model}-{next(self._numbers)}", model=load.model, node=load.node,
            state=InstanceState.LOADING, n_slots=load.n_slots, n_ctx=load.n_ctx, reserved_bytes=load.reserved_bytes,
            requested_ms=max(1, int(self._now)),
        )  # fmt: skip
        unit = Unit(beat, model, node.speed)
        self._units[beat.instance] = unit
        self._of_model[load.model].append(unit)
        self._moving += 1
        self.report.loaded(load)
        self._push(self._now + 1000 * model.load_s, "ready", unit, None)

    def _push(self, at_ms: float, kind: Literal["ready", "end"], unit: Unit, job: SimJob | None) -> None:
        heapq.heappush(self._events, (at_ms, next(self._numbers), kind, unit, job))
