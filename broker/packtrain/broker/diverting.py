"""Diverting: the coordinator's hand in names with several targets. It reads which jobs may go elsewhere, has `spilling`
decide, and moves them, each in one script, so that a job waits in exactly one place and none is moved that was claimed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from packtrain.broker.ids import ModelId, Route, is_deterministic, model_of, route_of
from packtrain.broker.jobs import JobStore, Move
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.outcome import Cause
from packtrain.broker.placement import Snapshot
from packtrain.broker.placement.view import View
from packtrain.broker.spilling import Outlook, Spill, later_targets, outlook_of, spill

logger = logging.getLogger(__name__)


class Ringer(Protocol):
    """The part of `coordinator.Bells` that is used here."""

    def ring(self, route: Route, count: int = 1) -> None:
        """Say that jobs wait on a route."""
        ...


class Diverter:
    """Moves waiting jobs to other targets of the names that they were asked for by."""

    def __init__(self, jobs: JobStore, bells: Ringer) -> None:
        self._jobs = jobs
        self._bells = bells
        self._held_up: Mapping[Route, str] = {}

    def note_plan(self, waits: Mapping[Route, str]) -> None:
        """Why routes must wait, as the planner last said."""
        self._held_up = dict(waits)

    def spill(self, snapshot: Snapshot, models: Iterable[ModelInfo]) -> int:
        """Move jobs that would wait too long; how many were moved.

        Args:
            models: With the aliases among them.
        """
        sources: dict[Route, None] = {}
        targets: dict[ModelId, None] = {}
        for info in models:
            targets.update(dict.fromkeys(map(ModelId, info.targets)))
            for model in info.targets[:-1]:
                sources[route_of(ModelId(model))] = None
                if (strict := route_of(ModelId(model), deterministic=True)) in snapshot.waiting:
                    sources[strict] = None
        moved = 0
        view = View(snapshot) if sources else None
        for source in sources:
            waiting = self._jobs.movable(source)
            if not waiting or view is None:
                continue
            outlooks = {model: self._outlook(_beside(source, model), view) for model in targets}
            moved += self._move(source, spill(waiting, model_of(source), outlooks))
        return moved

    def leave(self, source: Route, why: str) -> int:
        """Move every job that has a further target away from a route that nobody will ever serve; how many."""
        moved = 0
        while waiting := self._jobs.movable(source):
            here = model_of(source)
            leaving = [Spill(job, left[0], why) for job in waiting if (left := later_targets(job, here))]
            if not (count := self._move(source, leaving, has_failed=True)):
                break
            moved += count
        return moved

    def _outlook(self, route: Route, view: View) -> Outlook:
        return outlook_of(route, view, self._jobs.rate(route), is_held_up=route in self._held_up)

    def _move(self, source: Route, spills: Sequence[Spill], *, has_failed: bool = False) -> int:
        moves = [
            Move(
                s.job.job_id,
                source,
                s.target,
                Cause(instance="", reason=f"went on to {s.target}: {s.reason}"[:500]),
                has_failed,
            )
            for s in spills
        ]
        if not moves:
            return 0
        counts: dict[ModelId, int] = {}
        for move, is_moved in zip(moves, self._jobs.move(moves), strict=True):
            if is_moved:
                counts[move.target] = counts.get(move.target, 0) + 1
        for target, count in counts.items():
            logger.info(
                "Moved %d jobs from %s to %s: %s", count, source, target, spills[-1].reason,
                extra={"event": "jobs.moved", "source": source, "target": target},
            )  # fmt: skip
            self._bells.ring(_beside(source, target), count)
        return sum(counts.values())


def _beside(route: Route, model: ModelId) -> Route:
    """The route of another model for the same kind of jobs."""
    return route_of(model, deterministic=is_deterministic(route))
