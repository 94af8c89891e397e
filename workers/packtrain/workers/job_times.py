"""Job times: how long a job holds a slot, smoothed, which says how long a backlog will take.

Until the first job has ended the answer is how long the oldest has run so far, so that an instance whose jobs take
minutes is not taken for one that nothing is known of.
"""

from __future__ import annotations

import threading

from packtrain.broker.rates import smoothed_run_s


class JobTimes:
    """Safe to share between threads. Times are seconds of one clock, which never goes back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: dict[int, float] = {}
        self._count = 0
        self._mean = 0.0
        self.num_ended = 0  # given back ones not counted

    def begin(self, now: float) -> int:
        """A job takes a slot; what `end` needs to know of it."""
        with self._lock:
            self._count += 1
            self._begun[self._count] = now
            return self._count

    def end(self, number: int, now: float, *, counts: bool = True) -> None:
        """It has left its slot.

        Args:
            counts: False for one that was given back or lost, which says nothing of how long jobs take.
        """
        with self._lock:
            seconds = now - self._begun.pop(number)
            if counts:
                self.num_ended += 1
                self._mean = smoothed_run_s(self._mean, seconds)

    def seconds(self, now: float) -> float:
        """How long a job holds a slot; 0: not known."""
        with self._lock:
            return self._mean or now - min(self._begun.values(), default=now)
