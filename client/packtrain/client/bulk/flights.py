"""Rows on their way: which are open in each route, and what a bad end of one means. No I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from packtrain.broker.errors import (
    InvalidRequest,
    JobCancelled,
    JobError,
    JobFailed,
    ModelError,
    PacktrainError,
    UnknownJob,
)
from packtrain.broker.ids import Route
from packtrain.client.bulk import window
from packtrain.client.bulk.ledger import Todo
from packtrain.client.bulk.translate import Asked
from packtrain.client.result import Result

#: Runs of one row that the fleet failed, in all.
MOST_TRIES: Final = 3


@dataclass(slots=True)
class Flight:
    """A row whose jobs are in the fleet, or about to be."""

    todo: Todo
    group: Group
    text: bytes
    asked: Asked
    epoch: int
    tries: int
    results: dict[int, Result] = field(default_factory=dict)  # by the number of its job
    old: set[int] = field(default_factory=set)  # jobs that an earlier process submitted

    @property
    def is_whole(self) -> bool:
        """True when all its jobs have ended."""
        return len(self.results) == len(self.asked.specs)


@dataclass(slots=True)
class Group:
    """Rows of one route."""

    route: Route
    name: str  # as the ledger calls it; empty: of lines that are no rows
    after: tuple[bytes, int] = (b"", 0)  # prefix and line of the row read last
    read: deque[Todo] = field(default_factory=deque)
    is_read: bool = False  # to the end
    pending: deque[tuple[Flight, int]] = field(default_factory=deque)  # jobs to submit
    again: list[tuple[float, Flight]] = field(default_factory=list)  # rows to run once more, and from when on
    flights: int = 0  # rows that are open
    jobs: int = 0  # in the fleet
    size: int = 0  # bytes of open rows
    window: int = window.LEAST
    not_before_s: float = 0.0  # nothing is submitted
    waits_for: str = ""  # why
    blocked: ModelError | None = None
    ends: deque[float] = field(default_factory=deque)  # of jobs, the latest ones

    @property
    def is_done(self) -> bool:
        """True when no row is left."""
        return self.is_read and not (self.read or self.pending or self.again or self.flights)

    @property
    def is_heavy(self) -> bool:
        """True when its open rows are as many bytes as may be."""
        return self.flights > 0 and self.size >= window.MOST_BYTES

    def take_ready(self, now_s: float) -> list[Flight]:
        """Rows that have waited long enough to run once more."""
        ready = [flight for at_s, flight in self.again if at_s <= now_s]
        self.again = [(at_s, flight) for at_s, flight in self.again if at_s > now_s]
        return ready

    def open(self, flight: Flight) -> None:
        """Have all jobs of a row submitted."""
        flight.results.clear()
        flight.old.clear()
        self.pending.extend((flight, number) for number in range(len(flight.asked.specs)))

    def wait(self, until_s: float, why: str) -> None:
        """Nothing is to be submitted before."""
        self.not_before_s, self.waits_for = until_s, why

    def block(self, error: ModelError) -> None:
        """Nothing more can run until somebody mends this."""
        self.blocked = error
        self.pending.clear()
        self.again.clear()

    def jobs_per_s(self, now_s: float) -> float:
        """How fast its jobs end now."""
        while self.ends and self.ends[0] < now_s - window.AHEAD_S:
            self.ends.popleft()
        return len(self.ends) / max(1.0, now_s - self.ends[0]) if self.ends else 0.0


class Verdict(Enum):
    """What a bad end of a row means."""

    LEFT = "it was cancelled with its run, and stays to do"
    BLOCKED = "no row of its route can run"
    RENEWED = "it runs again, and this was no try"
    AGAIN = "it runs again"
    FAILED = "that is its answer"


def verdict(error: PacktrainError, *, tries: int, is_cancelled: bool, is_old: bool) -> Verdict:
    """What to do with a row that ended with this error.

    Args:
        tries: That the fleet has failed before.
        is_cancelled: The run is being cancelled.
        is_old: The job was submitted by an earlier process of the run.
    """
    if isinstance(error, ModelError):
        return Verdict.BLOCKED
    if isinstance(error, JobCancelled):
        if is_cancelled:
            return Verdict.LEFT
        return Verdict.RENEWED if is_old else Verdict.FAILED
    if _is_passing(error):
        return Verdict.AGAIN if tries + 1 < MOST_TRIES else Verdict.FAILED
    return Verdict.FAILED


def _is_passing(error: PacktrainError) -> bool:
    """Whether the same row may do better the next time."""
    return isinstance(error, JobFailed | UnknownJob) or not isinstance(error, InvalidRequest | JobError)
