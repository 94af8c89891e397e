"""How fast jobs of a route are served, measured: the mean time from one end to the next while there is work.

A gap between two ends counts from the later one of the end before and the start of the job that ended: so the time in
which nothing ran is left out, and with all slots at work the gaps are those of the whole fleet. `finish.lua` does the
same sums on the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Weight of the newest job in the means, once there are as many: a burst that fills 16 slots counts as a whole.
NEWEST: Final = 1 / 16
#: Weight of the newest job in how long jobs hold a slot of one instance. After twenty jobs of another kind nine tenths
#: of the answer are theirs.
NEWEST_RUN: Final = 0.1
#: Of a route that is not measured yet, ms: a guess.
UNKNOWN_GAP_MS: Final = 100.0
#: Bounds of what a client is told to wait, seconds.
MIN_RETRY_S, MAX_RETRY_S = 1.0, 300.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Means over the latest jobs of a route that succeeded."""

    jobs: int = 0  # measured so far
    gap_ms: float = 0.0  # from one end to the next
    run_ms: float = 0.0  # from the claim of a job to its end
    last_ms: int = 0  # the latest end

    def with_end(self, started_ms: int, now_ms: int) -> Rate:
        """The rate after one more job has ended."""
        jobs = self.jobs + 1
        weight = max(1 / jobs, NEWEST)
        gap, run = now_ms - max(started_ms, self.last_ms), now_ms - started_ms
        return Rate(
            jobs, self.gap_ms + weight * (gap - self.gap_ms), self.run_ms + weight * (run - self.run_ms), now_ms
        )


def smoothed_run_s(before: float, seconds: float) -> float:
    """How long a job holds a slot of an instance, after one more has ended; 0: none has yet."""
    return seconds if not before else before + NEWEST_RUN * (seconds - before)


def retry_after_s(waiting: int, gap_ms: float | None) -> float:
    """When to try again at a full queue: when a tenth of it has been served.

    Args:
        waiting: Jobs in it.
        gap_ms: From one served to the next; None: not known.
    """
    gap = UNKNOWN_GAP_MS * 10 if gap_ms is None else gap_ms
    return min(MAX_RETRY_S, max(MIN_RETRY_S, waiting / 10 * gap / 1000))
