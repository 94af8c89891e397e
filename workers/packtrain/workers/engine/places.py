"""Places: which sequences are in slots, which are parked, which requests wait, and who comes next.

A free slot is for the first interactive request that waits, else for the sequence that has been parked longest, else
for the first bulk request. Where no slot is free, a bulk sequence is parked for each interactive request (parking.py).
"""

from __future__ import annotations

import logging
from collections import deque

from packtrain.broker.ids import JobId
from packtrain.workers.backends.base import Backend
from packtrain.workers.engine.caches import Caches
from packtrain.workers.engine.parking import MIN_STAY, Lot
from packtrain.workers.engine.sequence import Sequence, SequenceRequest
from packtrain.workers.engine.text import TextStream

logger = logging.getLogger(__name__)


class Places:
    """Belongs to the engine's thread.

    Args:
        backend: Opens and closes sequences, and moves their caches.
        parks: Whether bulk sequences may be parked.
    """

    def __init__(self, backend: Backend, *, parks: bool) -> None:
        self._backend = backend
        shape = backend.shape
        self._lot = Lot(n_slots=shape.n_slots if parks else 0, n_ctx=shape.n_ctx, can_share=shape.can_share)
        self._arrivals = 0
        self.caches = Caches(backend)
        self.live: dict[JobId, Sequence] = {}  # in slots
        self.parked: dict[JobId, Sequence] = {}  # the one that waits longest first
        self.waiting: deque[SequenceRequest] = deque()
        self.num_parkings = 0
        self.num_parkable = 0  # interactive sequences that more could be taken than there are slots

    def __bool__(self) -> bool:
        """True while anything has a place or waits for one."""
        return bool(self.live or self.parked or self.waiting)

    @property
    def begun(self) -> list[Sequence]:
        """Sequences in slots and parked ones."""
        return [*self.live.values(), *self.parked.values()]

    def find(self, job_id: JobId) -> Sequence | None:
        """The sequence of a job, if it has one."""
        return self.live.get(job_id) or self.parked.get(job_id)

    def fill(self) -> list[Sequence]:
        """Give slots to who comes next; the sequences that are new."""
        new = []
        while self.waiting or self.parked:
            hurried = next((request for request in self.waiting if not request.is_bulk), None)
            if not self.caches.has_room and not (hurried and self._park_one()):
                break
            if hurried or not self.parked:
                new.append(self._admit(hurried or self.waiting[0]))
            else:
                self._unpark(next(iter(self.parked.values())))
        num_hurried = sum(not request.is_bulk for request in self.waiting)
        num_able = 0 if self.caches.has_room else self._lot.count(self.live.values(), self.parked.values())
        self.num_parkable = max(0, num_able - num_hurried)
        return new

    def leave(self, sequence: Sequence, *, has_failed: bool) -> None:
        """A sequence has ended."""
        if sequence.parked:
            del self.parked[sequence.request.job_id]
            self._backend.discard(sequence.parked)
        else:
            del self.live[sequence.request.job_id]
            self._backend.close(sequence.seq_id)
            self.caches.give_back(sequence, has_failed=has_failed)

    def _admit(self, request: SequenceRequest) -> Sequence:
        self.waiting.remove(request)
        self._arrivals += 1
        text = TextStream(request.params.stop)
        for token in request.resumed:
            text.push(self._backend.piece(token))
        tokens = [*request.prompt, *request.resumed]
        seq_id = self.caches.take(tokens, request.adapters, is_alone=not self, num_waiting=self._num_waiting)
        sequence = Sequence(request, seq_id, self._arrivals, text, tokens)
        self._backend.open(
            seq_id,
            request.params,
            request.seed,
            tokens,
            len(request.resumed),
            adapters=request.adapters,
            media=request.media,
        )
        self.live[request.job_id] = sequence
        return sequence

    def _park_one(self) -> bool:
        for sequence in self._lot.candidates(self.live.values(), self.parked.values()):
            if self.caches.park(sequence):
                job_id = sequence.request.job_id
                self.parked[job_id] = self.live.pop(job_id)
                self.num_parkings += 1
                logger.debug("Parked %s", job_id, extra={"event": "sequence.parked", "job": job_id})
                return True
        return False

    def _unpark(self, sequence: Sequence) -> None:
        job_id = sequence.request.job_id
        del self.parked[job_id]
        sequence.stays_to = sequence.num_cached + MIN_STAY
        self.caches.unpark(sequence, is_alone=not self, num_waiting=self._num_waiting)
        self.live[job_id] = sequence
        logger.debug("Unparked %s", job_id, extra={"event": "sequence.unparked", "job": job_id})

    @property
    def _num_waiting(self) -> int:
        return len(self.waiting) + len(self.parked)
