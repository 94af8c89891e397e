"""The jobs of one request under way: handed in together, read together, and cancelled when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress

from packtrain.broker.errors import PacktrainError
from packtrain.client.aio import AsyncPacktrain
from packtrain.client.aio_job import AsyncJob
from packtrain.client.openai import Call
from packtrain.client.result import AnswerDelta, Result

#: Jobs of one request that are handed in at once: each holds a thread for 1 to 2 ms.
_AT_ONCE = 8

Item = tuple[int, AnswerDelta | Result]


class Answering:
    """The jobs of one request, submitted. Made by `begin`, and to be left by `close`."""

    def __init__(self, jobs: Sequence[AsyncJob], items: AsyncIterator[Item], *, may_cancel: bool) -> None:
        self.jobs = jobs
        self._items = items
        self._may_cancel = may_cancel
        self._next: asyncio.Task[Item] | None = None
        self._results: dict[int, Result] = {}
        #: Awaited once, at the end; with the results, or None when not all jobs have ended well.
        self.when_over: Callable[[Sequence[Result] | None], Awaitable[None]] | None = None

    @classmethod
    async def begin(cls, fleet: AsyncPacktrain, call: Call) -> Answering:
        """Hand in all jobs of a call, or none of them.

        Raises:
            PacktrainError: One was refused.
        """
        turn = asyncio.Semaphore(_AT_ONCE)

        async def hand_in(number: int, key: str | None) -> AsyncJob:
            async with turn:
                return await fleet.hand_in(call.specs[number], idempotency_key=key)

        tasks = [asyncio.create_task(hand_in(number, key)) for number, key in enumerate(call.keys())]
        try:
            jobs = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            if not call.idempotency_key:
                await _cancel([job for job in done if isinstance(job, AsyncJob)])
            raise
        # A job with a key belongs to whoever comes back with the key.
        return cls(jobs, fleet.answers(jobs), may_cancel=not call.idempotency_key)

    @property
    def is_over(self) -> bool:
        """True when every job has ended well."""
        return len(self._results) == len(self.jobs)

    async def next(self, timeout_s: float | None) -> Item | None:
        """What comes next of any job; None: nothing came for so long.

        Not to be called when `is_over`.

        Raises:
            PacktrainError: A job has failed.
        """
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self._items))
        done, _ = await asyncio.wait([self._next], timeout=timeout_s)
        if not done:
            return None
        task, self._next = self._next, None
        choice, what = task.result()
        if isinstance(what, Result):
            self._results[choice] = what
        return choice, what

    async def begins(self, timeout_s: float) -> bool:
        """Wait for what comes first, which stays to be had by `next`. False: nothing came for so long."""
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self._items))
        done, _ = await asyncio.wait([self._next], timeout=timeout_s)
        return bool(done)

    async def results(self) -> list[Result]:
        """The results of all jobs, in their order.

        Raises:
            PacktrainError: A job has failed.
        """
        while not self.is_over:
            await self.next(None)
        return self._in_order()

    async def close(self, *, take_back: bool = False) -> None:
        """Nobody reads any more: what has not ended is cancelled, but for jobs with a key.

        Args:
            take_back: The request is refused, so nothing of it shall be left, with a key, either. Jobs that it has only
                met there are somebody else's.
        """
        try:
            if self._next:
                self._next.cancel()
                await asyncio.wait([self._next])
            if self._may_cancel and not self.is_over:
                await _cancel(self.jobs)
            elif take_back:
                await _cancel([job for job in self.jobs if job.is_new], forget=True)
        finally:
            if self.when_over:
                await self.when_over(self._in_order() if self.is_over else None)

    def _in_order(self) -> list[Result]:
        return [self._results[number] for number in range(len(self.jobs))]


async def _cancel(jobs: Sequence[AsyncJob], *, forget: bool = False) -> None:
    for job in jobs:
        with suppress(PacktrainError):
            await job.cancel(forget=forget)
