"""Turns: how many requests a remote server may be sent, and when it wants to be left alone.

A server that allows 30 requests a minute mostly counts those of the last 60 seconds, and so is counted here: a turn is
free when fewer than that were taken in the last window. A job takes its turn before it is claimed, so that what has to
wait for one waits in the queue, in its order there, and not in a slot.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

#: A minute, and what clocks and networks may be apart, seconds.
WINDOW_S = 60.5


class Turns:
    """Thread-safe.

    Args:
        per_minute: Requests; None: any number.
        clock: Monotonic seconds.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._taken: deque[float] = deque()
        self._paused_until = 0.0
        self._is_closed = False
        self._changed = threading.Condition()

    def take(self) -> float:
        """Take a turn: 0. Else how many seconds it is until there may be one."""
        with self._changed:
            return self._take()

    def has_free(self) -> bool:
        """Whether there is one now."""
        with self._changed:
            return not self._wait_s()

    def wait(self) -> bool:
        """Take a turn, and block until there is one; False: none, it was closed."""
        with self._changed:
            while not self._is_closed:
                wait_s = self._take()
                if not wait_s:
                    return True
                self._changed.wait(wait_s)
            return False

    def give_back(self) -> None:
        """After a turn that was not used."""
        with self._changed:
            if self._taken:
                self._taken.pop()
            self._changed.notify()

    def pause(self, seconds: float) -> None:
        """No turns for so long: the server has said so."""
        with self._changed:
            self._paused_until = max(self._paused_until, self._clock() + seconds)

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _take(self) -> float:
        wait_s = self._wait_s()
        if not wait_s and self._per_minute is not None:
            self._taken.append(self._clock())
        return wait_s

    def _wait_s(self) -> float:
        now = self._clock()
        if now < self._paused_until:
            return self._paused_until - now
        if self._per_minute is None:
            return 0.0
        while self._taken and self._taken[0] <= now - WINDOW_S:
            self._taken.popleft()
        return 0.0 if len(self._taken) < self._per_minute else self._taken[0] + WINDOW_S - now
