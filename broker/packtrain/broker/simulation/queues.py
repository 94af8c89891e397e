"""The jobs that wait for one model: two lanes, each in the order of start-time fair queueing."""

from __future__ import annotations

import heapq
import itertools

from packtrain.broker.fairness import FairTags
from packtrain.broker.simulation.fleet import SimJob


class SimQueue:
    """What `submit.lua` and `claim.lua` do with the ready sets of a route."""

    def __init__(self) -> None:
        self._tags = {"interactive": FairTags(), "bulk": FairTags()}
        self._heaps: dict[str, list[tuple[float, int, SimJob]]] = {"interactive": [], "bulk": []}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))

    def push(self, job: SimJob) -> None:
        """A job is submitted."""
        tag = self._tags[job.lane].start(job.user, job.prompt_tokens + job.output_tokens)
        heapq.heappush(self._heaps[job.lane], (tag, next(self._numbers), job))

    def pop(self, *, bulk: bool) -> SimJob | None:
        """Claim the best job.

        Args:
            bulk: Whether a bulk one will do.
        """
        for lane in ("interactive", "bulk") if bulk else ("interactive",):
            if self._heaps[lane]:
                tag, _, job = heapq.heappop(self._heaps[lane])
                self._tags[lane].served(tag)
                return job
        return None

    def clear(self) -> int:
        """All are told that their model cannot be loaded; how many were."""
        count = len(self)
        for heap in self._heaps.values():
            heap.clear()
        return count
