"""A fleet that obeys the planner, in virtual seconds: nodes with memory, models with sizes, jobs with lengths.

It does what real parts do, as far as placement sees it: a load takes its time and may fail, an instance runs as many
jobs as it has slots and drains before it leaves, memory is held from the command until the process is gone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.ids import ModelId, NodeId, Route, route_of
from packtrain.broker.keys import INSTANCE_ENDED_TTL_MS
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.orders import Desired
from packtrain.broker.placement import Load, Plan, Snapshot, missing_since, plan, unserved_since
from packtrain.broker.states import InstanceState
from tests.support.factories import MIB

START_MS = 1_000_000


@dataclass
class Job:
    """A job in this world; times in ms of its clock."""

    model: ModelId
    arrives_ms: int
    run_ms: int
    begun_ms: int | None = None
    ended_ms: int | None = None
    error: str = ""


@dataclass
class Unit:
    """An instance in this world."""

    beat: InstanceBeat
    ready_at: int
    running: list[Job] = field(default_factory=list)


class World:
    """Nodes, models and jobs; `tick` is one second.

    Args:
        load_ms: How long a model takes to load.
        broken: Nodes and models whose loads fail there when they would be READY.
    """

    def __init__(
        self,
        nodes: Mapping[str, int],
        models: Sequence[ModelInfo],
        jobs: Sequence[Job],
        *,
        load_ms: Callable[[str], int] = lambda model: 5000,
        broken: Collection[tuple[str, str]] = (),
        desired: Mapping[ModelId, Desired] | None = None,
    ) -> None:
        self.now_ms = START_MS
        self.nodes = {
            name: NodeBeat(
                node=name, memory_total=mib * MIB, memory_free=mib * MIB, memory_budget=mib * MIB,
                models=tuple(info.id for info in models),
            )
            for name, mib in nodes.items()
        }  # fmt: skip
        self.models = {ModelId(info.id): info for info in models}
        self.jobs = list(jobs)
        self.units: list[Unit] = []
        self.loads: list[tuple[int, Load]] = []
        self._load_ms, self.broken, self.desired = load_ms, broken, desired or {}
        self._missing: dict[ModelId, int] = {}
        self._unserved: dict[Route, int] = {}
        self._numbers = itertools.count(1)

    def run(self, seconds: int, check: Callable[[Snapshot, Plan], None] = lambda snapshot, result: None) -> bool:
        """Tick until all jobs have ended; True when they have."""
        for _ in range(seconds):
            check(*self.tick())
            if all(job.ended_ms is not None for job in self.jobs):
                return True
        return False

    def tick(self) -> tuple[Snapshot, Plan]:
        """A second goes by; what was seen and planned then."""
        self.now_ms += 1000
        for unit in self.units:
            self._live(unit)
        snapshot = self._look()
        result = plan(snapshot)
        self._obey(result)
        return snapshot, result

    def held(self, node: str) -> int:
        """Bytes that instances of a node hold or have reserved."""
        here = [u.beat for u in self.units if u.beat.node == node and not u.beat.state.is_terminal]
        return sum(max(beat.reserved_bytes, beat.resident_bytes) for beat in here)

    def waiting(self, model: ModelId) -> list[Job]:
        """Jobs that have come and not begun."""
        jobs = [j for j in self.jobs if j.model == model and j.begun_ms is None and j.ended_ms is None]
        return [job for job in jobs if job.arrives_ms <= self.now_ms]

    def _live(self, unit: Unit) -> None:
        beat = unit.beat
        if beat.state.is_terminal:
            return
        for job in [job for job in unit.running if (job.begun_ms or 0) + job.run_ms <= self.now_ms]:
            job.ended_ms = self.now_ms
            unit.running.remove(job)
            beat = beat.model_copy(update={"last_used_ms": self.now_ms, "job_s": job.run_ms / 1000})
        if beat.state.is_coming_up and unit.ready_at <= self.now_ms:
            change: dict[str, object] = {"state": InstanceState.READY, "ready_ms": self.now_ms}
            if (beat.node, beat.model) in self.broken:
                change = {"state": InstanceState.FAILED, "ended_ms": self.now_ms, "reason": "it fails here"}
            beat = beat.model_copy(
                update={"resident_bytes": beat.reserved_bytes, "last_used_ms": self.now_ms, **change}
            )
        if beat.state is InstanceState.READY:
            for job in self.waiting(ModelId(beat.model))[: beat.n_slots - len(unit.running)]:
                job.begun_ms = self.now_ms
                unit.running.append(job)
        if unit.running:
            beat = beat.model_copy(update={"last_used_ms": self.now_ms})
        elif beat.state is InstanceState.DRAINING:
            beat = beat.model_copy(update={"state": InstanceState.STOPPED, "ended_ms": self.now_ms})
        unit.beat = beat.model_copy(update={"slots_used": len(unit.running)})

    def _look(self) -> Snapshot:
        self.units = [
            u for u in self.units
            if not u.beat.state.is_terminal or self.now_ms - u.beat.ended_ms < INSTANCE_ENDED_TTL_MS
        ]  # fmt: skip
        beats = [unit.beat for unit in self.units]
        taken = {
            name: sum(b.resident_bytes for b in beats if b.node == name and not b.state.is_terminal)
            for name in self.nodes
        }
        nodes = [
            beat.model_copy(update={"memory_free": beat.memory_total - taken[name]})
            for name, beat in self.nodes.items()
        ]
        snapshot = Snapshot(
            now_ms=self.now_ms, nodes=nodes, instances=beats, models=self.models, desired=self.desired,
            offers={model: dict.fromkeys(map(NodeId, self.nodes), info) for model, info in self.models.items()},
            waiting={route_of(model): len(jobs) for model in self.models if (jobs := self.waiting(model))},
        )  # fmt: skip
        self._missing = missing_since(snapshot, self._missing)
        self._unserved = unserved_since(snapshot, self._unserved)
        return replace(snapshot, missing_since=self._missing, unserved_since=self._unserved)

    def _obey(self, result: Plan) -> None:
        for reject in result.rejects:
            for job in self.waiting(ModelId(reject.route)):
                job.ended_ms, job.error = self.now_ms, reject.error.code
        for load in result.loads:
            self.loads.append((self.now_ms, load))
            beat = InstanceBeat(
                instance=f"{load.model}-{next(self._numbers)}", model=load.model, node=load.node,
                state=InstanceState.REQUESTED, n_slots=load.n_slots, reserved_bytes=load.reserved_bytes,
                requested_ms=self.now_ms,
            )  # fmt: skip
            self.units.append(Unit(beat, self.now_ms + self._load_ms(load.model)))
        leaving = {unload.instance for unload in result.unloads}
        for unit in self.units:
            if unit.beat.instance in leaving:
                unit.beat = unit.beat.model_copy(update={"state": InstanceState.DRAINING})
