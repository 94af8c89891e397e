"""The inbox: notes that other threads leave for the engine's thread, which reads them between steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from packtrain.broker.ids import JobId
from packtrain.workers.engine.embedding import EmbedRequest
from packtrain.workers.engine.sequence import End, SequenceRequest

#: When sequences ended together and none is left, the first that follows waits so long for the next one, seconds. All
#: that come in time are computed in one step; else the first has one for itself, and decoding it limits the others to
#: the prefill budget. Slots of a fleet claim their next jobs within some 30 ms of each other.
GATHER_S = 0.015
#: No gathering takes longer than this, seconds.
MAX_GATHER_S = 0.06


class Inbox:
    """New requests, cancels and the order to stop. Everything may be called from any thread.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._new: list[SequenceRequest | EmbedRequest] = []
        self._leaving: dict[JobId, End] = {}
        self.is_stopping = False

    @property
    def has_requests(self) -> bool:
        """True while a request has not been read."""
        return bool(self._new)

    @property
    def num_interactive(self) -> int:
        """Interactive sequences that have not been read."""
        return sum(isinstance(request, SequenceRequest) and not request.is_bulk for request in tuple(self._new))

    def put(self, request: SequenceRequest | EmbedRequest) -> bool:
        """Leave a request; False: too late, the engine stops."""
        with self._changed:
            if self.is_stopping:
                return False
            # A note left for an earlier lease of this job does not mean this one.
            self._leaving.pop(request.job_id, None)
            self._new.append(request)
            self._changed.notify()
            return True

    def cancel(self, job_id: JobId, end: End) -> None:
        """Leave a note that a job shall end with this reason."""
        with self._changed:
            self._leaving[job_id] = end
            self._changed.notify()

    def stop(self) -> None:
        """Leave the order to stop."""
        with self._changed:
            self.is_stopping = True
            self._changed.notify()

    def wait(self) -> None:
        """Wait for a note, if there is none."""
        with self._changed:
            if not (self._new or self._leaving or self.is_stopping):
                self._changed.wait()

    def gather(self, expected: int) -> None:
        """Wait a moment for so many requests, as long as one follows the other."""
        with self._changed:
            begin = now = self._clock()
            while len(self._new) < expected and not self.is_stopping and now - begin < MAX_GATHER_S:
                if not self._changed.wait(min(GATHER_S, begin + MAX_GATHER_S - now)):
                    return
                now = self._clock()

    def read(self) -> tuple[list[SequenceRequest | EmbedRequest], dict[JobId, End]]:
        """All requests and cancels, which are in the inbox no longer."""
        with self._changed:
            new, self._new = self._new, []
            leaving, self._leaving = self._leaving, {}
            return new, leaving

    def calls_off(self, job_ids: Collection[JobId]) -> bool:
        """Whether a step of these jobs should be broken off."""
        # Reading without the lock: a stale answer costs one more call, a lock would cost one per graph node.
        return self.is_stopping or any(job_id in job_ids for job_id in tuple(self._leaving))
