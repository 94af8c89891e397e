"""What a loop does every so often: kept by name, so that the loop waits no longer than until the next of it."""

from __future__ import annotations

from collections.abc import Callable


class Beats:
    """When each thing is due again.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float], *names: str) -> None:
        self._clock = clock
        self._at_s = dict.fromkeys(names, 0.0)

    def is_due(self, name: str, every_s: float) -> bool:
        """Whether it is to be done now; if so, it is due again after `every_s`."""
        now_s = self._clock()
        if now_s < self._at_s.get(name, 0.0):
            return False
        self._at_s[name] = now_s + every_s
        return True

    def make_due(self, name: str) -> None:
        """Have it done at the next chance."""
        self._at_s[name] = 0.0

    def left_s(self) -> float:
        """Until the next of them is due; 0 or less: one is."""
        return min(self._at_s.values()) - self._clock()
