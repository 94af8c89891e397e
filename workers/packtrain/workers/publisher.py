"""The publisher: one thread per instance that tells the broker what the engine produced.

The engine thread never waits for Redis. Tokens of all jobs are collected and written in one round trip every 30 ms, for
a round trip per token would cost more than the token's share of a step; a job's first token and its end go out at once.
Jobs that nobody reads as they come are written once a second: enough for a resume, and the cores stay with the engine.
When the broker is away the same writes are tried until it is back, while the engine goes on: nothing is lost, and after
the lease has lapsed the epoch makes them harmless.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from packtrain.broker.chunks import Chunk
from packtrain.broker.ids import InstanceId, JobId, NodeId, Route
from packtrain.broker.jobs import EmitReply, JobStore
from packtrain.broker.outcome import Cause, Outcome
from packtrain.workers.engine.sequence import End, Ended
from packtrain.workers.leased_job import LeasedJob
from packtrain.workers.receipts import Prover

logger = logging.getLogger(__name__)

FLUSH_S = 0.03
#: The same for jobs that nobody streams: with 16 slots that is 16 writes a second instead of one per token.
LAZY_FLUSH_S = 1.0
RETRY_S = 0.5

T = TypeVar("T")


class Publisher:
    """Writes tokens and ends of leased jobs. `news` may be called from any thread.

    Args:
        computer: What computes the answers, for their receipts.
        threads: Threads that it computes with now.
        cancel: Ends a sequence in the engine, for jobs that the broker says are lost or cancelled.
        ring: Says that a job waits on a route: one that falls back to another model.
        on_over: Told of each lease that ended as this instance says: the job, its end, and its outcome or None where
            the job goes on elsewhere.
        retry_s: Seconds between two tries while the broker is away.
    """

    def __init__(
        self,
        store: JobStore,
        instance: InstanceId,
        node: NodeId,
        computer: Prover,
        cancel: Callable[[JobId, End], None],
        *,
        threads: Callable[[], int],
        ring: Callable[[Route], None] = lambda _: None,
        on_over: Callable[[LeasedJob, Ended, Outcome | None], None] = lambda *_: None,
        retry_s: float = RETRY_S,
    ) -> None:
        self._store = store
        self._instance = instance
        self._node = node
        self._computer = computer
        self._cancel = cancel
        self._threads = threads
        self._ring = ring
        self._on_over = on_over
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._due: dict[LeasedJob, float] = {}  # when to publish; by lease, for a job may come again
        self._wakes_at = float("inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Publish what is left, then end the thread. A broker that is away is not waited for."""
        self._stop.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def news(self, job: LeasedJob, is_urgent: bool) -> None:
        """A job has something to publish. Never blocks for long."""
        wait_s = 0.0 if is_urgent else FLUSH_S if job.spec.stream else LAZY_FLUSH_S
        due = time.monotonic() + wait_s
        with self._changed:
            self._due[job] = min(due, self._due.get(job, due))
            if due < self._wakes_at:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stop.is_set():
                    self._wakes_at = min(self._due.values(), default=float("inf"))
                    wait_s = self._wakes_at - time.monotonic()
                    if wait_s <= 0:
                        break
                    self._changed.wait(None if wait_s == float("inf") else wait_s)
                self._wakes_at = float("-inf")  # awake: nobody need notify
                now = time.monotonic()
                batch = [job for job, due in self._due.items() if due <= now or self._stop.is_set()]
                for job in batch:
                    del self._due[job]
            if not batch and self._stop.is_set():
                return
            self._publish(batch)

    def _publish(self, batch: Sequence[LeasedJob]) -> None:
        chunks: list[tuple[LeasedJob, Chunk]] = []
        ends: list[tuple[LeasedJob, Ended, Chunk | None]] = []
        for job in batch:
            chunk, ended = job.take()
            if ended and ended.end not in (End.RELEASED, End.LOST):
                ends.append((job, ended, chunk))  # the last tokens travel with the end
            else:
                if chunk and not (ended and ended.end is End.LOST):
                    chunks.append((job, chunk))
                if ended:
                    ends.append((job, ended, None))
        if chunks:
            # Tried again unchanged: the server knows a chunk by its first index and drops a second copy.
            replies = self._insist(lambda: self._store.emit([(job.job_id, job.epoch, chunk) for job, chunk in chunks]))
            for (job, _), reply in zip(chunks, replies or (), strict=False):
                if reply is EmitReply.LOST:
                    self._cancel(job.job_id, End.LOST)
                elif reply is EmitReply.CANCEL:
                    self._cancel(job.job_id, End.CANCELLED)
        for job, ended, last in ends:
            self._publish_end(job, ended, last)

    def _publish_end(self, job: LeasedJob, ended: Ended, last: Chunk | None) -> None:
        outcome: Outcome | None = None
        if ended.end is End.RELEASED:
            is_ours = self._insist(lambda: self._store.release(job.job_id, job.epoch))
        elif ended.end is End.LOST:
            is_ours = False
        elif job.may_fall_back(ended) and self._fall_back(job, ended):
            is_ours = True
        else:
            outcome = job.outcome(ended, self._instance, self._node, self._computer, threads=self._threads())
            is_ours = self._insist(lambda: self._store.finish(job.job_id, job.epoch, outcome, last, pace=job.pace))
        if not is_ours:
            logger.info(
                "Job %s was lost to epoch %d; its %s was refused", job.job_id, job.epoch, ended.end,
                extra={"event": "job.lost", "job": job.job_id, "epoch": job.epoch},
            )  # fmt: skip
        else:
            self._on_over(job, ended, outcome)
        job.published.set()

    def _fall_back(self, job: LeasedJob, ended: Ended) -> bool:
        """Let another model answer; False: there is none for this job, or it is lost."""
        reason = f"could not answer ({ended.error}), and so another model shall"
        cause = Cause(instance=self._instance, reason=reason[:500])
        route = self._insist(lambda: self._store.fall_back(job.job_id, job.epoch, cause))
        if not route:
            return False
        logger.info("Job %s falls back to %s", job.job_id, route, extra={"event": "job.fell_back", "job": job.job_id})
        try:
            self._ring(route)
        except OperationalError as error:  # the coordinator rings for it
            logger.warning("Could not ring for %s: %s", route, error, extra={"event": "bell.lost"})
        return True

    def _insist(self, write: Callable[[], T]) -> T | None:
        """The result of `write`, tried until the broker answers; None when we must stop before it does."""
        while True:
            try:
                return write()
            except RedisError as error:
                if self._stop.is_set():
                    logger.warning("Broker is away while stopping: %s", error, extra={"event": "publish.abandoned"})
                    return None
                logger.warning("Broker is away, trying again: %s", error, extra={"event": "publish.retry"})
                self._stop.wait(self._retry_s)
