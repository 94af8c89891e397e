"""The dealer: tells the instances of a node how many threads to compute with, as soon as one starts or stops working.

It has a thread of its own, since the agent's loop may wait seconds for a broker that is away, and an instance that goes
to work must not wait that long for its cores. What it deals is decided in `cores.py`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from packtrain.broker.ids import InstanceId
from packtrain.workers.cores import HOLD_S, Claimant, deal

logger = logging.getLogger(__name__)


class Player(Protocol):
    """The part of an `InstanceProcess` that the dealer knows."""

    @property
    def is_busy(self) -> bool:
        """Whether it last said that it has work."""
        ...

    def set_threads(self, count: int) -> bool:
        """Pass the number on; False when it could not be said now. Never blocks."""
        ...


@dataclass(slots=True)
class _Seat:
    player: Player
    threads: int  # that it was told
    is_busy: bool
    since: float


class CoreDealer:
    """Keeps the threads of all instances of a node in step. Every method may be called from any thread.

    Args:
        budget: Cores that instances may use together.
        clock: Monotonic seconds.
    """

    def __init__(self, budget: int, *, clock: Callable[[], float]) -> None:
        self._budget = budget
        self._clock = clock
        self._lock = threading.Lock()
        self._seats: dict[InstanceId, _Seat] = {}
        self._changed = threading.Event()

    def start(self) -> None:
        """Deal from a thread of its own, for as long as the process lives."""
        threading.Thread(target=self._run, name="dealer", daemon=True).start()

    def set_budget(self, budget: int) -> None:
        """From now on instances may use so many cores together."""
        with self._lock:
            self._budget = budget
        self.news()

    def next_share(self) -> int:
        """Threads that an instance which came now would have."""
        newcomer = InstanceId("")
        with self._lock:
            return deal(self._budget, {**self._claimants(self._clock()), newcomer: Claimant(False, HOLD_S, 0)})[
                newcomer
            ]

    def add(self, instance: InstanceId, player: Player, threads: int) -> None:
        """Deal to this one, too; `threads` is what it begins with."""
        with self._lock:
            self._seats[instance] = _Seat(player, threads, False, self._clock() - HOLD_S)
        self.news()

    def remove(self, instance: InstanceId) -> None:
        """It is gone; its cores are free. Nothing, where it had no seat."""
        with self._lock:
            self._seats.pop(instance, None)
        self.news()

    def news(self) -> None:
        """An instance may have started or stopped working."""
        self._changed.set()

    def look(self) -> None:
        """See who works and tell those whose part has changed."""
        with self._lock:
            now = self._clock()
            for seat in self._seats.values():
                if seat.player.is_busy is not seat.is_busy:
                    seat.is_busy, seat.since = not seat.is_busy, now
            shares = deal(self._budget, self._claimants(now))
            # Who loses cores hears it first, so that there are no more threads than cores for longer than need be.
            for instance, threads in sorted(shares.items(), key=lambda item: item[1] - self._seats[item[0]].threads):
                seat = self._seats[instance]
                if threads != seat.threads and seat.player.set_threads(threads):
                    logger.debug("%s computes with %d threads", instance, threads, extra={"event": "cores.dealt"})
                    seat.threads = threads

    def _claimants(self, now: float) -> dict[InstanceId, Claimant]:
        return {name: Claimant(s.is_busy, now - s.since, s.threads) for name, s in self._seats.items()}

    def _run(self) -> None:
        while True:
            # A part that is only held must be given up in time, without any news.
            self._changed.wait(HOLD_S)
            self._changed.clear()
            try:
                self.look()
            except Exception:  # a defect here must not leave all instances with the cores of the moment for ever
                logger.exception("Cores could not be dealt", extra={"event": "cores.failed"})
