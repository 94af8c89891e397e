"""Arrivals: the jobs of a fleet file one after another, drawn as they are needed, so that a million take no memory."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from packtrain.broker.job_spec import Lane
from packtrain.broker.simulation.fleet_file import JobsSection, TraceLine


class Arrival(NamedTuple):
    """A job that comes."""

    at: float  # seconds
    model: str
    user: str
    lane: Lane
    prompt: int  # tokens
    output: int
    most: int | None = None  # what it says it may produce


def arrivals(sections: Iterable[JobsSection], trace: Iterable[TraceLine], seed: int) -> Iterator[Arrival]:
    """All jobs in the order they come. The same seed gives the same jobs.

    Args:
        trace: Sorted by time.
    """
    # Each stream draws from a source of its own: one more stream changes none of the others.
    streams = [_stream(jobs, random.Random(f"{seed}/{number}")) for number, jobs in enumerate(sections)]
    said = (Arrival(t.at, t.model, t.user, t.lane, t.prompt, t.output, t.max_tokens) for t in trace)
    return heapq.merge(*streams, said, key=lambda arrival: arrival.at)


def _stream(jobs: JobsSection, rng: random.Random) -> Iterator[Arrival]:
    models, users = _Names(jobs.models), _Names(jobs.users)
    end = float("inf") if jobs.lasts is None else jobs.start + jobs.lasts
    at = jobs.start
    for _ in range(jobs.count) if jobs.count else itertools.count():
        if jobs.rate:
            at += rng.expovariate(jobs.rate)
            if at > end:
                return
        yield Arrival(
            at, models.draw(rng), users.draw(rng), jobs.lane, jobs.prompt.draw(rng), jobs.output.draw(rng),
            jobs.max_tokens,
        )  # fmt: skip


class _Names:
    """Names to draw by their shares."""

    def __init__(self, shares: dict[str, float]) -> None:
        self._names = list(shares)
        self._bounds = list(itertools.accumulate(shares.values()))

    def draw(self, rng: random.Random) -> str:
        if len(self._names) == 1:
            return self._names[0]
        return rng.choices(self._names, cum_weights=self._bounds)[0]
