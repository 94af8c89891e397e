"""The renewer: one thread per instance that keeps its leases alive, as long as its engine is.

Leases are renewed every second, far oftener than the 15 s they last: the same round trip brings back which jobs a
client asked to cancel, so even a job in a long prefill, which emits nothing, hears of it within a second. An engine
that shows no sign of life for `stall_s` is not vouched for: its leases lapse and its jobs run elsewhere.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from redis.exceptions import RedisError

from packtrain.broker.ids import JobId
from packtrain.broker.jobs import JobStore
from packtrain.workers.engine.seam import JobEngine
from packtrain.workers.engine.sequence import End
from packtrain.workers.leased_job import LeasedJob

logger = logging.getLogger(__name__)

RENEW_S = 1.0


class Renewer:
    """Holds the leases of an instance. `hold` and `let_go` may be called from any thread."""

    def __init__(
        self, store: JobStore, engine: JobEngine, *, lease_ms: int, stall_s: float, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._engine = engine
        self._lease_ms = lease_ms
        self._stall_s = stall_s
        self._clock = clock
        self._held: dict[JobId, LeasedJob] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; leases that are still held will lapse."""
        self._stop.set()
        self._thread.join()

    def hold(self, job: LeasedJob) -> LeasedJob | None:
        """Renew this lease from now on; the earlier lease of the same job that was held till now, if any."""
        with self._lock:
            older = self._held.get(job.job_id)
            self._held[job.job_id] = job
            return older

    def let_go(self, job: LeasedJob) -> None:
        """Renew it no more."""
        with self._lock:
            if self._held.get(job.job_id) is job:
                del self._held[job.job_id]

    @property
    def num_held(self) -> int:
        """Leases now held."""
        return len(self._held)

    def renew_once(self) -> None:
        """One round: renew, then tell the engine what was lost or cancelled."""
        with self._lock:
            held = [(job_id, job.epoch) for job_id, job in self._held.items()]
        if not held:
            return
        silent_s = self._clock() - self._engine.stats.beat
        if self._engine.is_busy and silent_s > self._stall_s:
            logger.error(
                "The engine shows no sign of life for %.0f s; its leases are left to lapse", silent_s,
                extra={"event": "engine.stalled"},
            )  # fmt: skip
            return
        epochs = dict(held)
        for job_id, verdict in self._store.renew(held, lease_ms=self._lease_ms).items():
            with self._lock:
                job = self._held.get(job_id)
                if job and job.epoch == epochs[job_id]:  # else the news is of an earlier lease
                    self._engine.cancel(job_id, End.LOST if verdict == "lost" else End.CANCELLED)

    def _run(self) -> None:
        # A short lease (tests use 2 s) is renewed four times before it lapses.
        interval = min(RENEW_S, self._lease_ms / 4000)
        while not self._stop.wait(interval):
            try:
                self.renew_once()
            except RedisError as error:
                logger.warning("Could not renew: %s", error, extra={"event": "renew.failed"})
