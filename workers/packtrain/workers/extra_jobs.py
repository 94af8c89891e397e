"""Extra jobs: interactive jobs that an instance takes beyond its slots, because its engine can park bulk ones for them.

They come without a bell. The bells of a saturated model are mostly those of bulk jobs, hundreds of them before that of
an interactive one; who took them off the queue to look behind would have to ring them again, and would hear them again.
So bells are left to threads that have a slot, and one thread looks at the ready set instead, only while all slots are
taken and something can be parked: 20 times a second, two ZCARDs each. Where another instance has a free slot, the bell
is faster.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

#: Seconds between two looks. A step of a small model takes as long.
LOOK_S = 0.05


class Seats:
    """How many jobs an instance runs: one in each slot, and some beyond. Thread-safe.

    While jobs beyond the slots run, a slot that becomes free is for one of those parked. So a thread that has heard a
    bell waits with it until fewer jobs run than there are slots.

    Args:
        count: Slots.
        extra: Jobs beyond them.
    """

    def __init__(self, count: int, extra: int) -> None:
        self._count = count
        self._extra = extra
        self._taken = 0
        self._changed = threading.Condition()
        self._is_closed = False

    def take(self) -> bool:
        """Take a seat; waits for one. False: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken < self._count or self._is_closed)
            if self._is_closed:
                return False
            self._taken += 1
            if self._taken == self._count:
                self._changed.notify_all()
            return True

    def take_extra(self) -> bool:
        """Take one more where all are taken; False: there is a free one, or no more are to be had."""
        with self._changed:
            if self._is_closed or not self._count <= self._taken < self._count + self._extra:
                return False
            self._taken += 1
            return True

    def give_back(self) -> None:
        """Give a seat back."""
        with self._changed:
            self._taken -= 1
            if self._taken == self._count - 1:
                self._changed.notify_all()

    def wait_until_taken(self) -> bool:
        """Wait until all are taken. False: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken >= self._count or self._is_closed)
            return not self._is_closed

    def close(self) -> None:
        """Nobody takes or waits any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class ExtraJobs:
    """The thread that looks for interactive jobs while all seats are taken. It ends when they are closed.

    Args:
        take_one: Takes an extra job if one waits and something can be parked for it.
    """

    def __init__(self, seats: Seats, take_one: Callable[[], object]) -> None:
        self._seats = seats
        self._take_one = take_one
        self._pause = threading.Event()  # never set
        self._thread = threading.Thread(target=self._run, name="extra jobs", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def _run(self) -> None:
        while self._seats.wait_until_taken():
            self._take_one()
            self._pause.wait(LOOK_S)
