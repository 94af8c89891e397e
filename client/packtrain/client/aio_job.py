"""`AsyncJob` and `AsyncTextStream`: one job as its asyncio client sees it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Self

from packtrain.broker.errors import BrokerUnavailable
from packtrain.broker.ids import JobId
from packtrain.broker.states import JobState
from packtrain.client.aio_waiting import Waiter
from packtrain.client.job import Job
from packtrain.client.reading import Cursors, Reader, is_over
from packtrain.client.result import AnswerDelta, Result, delta_of, finished
from packtrain.client.threads import Twin, in_thread


class AsyncJob(Twin[Job]):
    """A submitted job, see `Job`."""

    def __init__(self, job: Job, waiter: Waiter) -> None:
        super().__init__(job, waiter.pool)
        self._waiter = waiter

    @property
    def id(self) -> JobId:
        """As `Job.id`."""
        return self._sync.id

    @property
    def is_new(self) -> bool:
        """As `Job.is_new`."""
        return self._sync.is_new

    def __repr__(self) -> str:
        return f"<AsyncJob {self.id}>"

    status = in_thread(Job.status)
    explain = in_thread(Job.explain)
    cancel = in_thread(Job.cancel)

    async def result(self, timeout: float | None = None) -> Result:
        """As `Job.result`."""
        status = await self.status()
        if not status.state.is_terminal:
            deadline = None if timeout is None else time.monotonic() + timeout
            try:
                async for _ in self._waiter.read_events(Cursors([self.id]), deadline):
                    pass
                status = await self.status()
            except BrokerUnavailable:
                if not is_over(deadline, time.monotonic()):
                    raise  # else the wait has ended before the broker was back
        return finished(status, timeout)

    async def stream(self) -> AsyncIterator[str]:
        """As `Job.stream`."""
        async for delta in self.deltas():
            if delta.text:
                yield delta.text

    async def deltas(self) -> AsyncIterator[AnswerDelta]:
        """As `Job.deltas`."""
        reader = Reader(self.id)
        status = await self.status()
        if status.state.is_terminal and not await self._waiter.transport.events({self.id: "0"}, block_s=0):
            yield delta_of(await self.result())
            return
        async for event in self._waiter.read_events(Cursors([self.id]), None):
            if delta := reader.take(event):
                yield delta
            if event.end and event.end is not JobState.SUCCEEDED:
                await self.result()


class AsyncTextStream:
    """The text of one job as it comes. Leave it by `async with` or `aclose`, and the job is cancelled.

    (asyncio cannot run a finaliser at a bare `break`; the job would be cancelled when the loop collects the stream.)
    """

    def __init__(self, job: AsyncJob) -> None:
        self.job = job
        self._texts = _read_or_cancel(job)

    def __aiter__(self) -> AsyncIterator[str]:
        return self._texts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop reading; the job is cancelled unless it has ended."""
        await self._texts.aclose()
        if not (await self.job.status()).state.is_terminal:  # it was closed before it was ever read
            await self.job.cancel()


async def _read_or_cancel(job: AsyncJob) -> AsyncGenerator[str]:
    has_ended = False
    try:
        async for text in job.stream():
            yield text
        has_ended = True
    finally:
        if not has_ended:
            await job.cancel()
