"""The bulk share of an instance: how many bulk jobs it holds at most, so that slots stay free for interactive ones.

A thread takes a permit before it claims and keeps it while it runs a bulk job. One that gets none may claim interactive
jobs only. The bell that it heard may be that of a bulk job, and is needed once a permit comes back; so it does not let
go of the bell but waits with it, and looks for interactive jobs meanwhile: an instance that has its share of bulk jobs
takes no bells off the queue that another one could answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

#: How often one of those that wait looks for an interactive job, seconds. A step of a small model takes as long.
LOOK_S = 0.05


class BulkShare:
    """Permits to run bulk jobs. Thread-safe.

    Args:
        limit: Bulk jobs at once.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._changed = threading.Condition()
        self._is_closed = False
        self._is_watched = False

    def take(self) -> bool:
        """Take a permit; False: none is free."""
        with self._changed:
            if not self._free:
                return False
            self._free -= 1
            return True

    def give_back(self) -> None:
        """Give a permit back."""
        with self._changed:
            self._free += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Wait until a permit is free, `close`, or `is_over`, which one of those that wait asks every `LOOK_S`.

        Args:
            is_over: Called without a lock, so it may block for a while.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_open() or not self._is_watched)
            if self._is_open():
                return
            self._is_watched = True
        try:
            while True:
                with self._changed:
                    if self._changed.wait_for(self._is_open, LOOK_S):
                        return
                if is_over():
                    return
        finally:
            with self._changed:
                self._is_watched = False
                self._changed.notify_all()  # another one watches now

    def _is_open(self) -> bool:
        return self._free > 0 or self._is_closed
