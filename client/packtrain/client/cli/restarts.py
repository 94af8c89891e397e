"""Restart policy: how long to wait before a dead child is started again, and when to give up.

A child that dies once is restarted after a second; each further death doubles the wait, so that a broken child does not
eat the machine. A child that dies right after its start, five times in a row, will not be helped by a sixth: a wrong
setting, a missing library. Then the supervisor stops everything and shows what the child said. Pure: time comes in.

    lived          wait before the next start     fast deaths in a row
    [0, 10) s      1, 2, 4, 8, 16, 30, 30 ... s   + 1; at the fifth: give up
    [10, 60) s     the same row goes on           back to 0
    [60, ∞) s      back to 1 s                    back to 0
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class RestartPolicy:
    """The policy and the memory of one child. Times in seconds."""

    first_delay_s: float = 1.0
    longest_delay_s: float = 30.0
    healthy_s: float = 60.0  # lived this long: its earlier deaths are forgotten
    fast_s: float = 10.0  # died sooner: this death counts against it
    most_fast: int = 5
    num_fast: int = field(default=0, init=False)
    _num_deaths: int = field(default=0, init=False)

    def died(self, *, started_s: float, now_s: float) -> float | None:
        """Seconds to wait before the next start; None: give up.

        Args:
            started_s: When this life began, on any clock that never goes back.
            now_s: Now, on the same clock.
        """
        lived_s = now_s - started_s
        self.num_fast = self.num_fast + 1 if lived_s < self.fast_s else 0
        if lived_s >= self.healthy_s:
            self._num_deaths = 0
        if self.num_fast >= self.most_fast:
            return None
        delay_s = min(self.first_delay_s * 2.0 ** min(self._num_deaths, 30), self.longest_delay_s)
        self._num_deaths += 1
        return delay_s
