"""Waking: whether this process slept, as on a laptop that was closed, so that nobody is blamed for the time in between.

While a machine sleeps nobody turns, reports or beats, and on waking every deadline seems missed at once. A process that
looks at its clocks all the time knows better. A stopped process sees its monotonic clock jump; on a suspended machine
that clock stands still (Linux) and the wall clock jumps. Who sets the wall clock forward by hand makes us think that we
slept, which costs nothing but a pause in judging.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PULSE_S = 0.5
#: A longer gap between two pulses is sleep. On an overloaded machine it may be less than that, see above.
SLEPT_S = 5.0
#: Others need this long after waking before their silence means anything: connections end in 5 s, beats come each 2 s.
SETTLE_S = 20.0


class Wakefulness:
    """Knows for how long this process has been awake. `look` may be called from any thread.

    Args:
        monotonic: Seconds.
        wall: Seconds.
    """

    def __init__(
        self, *, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._monotonic, self._wall = monotonic, wall
        self._last = (monotonic(), wall())
        self._lock = threading.Lock()
        self._woke_at: float | None = None  # None: it has not slept yet
        self._unseen_s: float | None = None

    def start(self) -> None:
        """Pulse from a thread of its own: the agent's loop may wait seconds for a broker that is away."""
        threading.Thread(target=self._pulse, name="pulse", daemon=True).start()

    def look(self) -> float:
        """Seconds since waking; infinite for one that has not slept."""
        with self._lock:
            before, self._last = self._last, (self._monotonic(), self._wall())
            now, gap = self._last[0], self._last[0] - before[0]
            if max(gap, self._last[1] - before[1]) > SLEPT_S:
                self._woke_at = now
                self._unseen_s = (self._unseen_s or 0.0) + gap
            return float("inf") if self._woke_at is None else now - self._woke_at

    def take_slept_s(self) -> float | None:
        """Seconds of the monotonic clock that were slept, once after each sleep, to move deadlines by; else None.

        A suspended machine's monotonic clock may have stood still: then they are few, and yet it slept.
        """
        self.look()
        with self._lock:
            slept_s, self._unseen_s = self._unseen_s, None
            return slept_s

    def _pulse(self) -> None:
        while True:
            time.sleep(PULSE_S)
            self.look()
