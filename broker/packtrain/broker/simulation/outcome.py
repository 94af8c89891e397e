"""What comes out of a simulation: how long jobs waited, what was loaded and unloaded, how full all was."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pydantic import Field

from packtrain.broker.fields import Report
from packtrain.broker.simulation.parts import Job, Node


class Waits(Report):
    """How long jobs waited before they began, seconds."""

    jobs: int
    mean: float
    p50: float
    p95: float
    p99: float
    longest: float

    @staticmethod
    def of(values: Iterable[float]) -> Waits:
        """Of these waits; percentiles by nearest rank."""
        ranked = sorted(values)
        if not ranked:
            return Waits(jobs=0, mean=0, p50=0, p95=0, p99=0, longest=0)

        def at(share: float) -> float:
            return round(ranked[math.ceil(share * len(ranked)) - 1], 3)

        mean = round(math.fsum(ranked) / len(ranked), 3)
        return Waits(jobs=len(ranked), mean=mean, p50=at(0.5), p95=at(0.95), p99=at(0.99), longest=at(1))


class NodeUse(Report):
    """How full one node was, on average from the first job to the last one's end; 1: full."""

    node: str
    slots: float = Field(description="slots at work, of those of loaded instances")
    memory: float = Field(description="of its budget")
    loads: int = 0


class Outcome(Report):
    """A whole simulation. Times in seconds."""

    jobs: int
    succeeded: int
    rejected: int = Field(0, description="that no node could ever run")
    never_served: int = Field(0, description="that had not ended when it was clear that some never would")
    reasons: dict[str, str] = Field(default_factory=dict, description="why, by model")
    makespan: float = Field(description="from the start to the last job's end")
    jobs_per_s: float
    tokens_per_s: float = Field(description="of answers")
    loads: int
    evictions: int = Field(description="instances that left to make room for another model")
    driven_out: int = Field(description="of these the ones that jobs still waited for")
    swaps: int = Field(description="loads on a node that somebody had to leave")
    idle_unloads: int = Field(description="instances that nobody needed any more")
    moved: int = Field(description="jobs that went on elsewhere, because their instance had to leave before their end")
    most_waiting: int
    plans: int = Field(description="times that the planner was asked")
    slots: float = Field(description="slots at work, of those of loaded instances, on average")
    memory: float = Field(description="of all budgets, on average")
    waits: Waits
    by_lane: dict[str, Waits]
    by_model: dict[str, Waits]
    by_user: dict[str, Waits]
    longest_unserved: dict[str, float] = Field(
        description="longest time, by model, that jobs waited while nothing was loaded that serves it"
    )
    nodes: tuple[NodeUse, ...]


class Account:
    """What is counted on the way."""

    def __init__(self) -> None:
        self.submitted = self.succeeded = self.rejected = self.tokens = self.moved = 0
        self.loads = self.evictions = self.driven_out = self.swaps = self.idle_unloads = self.plans = 0
        self.most_waiting = 0
        self.last_end = 0.0
        self.longest_unserved: dict[str, float] = {}
        self.loads_on: dict[str, int] = defaultdict(int)
        self._waits: dict[tuple[str, str, str], array[float]] = {}

    def began(self, job: Job, now: float) -> None:
        """A job begins for the first time."""
        key = (job.model, job.lane, job.user)
        if key not in self._waits:
            self._waits[key] = array("d")
        self._waits[key].append(now - job.at)

    def unserved(self, model: str, seconds: float) -> None:
        """So long nobody served a model that jobs waited for."""
        self.longest_unserved[model] = round(max(seconds, self.longest_unserved.get(model, 0)), 3)

    def waits(self) -> Waits:
        """Of all jobs."""
        return Waits.of(wait for values in self._waits.values() for wait in values)

    def waits_by(self, part: int) -> dict[str, Waits]:
        """Of jobs that have a model (0), lane (1) or user (2) in common."""
        groups: dict[str, list[array[float]]] = defaultdict(list)
        for key, values in self._waits.items():
            groups[key[part]].append(values)
        return {name: Waits.of(wait for values in groups[name] for wait in values) for name in sorted(groups)}

    def outcome(self, nodes: Sequence[Node], took: float, never_served: int, reasons: Mapping[str, str]) -> Outcome:
        """All of it, after so many seconds."""
        took = took or 1.0  # nothing came
        return Outcome(
            jobs=self.submitted, succeeded=self.succeeded, rejected=self.rejected, never_served=never_served,
            reasons=dict(reasons), makespan=round(self.last_end, 3),
            jobs_per_s=round(self.succeeded / took, 3), tokens_per_s=round(self.tokens / took, 3),
            loads=self.loads, evictions=self.evictions, driven_out=self.driven_out, swaps=self.swaps,
            idle_unloads=self.idle_unloads, moved=self.moved, most_waiting=self.most_waiting, plans=self.plans,
            slots=_share(sum(n.used_slot_s for n in nodes), sum(n.slot_s for n in nodes)),
            memory=_share(sum(n.byte_s for n in nodes), took * sum(n.section.memory_budget for n in nodes)),
            waits=self.waits(), by_model=self.waits_by(0), by_lane=self.waits_by(1), by_user=self.waits_by(2),
            longest_unserved=self.longest_unserved,
            nodes=tuple(
                NodeUse(
                    node=n.name, slots=_share(n.used_slot_s, n.slot_s),
                    memory=_share(n.byte_s, took * n.section.memory_budget), loads=self.loads_on[n.name],
                )
                for n in nodes
            ),
        )  # fmt: skip


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0
