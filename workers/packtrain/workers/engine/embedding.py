"""Embedding beside decoding: texts that wait for their vectors, gathered into batches.

The engine calls `step` once in each of its own steps, so streams that decode wait for one batch at most. While any
does, a batch has no more rows than their step gives to prefill; else as many as the backend takes. A text that is
longer is a batch of its own, since it cannot be cut across steps.

A batch is taken from the front of the queue, in order of arrival. One that fails is computed again text by text: the
one that fails alone ends with the error, all others get their vectors.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from packtrain.broker.errors import JobFailed
from packtrain.broker.ids import JobId
from packtrain.workers.backends.base import Backend, DecodeFailed, Interrupted
from packtrain.workers.engine.sequence import End, Ended

logger = logging.getLogger(__name__)

Vector = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What the engine needs to embed one text. `on_end` is called from the engine thread and must not block."""

    job_id: JobId
    tokens: tuple[int, ...]  # within the bounds of `Backend.embedding`
    dimensions: int | None  # keep the first so many; None: all
    on_end: Callable[[Ended], None]
    deadline: float | None = None  # on the engine's clock, seconds


def gather(lengths: Iterable[int], *, max_rows: int, max_texts: int) -> int:
    """How many of the texts in front, given their lengths in tokens, go into one batch: at least the first one."""
    count = num_rows = 0
    for length in lengths:
        num_rows += length
        if count and (num_rows > max_rows or count == max_texts):
            break
        count += 1
    return count


class EmbedQueue:
    """Texts that wait to be embedded. Owned by the engine thread; others may ask for its length and counters.

    Args:
        backend: Loaded model.
        clock: Monotonic seconds.
        max_failures: Texts in a row that may fail alone before a model that does nothing else counts as broken.
    """

    def __init__(self, backend: Backend, *, clock: Callable[[], float], max_failures: int) -> None:
        self._backend = backend
        self._clock = clock
        self._max_failures = max_failures
        self._failures_in_a_row = 0
        self._waiting: deque[EmbedRequest] = deque()
        self.num_batches = 0
        self.batch_peak = 0  # most texts in one

    @property
    def is_broken(self) -> bool:
        """True when nothing can be embedded any more, and the model has no other use."""
        return self._backend.shape.embeds_only and self._failures_in_a_row > self._max_failures

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[EmbedRequest]:
        return iter(self._waiting)

    def extend(self, requests: Iterable[EmbedRequest]) -> None:
        """More texts."""
        self._waiting.extend(requests)

    def clear(self) -> None:
        """Forget all."""
        self._waiting.clear()

    def leave(self, leaving: Mapping[JobId, End]) -> None:
        """End those that are cancelled or lost."""
        for request in [r for r in self._waiting if r.job_id in leaving]:
            self._end(request, Ended(leaving[request.job_id]))

    def step(self, max_rows: int | None, stop_for: Callable[[Seq[EmbedRequest]], Callable[[], bool]]) -> None:
        """Compute one batch of those that wait, if any is not too late.

        Args:
            max_rows: Most tokens, but for a text that has more; None: as many as the backend takes.
            stop_for: Gives the `should_stop` of a batch.
        """
        self._end_late()
        if not self._waiting:
            return
        shape = self._backend.embedding
        rows = shape.n_rows if max_rows is None else min(max_rows, shape.n_rows)
        count = gather((len(r.tokens) for r in self._waiting), max_rows=rows, max_texts=shape.max_texts)
        # They stay in the queue until they end: an engine that hangs in them must not look idle.
        batch = list(islice(self._waiting, count))
        try:
            self._attempt(batch, stop_for)
        except Interrupted:
            return
        except DecodeFailed as error:
            logger.warning("A batch of %d texts failed: %s", count, error, extra={"event": "embed.failed"})
            self._one_by_one(batch, stop_for)

    def _attempt(self, batch: Seq[EmbedRequest], stop_for: Callable[[Seq[EmbedRequest]], Callable[[], bool]]) -> None:
        vectors = self._backend.embed([r.tokens for r in batch], stop_for(batch))
        self._failures_in_a_row = 0
        self.num_batches += 1
        self.batch_peak = max(self.batch_peak, len(batch))
        for request, vector in zip(batch, vectors, strict=True):
            embedding = to_bytes(vector, request.dimensions)
            self._end(request, Ended(End.STOP, batch_peak=len(batch), embedding=embedding))

    def _one_by_one(
        self, batch: Seq[EmbedRequest], stop_for: Callable[[Seq[EmbedRequest]], Callable[[], bool]]
    ) -> None:
        failed: list[tuple[EmbedRequest, DecodeFailed]] = []
        for request in batch:
            try:
                self._attempt([request], stop_for)
            except Interrupted:
                return
            except DecodeFailed as error:
                failed.append((request, error))
        if len(failed) == len(batch):  # one that succeeds shows that the model is well and the others are to blame
            self._failures_in_a_row += len(failed)
            if self.is_broken:  # then the process ends, and these run elsewhere
                return
        for request, cause in failed:
            message = f"the model could not embed this text ({cause}); try another, and report it if it repeats"
            self._end(request, Ended(End.FAILED, error=JobFailed(message, cause=str(cause))))

    def _end_late(self) -> None:
        now = self._clock()
        for request in [r for r in self._waiting if r.deadline is not None and r.deadline <= now]:
            self._end(request, Ended(End.EXPIRED))

    def _end(self, request: EmbedRequest, ended: Ended) -> None:
        self._waiting.remove(request)
        request.on_end(ended)


def to_bytes(vector: Vector, dimensions: int | None) -> bytes:
    """A vector of length 1, or the first of its dimensions stretched to length 1, as 32-bit little-endian floats."""
    if dimensions is not None and dimensions < len(vector):
        vector = to_length_one(vector[:dimensions])
    return vector.astype("<f4").tobytes()


def to_length_one(vector: np.ndarray[Any, Any]) -> Vector:
    """The vector divided by its Euclidean length, which is computed in float64; one of zeros stays as it is."""
    wide = vector.astype(np.float64)
    length = np.sqrt((wide * wide).sum())
    return (wide / length if length > 0 else wide).astype(np.float32)
