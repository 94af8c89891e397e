"""Service: how fast an instance works its jobs off, without looking at single tokens.

Sequences of a batch advance together, one token each step. So one number tells how far all of them are: the tokens that
each had since the instance came up. A job that joins is done when that number has grown by its own tokens; the next to
end is the one with the lowest goal, however the company changes until then.

A step of n sequences takes `alone` + (n - 1) x `each` seconds, which follows from the two rates that a model is given
with. SmolLM2 here: 88 tokens/s alone and 221 of 16 give 169 of 4, where 150 are measured. Prompts are computed before
that: they stop all sequences of the instance for as long as the prompt takes alone. In truth prefill shares its steps
with decoding, so that others do go on, and prefill takes longer: the same work in the end.

Work is counted in seconds of a node of speed 1 that has nothing else to do. Instances of a node that are at work share
it evenly.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
#: Goals this near are reached together: sums of floats part by far less, and tokens are whole.
NEAR = 1e-6


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds that an instance takes, on a node of speed 1 that it has to itself."""

    alone: float  # a step of one sequence
    each: float  # more for every further one
    prefill: float  # a token of a prompt

    @staticmethod
    def of(alone: float, full: float | None, prefill: float, n_slots: int) -> Rates:
        """From tokens a second: of one sequence, of all slots together, of a prompt."""
        step = 1 / alone
        full_step = n_slots / (full or alone)
        return Rates(step, (full_step - step) / (n_slots - 1) if n_slots > 1 else 0.0, 1 / prefill)


class Service(Generic[T]):
    """The sequences of one instance. Time is that of the simulation, seconds.

    Attributes:
        version: Changes with everything that changes when the next one ends.
    """

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._goals: list[tuple[float, int, T]] = []
        self._count = 0
        self._advanced = 0.0  # tokens that each sequence had
        self._prefill = 0.0  # seconds of prompts still to compute
        self._since = 0.0
        self._share = 1.0
        self._first: float | None = None  # when the first token of all came
        self.version = 0

    def __len__(self) -> int:
        return len(self._goals)

    def join(self, job: T, prompt: int, output: int, now: float) -> None:
        """A sequence comes: so many tokens to prefill and to produce."""
        self._pass(now)
        self._prefill += prompt * self._rates.prefill
        self._count += 1
        heapq.heappush(self._goals, (self._advanced + output, self._count, job))
        self.version += 1

    def share(self, share: float, now: float) -> None:
        """From now on it has this part of the node, times the speed of it."""
        self._pass(now)
        self._share = share
        self.version += 1

    def next_end(self) -> float | None:
        """When the first of them ends, if nothing changes; None: there are none."""
        if not self._goals:
            return None
        left = max(0.0, self._goals[0][0] - self._advanced)
        return self._since + (self._prefill + left * self._step()) / self._share

    def end(self, now: float) -> list[T]:
        """Those that end now, at the time that `next_end` gave; they leave."""
        self._pass(now)
        self._prefill, self._advanced = 0.0, max(self._advanced, self._goals[0][0])
        ended = []
        while self._goals and self._goals[0][0] <= self._advanced + NEAR:
            ended.append(heapq.heappop(self._goals)[2])
        self.version += 1
        return ended

    def leave(self, now: float) -> list[tuple[T, int]]:
        """All leave before they have ended; each with the tokens that it lacks."""
        self._pass(now)
        left = [(job, max(0, round(goal - self._advanced))) for goal, _, job in sorted(self._goals, key=_number)]
        self._goals.clear()
        self._prefill = 0.0
        self.version += 1
        return left

    def jobs(self) -> list[T]:
        """Its sequences."""
        return [job for _, _, job in self._goals]

    def first_token(self, now: float) -> float | None:
        """When one of its sequences first had a token; None: not by now."""
        if self._first is None and self._goals:
            at = self._since + (self._prefill + (1 - self._advanced) * self._step()) / self._share
            return at if at <= now else None
        return self._first

    def _step(self) -> float:
        return self._rates.alone + (len(self._goals) - 1) * self._rates.each

    def _pass(self, now: float) -> None:
        """Count the time since the last change."""
        self._first = self.first_token(now)
        if self._goals:
            work = (now - self._since) * self._share
            prefill = min(work, self._prefill)
            self._prefill -= prefill
            self._advanced += (work - prefill) / self._step()
        self._since = now


def _number(entry: tuple[float, int, T]) -> int:
    return entry[1]
