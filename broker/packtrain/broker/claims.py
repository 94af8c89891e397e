"""Claims: the order in which slots take the jobs that wait for one model.

The interactive lane goes before the bulk lane, and within a lane the lowest start tag (fairness.py) is next. An
instance that has its share of bulk jobs takes interactive ones only, so some of its slots are left to those.
`claim.lua` does the same on the server; here it is for its twin, and for a simulation without a server.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from packtrain.broker.fairness import FairTags
from packtrain.broker.job_spec import Lane

#: In the order in which they are served.
LANES: Final[tuple[Lane, ...]] = ("interactive", "bulk")
#: From so many slots on one is left to interactive jobs where nothing can be parked: of fewer it would be too much.
MIN_SLOTS_TO_RESERVE: Final = 4

T = TypeVar("T")


def lanes_for(*, bulk: bool) -> tuple[Lane, ...]:
    """Lanes that a claim looks at, one after the other.

    Args:
        bulk: False: the instance has its share of bulk jobs.
    """
    return LANES if bulk else LANES[:1]


def rank(lane: Lane, tag: float, job: T) -> tuple[int, float, T]:
    """What waiting jobs are sorted by; `job` decides between equal tags."""
    return LANES.index(lane), tag, job


def reserved_slots(n_slots: int, said: int | None, *, parks: bool) -> int:
    """Slots of `n_slots` that bulk jobs leave to interactive ones; one at least is theirs.

    Args:
        said: By packtrain.toml.
        parks: A bulk job can be parked for an interactive one. Then none is left empty by default: the first token
            comes nearly as soon, and bulk jobs have the slot while nobody asks.
    """
    if said is None:
        return int(not parks and n_slots >= MIN_SLOTS_TO_RESERVE)
    return min(said, n_slots - 1)


class Line(Generic[T]):
    """The jobs that wait for one model, of all users and lanes."""

    def __init__(self) -> None:
        self._tags = {lane: FairTags() for lane in LANES}
        self._waiting: dict[Lane, list[tuple[float, int, T]]] = {lane: [] for lane in LANES}
        self._count = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def has(self, lane: Lane) -> bool:
        """True when a job of this lane waits."""
        return bool(self._waiting[lane])

    def enter(self, job: T, lane: Lane, user: str, cost: int) -> float:
        """A job comes; its start tag."""
        tag = self._tags[lane].start(user, cost)
        self.put_back(job, lane, tag)
        return tag

    def put_back(self, job: T, lane: Lane, tag: float) -> None:
        """A job that was taken waits again, with the tag that it had."""
        self._count += 1
        heapq.heappush(self._waiting[lane], (tag, self._count, job))

    def take(self, *, bulk: bool) -> tuple[float, T] | None:
        """The next job for a slot, with its tag; None: there is none that it may take."""
        for lane in lanes_for(bulk=bulk):
            if waiting := self._waiting[lane]:
                tag, _, job = heapq.heappop(waiting)
                self._tags[lane].served(tag)
                return tag, job
        return None

    def clear(self) -> Iterator[T]:
        """All leave without being served: their users owe nothing."""
        for lane, waiting in self._waiting.items():
            yield from (job for _, _, job in waiting)
            waiting.clear()
            self._tags[lane] = FairTags()
