"""How the tokens of a job come: the times between them, by size, as its end counts them (tally.py)."""

from __future__ import annotations

from bisect import bisect_left

from packtrain.broker.tally import GAPS_MS, Pace

_BOUNDS_S = tuple(bound / 1000 for bound in GAPS_MS)


class PaceMeter:
    """Of one attempt. Belongs to the engine's thread until the job has ended; a token costs it half a microsecond.

    Attributes:
        first_at: When the first token came, on the clock of `note`; None: none has.
        is_resumed: The job had tokens from an earlier attempt.
    """

    __slots__ = ("_gaps", "_last_at", "_sum_s", "first_at", "is_resumed")

    def __init__(self) -> None:
        self.first_at: float | None = None
        self.is_resumed = False
        self._last_at = 0.0
        self._sum_s = 0.0
        self._gaps = [0] * (len(_BOUNDS_S) + 1)

    def note(self, now: float) -> bool:
        """A token came, or a piece of a remote answer; True: the first one."""
        is_first = self.first_at is None
        if is_first:
            self.first_at = now
        else:
            self._gaps[bisect_left(_BOUNDS_S, now - self._last_at)] += 1
            self._sum_s += now - self._last_at
        self._last_at = now
        return is_first

    @property
    def pace(self) -> Pace:
        """So far."""
        return Pace(tuple(self._gaps), round(self._sum_s * 1e6), self.is_resumed)
