"""Asking a remote server until it has answered a job, or until asking makes no sense any more.

*Nothing of the answer has come* is what decides what a failure means. Before, a request may be sent again, or another
model may answer (`LeasedJob.may_fall_back`). After, readers may have read it, and a second answer would be another one:
so the job fails, and keeps what came.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import aclosing

from packtrain.broker.errors import RemoteFailed
from packtrain.workers.engine.sequence import End
from packtrain.workers.remote.answers import Answer, BrokenAnswer, TooLarge, vector_of
from packtrain.workers.remote.api import DONE, Refused, RemoteApi
from packtrain.workers.remote.failures import Refusal, error_of, next_wait_s
from packtrain.workers.remote.options import RemoteOptions
from packtrain.workers.remote.running import Running
from packtrain.workers.remote.turns import Turns

logger = logging.getLogger(__name__)


class Asker:
    """Asks one server. All is used on its engine's loop.

    Args:
        model: Id here.
        clock: Monotonic seconds.
        on_fault: Called once, when the server takes the key no more; why.
    """

    def __init__(
        self,
        options: RemoteOptions,
        *,
        model: str,
        api: RemoteApi,
        turns: Turns,
        clock: Callable[[], float],
        on_fault: Callable[[str], None],
    ) -> None:
        self._options = options
        self._model = model
        self._api = api
        self._turns = turns
        self._clock = clock
        self._on_fault = on_fault
        self._is_faulty = False
        self.requests = 0  # sent
        self.pieces = 0  # that came

    async def insist(self, running: Running) -> tuple[End, bytes]:
        """Send the request until it is answered, or it makes no sense any more."""
        begun, tries = self._clock(), 0
        while True:
            if tries:
                while wait_s := self._turns.take():
                    await asyncio.sleep(wait_s)
            tries += 1
            self.requests += 1
            try:
                return await self._ask(running)
            except Refused as refused:
                failed = refused.why
            except TooLarge as problem:
                raise self._too_large(problem) from None
            except BrokenAnswer as problem:
                if running.num_pieces:
                    raise self.broken(str(problem)) from None
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

    async def _ask(self, running: Running) -> tuple[End, bytes]:
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

    def _take(self, running: Running, answer: Answer, data: str) -> None:
        if data.strip() == DONE:
            answer.finish = answer.finish or "stop"
            return
        if piece := answer.take(data):
            self.pieces += 1
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

    def broken(self, reason: str) -> RemoteFailed:
        host = self._options.host
        return RemoteFailed(
            f"the answer of {host} broke off after it had begun ({reason}), and what came of it is kept; submit the "
            "job again for a whole one",
            host=host, status=200, said=reason,
        )  # fmt: skip

    def _too_large(self, problem: TooLarge) -> RemoteFailed:
        host, most = self._options.host, self._options.max_answer_mib
        return RemoteFailed(
            f"the answer of {host} is larger than max_answer_mib in [models.{self._model}.remote] allows ({most} MiB), "
            "and what came of it is kept; ask for less, set max_tokens, or allow more",
            host=host, status=200, said=str(problem),
        )  # fmt: skip
