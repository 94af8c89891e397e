"""The engine of a remote model: one thread with an asyncio loop, in which every job is one request and its stream.

It stands where `engine/engine.py` stands for a loaded model, behind the same seam (`engine/seam.py`): jobs are claimed,
leased, published and cancelled as ever, only that nothing is computed here. Ending a job closes its connection, which
is how a server hears that nobody wants the answer any more.

How a server is asked, and when again: asking.py. What of an answer has come: running.py.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from packtrain.broker.errors import JobFailed, ModelLoadFailed, PacktrainError
from packtrain.broker.ids import JobId
from packtrain.broker.outcome import Usage
from packtrain.workers.engine.engine import EngineStats
from packtrain.workers.engine.sequence import End, Ended
from packtrain.workers.remote.answers import usage_of
from packtrain.workers.remote.api import RemoteApi
from packtrain.workers.remote.asking import Asker
from packtrain.workers.remote.failures import error_of
from packtrain.workers.remote.options import RemoteOptions
from packtrain.workers.remote.running import RemoteJob, Running
from packtrain.workers.remote.turns import Turns

logger = logging.getLogger(__name__)

BEAT_S = 0.5


class RemoteEngine:
    """A `JobEngine` that asks another server. `submit` may be called from any thread, as all else.

    Args:
        model: Id here.
        api: The server.
        clock: Monotonic seconds, the same that asyncio counts.
        on_activity: Called from the engine's thread when `is_busy` has changed; must not block.
        on_fault: Called from the engine's thread, once, when the server takes the key no more; why.
    """

    def __init__(
        self,
        options: RemoteOptions,
        *,
        model: str,
        api: RemoteApi,
        turns: Turns,
        clock: Callable[[], float],
        on_activity: Callable[[], None] = lambda: None,
        on_fault: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._options = options
        self._model = model
        self._api = api
        self._turns = turns
        self._clock = clock
        self._on_activity = on_activity
        self._asker = Asker(options, model=model, api=api, turns=turns, clock=clock, on_fault=on_fault)
        self._running: dict[JobId, Running] = {}
        self._peak = 0
        self._beat = clock()
        self._lock = threading.Lock()  # of the two below: a job must not be left to a loop that is closing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopping = False
        self._started = threading.Event()
        self._stopped: asyncio.Event | None = None

    def submit(self, job: RemoteJob) -> None:
        """Have a job answered. Its `on_end` is called exactly once."""
        self._started.wait()
        with self._lock:
            if self._loop is not None and not self._is_stopping:
                self._loop.call_soon_threadsafe(self._begin, job)
                return
        job.on_end(Ended(End.RELEASED))

    def check(self) -> None:
        """Ask the server whether it takes the key. Blocks; a server that is away is nobody's fault yet.

        Raises:
            ModelLoadFailed: It does not.
        """
        self._started.wait()
        assert self._loop is not None
        failed = asyncio.run_coroutine_threadsafe(self._api.refused(), self._loop).result()
        if failed and failed.status == 401:
            raise ModelLoadFailed(str(error_of(failed, self._options, self._model)))
        if failed:
            logger.warning(
                "%s may not answer (%s)", self._options.host, failed.status or failed.said,
                extra={"event": "remote.doubtful"},
            )  # fmt: skip

    def cancel(self, job_id: JobId, end: End) -> None:
        with self._lock:
            if self._loop is not None and not self._is_stopping:
                self._loop.call_soon_threadsafe(self._leave, job_id, end)

    def set_threads(self, count: int) -> None:
        """It computes nothing."""

    def stop(self) -> None:
        self._turns.close()
        with self._lock:
            if self._is_stopping:
                return
            self._is_stopping = True
            if self._loop is not None and self._stopped is not None:
                self._loop.call_soon_threadsafe(self._stopped.set)

    @property
    def stats(self) -> EngineStats:
        # Slots without a turn serve nobody: so they count as taken, for whoever looks for a free one.
        used = len(self._running) if self._turns.has_free() else self._options.concurrency
        return EngineStats(
            steps=self._asker.requests,
            tokens_out=self._asker.pieces,
            tokens_reused=0,
            batch_peak=self._peak,
            slots_used=used,
            waiting=0,
            beat=self._beat,
        )

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        async with self._api:
            self._stopped = asyncio.Event()
            with self._lock:
                self._loop = asyncio.get_running_loop()
                if self._is_stopping:
                    self._stopped.set()
            self._started.set()
            while not self._stopped.is_set():
                self._beat = self._clock()
                try:
                    async with asyncio.timeout(BEAT_S):
                        await self._stopped.wait()
                except TimeoutError:
                    continue
            # What was submitted before it was told to stop has been handed to the loop before that, too.
            left = list(self._running.values())
            for running in left:
                running.leave()
            await asyncio.gather(*(running.task for running in left if running.task), return_exceptions=True)

    def _begin(self, job: RemoteJob) -> None:
        running = Running(job)
        self._running[job.job_id] = running
        self._peak = max(self._peak, len(self._running))
        running.task = asyncio.get_running_loop().create_task(self._run(running))
        if len(self._running) == 1:
            self._on_activity()

    def _leave(self, job_id: JobId, end: End) -> None:
        if running := self._running.get(job_id):
            running.end = end
            running.leave()

    async def _run(self, running: Running) -> None:
        error: PacktrainError | None = None
        end, embedding = End.RELEASED, b""
        running.has_begun = True
        try:
            if running.is_left:
                raise asyncio.CancelledError
            left = None if running.job.deadline is None else running.job.deadline - self._clock()
            if left is not None and left <= 0:  # asyncio would send the request first
                raise TimeoutError
            async with asyncio.timeout(left):
                end, embedding = await self._asker.insist(running)
        except TimeoutError:
            end = End.EXPIRED
        except asyncio.CancelledError:
            end = running.end
        except PacktrainError as problem:
            end, error = End.FAILED, problem
        except Exception as problem:  # a defect of ours must cost this job and no other
            logger.exception("Job %s could not be sent", running.job.job_id, extra={"event": "remote.defect"})
            end, error = (
                End.FAILED,
                JobFailed(
                    f"the request could not be made ({type(problem).__name__}); please report this",
                    cause=repr(problem)[:200],
                ),
            )
        if end is End.RELEASED and running.num_pieces and running.job.streams:
            end, error = End.FAILED, self._asker.broken("the instance that read its answer was unloaded")
        if end not in (End.RELEASED, End.LOST):
            running.flush()
        del self._running[running.job.job_id]
        usage = self._usage(running) if end not in (End.RELEASED, End.LOST) else None
        output = usage.completion_tokens if usage else running.num_pieces
        running.job.on_end(Ended(end, num_output=output, batch_peak=1, error=error, embedding=embedding, usage=usage))
        if not self._running:
            self._on_activity()

    def _usage(self, running: Running) -> Usage:
        told = running.answer.usage if running.answer else {}
        return usage_of(told, running.num_pieces, self._options)
