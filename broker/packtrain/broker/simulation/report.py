"""What came of a simulation: waits, loads, and how much of the fleet was at work."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict

from pydantic import BaseModel, ConfigDict, Field

from packtrain.broker.ids import ModelId
from packtrain.broker.placement import Load, Reject, Unload
from packtrain.broker.simulation.fleet import SimFleet, SimJob
from packtrain.broker.simulation.units import Unit


class Waits(BaseModel):
    """Of the jobs of a model from submit to start, seconds."""

    model_config = ConfigDict(frozen=True)

    median: float = 0
    p90: float = 0
    p99: float = 0
    longest: float = 0


class ModelReport(BaseModel):
    """What became of one model."""

    model_config = ConfigDict(frozen=True)

    model: str
    jobs: int = Field(0, description="that ended")
    waits: Waits = Waits()
    loads: int = 0
    work: float = Field(0, description="part of the time that its slots were at work while it was loaded")


class SimResult(BaseModel):
    """What came of a whole simulation."""

    model_config = ConfigDict(frozen=True)

    seconds: float = Field(0, description="of virtual time")
    jobs: int = Field(0, description="that ended")
    rejected: dict[str, int] = Field(default_factory=dict, description="jobs by error and its first reason")
    left: int = Field(0, description="jobs that nobody could run")
    loads: int = 0
    unloads_for_room: int = 0
    memory: float = Field(0, description="part of all budgets that instances held, over time")
    work: float = Field(0, description="part of the time that loaded slots were at work")
    waits: Waits = Waits()
    models: tuple[ModelReport, ...] = ()


class Report:
    """A simulation's notes."""

    def __init__(self, fleet: SimFleet) -> None:
        self._fleet = fleet
        self.submitted = 0
        self._jobs: Counter[ModelId] = Counter()
        self._rejected: Counter[str] = Counter()
        self._loads: Counter[str] = Counter()
        self._for_room = 0
        self._waits: dict[ModelId, array[float]] = {name: array("f") for name in fleet.models}
        self._busy_ms: defaultdict[str, float] = defaultdict(float)
        self._slot_ms: defaultdict[str, float] = defaultdict(float)
        self.done = 0  # jobs that have ended, one way or the other
        self._byte_ms = 0.0
        self.result = SimResult()

    def begun(self, job: SimJob, now_ms: float) -> None:
        """A job was claimed."""
        self._waits[job.model].append((now_ms - job.at_ms) / 1000)

    def ended(self, job: SimJob) -> None:
        """It has its answer."""
        self._jobs[job.model] += 1
        self.done += 1

    def rejected(self, count: int, reject: Reject) -> None:
        """Jobs were told that their model cannot be loaded."""
        if count:
            self._rejected[f"{reject.error.code}: {reject.error}"] += count
            self.done += count

    def loaded(self, load: Load) -> None:
        """A load was commanded."""
        self._loads[load.model] += 1

    def unloaded(self, unload: Unload) -> None:
        """An unload was commanded."""
        self._for_room += "makes room" in unload.reason

    def gone(self, unit: Unit, now_ms: float) -> None:
        """An instance has left, or the simulation ends."""
        if unit.up_since:
            self._slot_ms[unit.beat.model] += (now_ms - unit.up_since) * unit.beat.n_slots
            self._busy_ms[unit.beat.model] += unit.busy_ms
        self._byte_ms += (now_ms - unit.beat.requested_ms) * unit.beat.reserved_bytes

    def finish(self, now_ms: float) -> None:
        """Sum up."""
        budget = sum(node.beat.memory_budget for node in self._fleet.nodes)
        everything = array("f", sorted(wait for waits in self._waits.values() for wait in waits))
        self.result = SimResult(
            seconds=now_ms / 1000,
            jobs=sum(self._jobs.values()),
            rejected=dict(self._rejected),
            left=self.submitted - self.done,
            loads=sum(self._loads.values()),
            unloads_for_room=self._for_room,
            memory=self._byte_ms / (now_ms * budget) if now_ms and budget else 0,
            work=_part(sum(self._busy_ms.values()), sum(self._slot_ms.values())),
            waits=_waits(everything),
            models=tuple(
                ModelReport(
                    model=name,
                    jobs=self._jobs[name],
                    waits=_waits(array("f", sorted(self._waits[name]))),
                    loads=self._loads[name],
                    work=_part(self._busy_ms[name], self._slot_ms[name]),
                )
                for name in self._fleet.models
            ),
        )


def _part(busy: float, all_ms: float) -> float:
    return busy / all_ms if all_ms else 0.0


def _waits(ordered: array[float]) -> Waits:
    if not ordered:
        return Waits()

    def at(part: float) -> float:
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    return Waits(median=at(0.5), p90=at(0.9), p99=at(0.99), longest=ordered[-1])
