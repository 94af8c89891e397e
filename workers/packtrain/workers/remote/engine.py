"""The engine of a remote model: one thread with an asyncio loop, in which every job is one request and its stream.

It stands where `engine/engine.py` stands for a loaded model, behind the same seam (`engine/seam.py`): jobs are claimed,
leased, published and cancelled as ever, only that nothing is computed here. Ending a job closes its connection, which
is how a server hears that nobody wants the answer any more.

*Nothing of the answer has come* is what decides what a failure means. Before, a request may be sent again, or another
model may answer (`LeasedJob.may_fall_back`). After, readers may have read it, and a second answer would be another one:
so the job fails, and keeps what came.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from packtrain.broker.errors import JobFailed, ModelLoadFailed, PacktrainError, RemoteFailed
from packtrain.broker.ids import JobId
from packtrain.broker.outcome import Usage
from packtrain.workers.chat.deltas import Delta
from packtrain.workers.engine.engine import EngineStats
from packtrain.workers.engine.sequence import End, Ended, Tokens
from packtrain.workers.remote.answers import Answer, BrokenAnswer, Piece, usage_of, vector_of
from packtrain.workers.remote.api import DONE, Refused, RemoteApi
from packtrain.workers.remote.failures import Refusal, error_of, next_wait_s
from packtrain.workers.remote.options import RemoteOptions
from packtrain.workers.remote.requests import RemoteRequest
from packtrain.workers.remote.turns import Turns

logger = logging.getLogger(__name__)

BEAT_S = 0.5


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """What the engine needs to have a job answered. Callbacks are called from its thread and must not block."""

    job_id: JobId
    request: RemoteRequest
    trail: tuple[str, ...]  # fleets that it has come through, this one last
    streams: bool  # somebody reads the answer as it comes
    on_tokens: Callable[[Tokens], None]
    on_end: Callable[[Ended], None]
    deadline: float | None = None  # on the engine's clock, seconds


@dataclass(slots=True, eq=False)
class _Running:
    job: RemoteJob
    task: asyncio.Task[None] | None = None
    end: End = End.RELEASED  # what it ends with when it is left
    has_begun: bool = False
    is_left: bool = False
    num_pieces: int = 0
    kept: list[Piece] = field(default_factory=list)  # of a job that nobody reads as it comes
    answer: Answer | None = None

    def leave(self) -> None:
        """Let it end soon. A task that is cancelled before its first step would never say that it has."""
        self.is_left = True
        if self.task and self.has_begun:
            self.task.cancel()

    def give(self, piece: Piece) -> None:
        """Pass on what has come."""
        self.num_pieces += 1
        if self.job.streams:
            self._pass_on(piece, self.num_pieces - 1)
        else:
            self.kept.append(piece)

    def flush(self) -> None:
        """Pass on what was kept."""
        kept, self.kept = self.kept, []
        if kept:
            delta = Delta()
            for piece in kept:
                delta = delta + piece.delta
            self._pass_on(Piece(delta, tuple(entry for piece in kept for entry in piece.logprobs)), 0)

    def _pass_on(self, piece: Piece, index: int) -> None:
        self.job.on_tokens(Tokens(index, "", (), piece.logprobs, piece.delta))


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
        self._on_fault = on_fault
        self._running: dict[JobId, _Running] = {}
        self._requests = self._pieces = self._peak = 0
        self._beat = clock()
        self._is_faulty = False
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
            steps=self._requests,
            tokens_out=self._pieces,
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
        running = _Running(job)
        self._running[job.job_id] = running
        self._peak = max(self._peak, len(self._running))
        running.task = asyncio.get_running_loop().create_task(self._run(running))
        if len(self._running) == 1:
            self._on_activity()

    def _leave(self, job_id: JobId, end: End) -> None:
        if running := self._running.get(job_id):
            running.end = end
            running.leave()

    async def _run(self, running: _Running) -> None:
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
                end, embedding = await self._insist(running)
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
            end, error = End.FAILED, self._broken("the instance that read its answer was unloaded")
        if end not in (End.RELEASED, End.LOST):
            running.flush()
        del self._running[running.job.job_id]
        usage = self._usage(running) if end not in (End.RELEASED, End.LOST) else None
        output = usage.completion_tokens if usage else running.num_pieces
        running.job.on_end(Ended(end, num_output=output, batch_peak=1, error=error, embedding=embedding, usage=usage))
        if not self._running:
            self._on_activity()

    async def _insist(self, running: _Running) -> tuple[End, bytes]:
        """Send the request until it is answered, or it makes no sense any more."""
        begun, tries = self._clock(), 0
        while True:
            if tries:
                while wait_s := self._turns.take():
                    await asyncio.sleep(wait_s)
            tries += 1
            self._requests += 1
            try:
                return await self._ask(running)
            except Refused as refused:
                failed = refused.why
            except BrokenAnswer as problem:
                if running.num_pieces:
                    raise self._broken(str(problem)) from None
                failed = Refusal(str(problem), problem.status)
            again_s = next_wait_s(failed, tries, self._clock() - begun, self._options.retry_s, random.random())
            if failed.status == 429:
                self._turns.pause(min(failed.retry_after_s or again_s or 0.0, self._options.retry_s))
            if again_s is None:
                error = error_of(failed, self._options, self._model, tries=tries)
                if await self._is_key_refused(failed):
                    self._fault(str(error))
                raise error
            logger.info(
                "%s is asked again in %.1f s: %s", self._options.host, again_s, failed.status or "no answer",
                extra={"event": "remote.retry", "job": running.job.job_id, "status": failed.status},
            )  # fmt: skip
            await asyncio.sleep(again_s)

    async def _ask(self, running: _Running) -> tuple[End, bytes]:
        job, request = running.job, running.job.request
        running.answer = answer = Answer(request.form)
        async with aclosing(self._api.events(request.path, request.body, job.trail)) as events:
            async for data in events:
                if request.form == "vector":
                    embedding, answer.usage = vector_of(data)
                    return End.STOP, embedding
                self._take(running, answer, data)
        answer.is_over()
        if answer.finish == "filtered":
            raise RemoteFailed(
                f"the content filter of {self._options.host} ended the answer; change the prompt",
                host=self._options.host, status=200, said="content_filter",
            )  # fmt: skip
        return (End.LENGTH if answer.finish == "length" else End.STOP), b""

    def _take(self, running: _Running, answer: Answer, data: str) -> None:
        if data.strip() == DONE:
            answer.finish = answer.finish or "stop"
            return
        if piece := answer.take(data):
            self._pieces += 1
            running.give(piece)

    async def _is_key_refused(self, failed: Refusal) -> bool:
        """Whether a refusal is about the key. A 403 may be about one request, such as what a filter found in it."""
        if failed.status != 403:
            return failed.status == 401
        again = await self._api.refused()
        return again is not None and again.status in (401, 403)

    def _fault(self, reason: str) -> None:
        if not self._is_faulty:
            self._is_faulty = True
            self._on_fault(reason)

    def _broken(self, reason: str) -> RemoteFailed:
        host = self._options.host
        return RemoteFailed(
            f"the answer of {host} broke off after it had begun ({reason}), and what came of it is kept; submit the "
            "job again for a whole one",
            host=host, status=200, said=reason,
        )  # fmt: skip

    def _usage(self, running: _Running) -> Usage:
        told = running.answer.usage if running.answer else {}
        return usage_of(told, running.num_pieces, self._options)
