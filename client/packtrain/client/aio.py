"""`AsyncPacktrain`: the twin of `Packtrain` for asyncio. Looking at the fleet (`ps`, `load`) is left to the latter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Literal, Self, overload

from packtrain.broker.errors import (
    BrokerUnavailable,
    InvalidRequest,
    ResultTimeout,
    SetupError,
    TryLater,
    UnknownJob,
)
from packtrain.broker.ids import JobId
from packtrain.broker.jobs import Event
from packtrain.broker.messages import JobStatus, ModelInfo, NodeBeat
from packtrain.broker.settings import load_settings
from packtrain.broker.states import JobState
from packtrain.client.client import BLOCK_S
from packtrain.client.reading import EMBED_IN_FLIGHT, RETRY_S, Cursors, Patience, Reader, Window
from packtrain.client.redis_transport import AsyncRedisTransport
from packtrain.client.request import Prompt, build_embed_spec, build_spec, job_id_of
from packtrain.client.result import AnswerDelta, Result, delta_of, result_of
from packtrain.client.transport import AsyncTransport


class AsyncJob:
    """A submitted job, see `Job`."""

    def __init__(self, transport: AsyncTransport, job_id: JobId) -> None:
        self.id = job_id
        self._transport = transport

    def __repr__(self) -> str:
        return f"<AsyncJob {self.id}>"

    async def status(self) -> JobStatus:
        """As `Job.status`."""
        status = await self._transport.status(self.id)
        if status is None:
            raise UnknownJob(job_id=self.id)
        return status

    async def result(self, timeout: float | None = None) -> Result:
        """As `Job.result`."""
        status = await self.status()
        if not status.state.is_terminal:
            deadline = None if timeout is None else time.monotonic() + timeout
            try:
                async for _ in read_events(self._transport, Cursors([self.id]), deadline):
                    pass
                status = await self.status()
            except BrokerUnavailable:
                if deadline is None or time.monotonic() < deadline:
                    raise  # else the wait has ended before the broker was back
        if status.outcome is None:
            raise ResultTimeout(job_id=self.id, timeout_s=timeout or 0, state=status.state)
        return result_of(self.id, status.outcome)

    async def stream(self) -> AsyncIterator[str]:
        """As `Job.stream`."""
        async for delta in self.deltas():
            if delta.text:
                yield delta.text

    async def deltas(self) -> AsyncIterator[AnswerDelta]:
        """As `Job.deltas`."""
        reader = Reader(self.id)
        status = await self.status()
        if status.state.is_terminal and not await self._transport.events({self.id: "0"}, block_s=0):
            yield delta_of(await self.result())
            return
        async for event in read_events(self._transport, Cursors([self.id]), None):
            if delta := reader.take(event):
                yield delta
            if event.end and event.end is not JobState.SUCCEEDED:
                await self.result()

    async def cancel(self) -> JobState:
        """As `Job.cancel`."""
        state = await self._transport.cancel(self.id)
        if state is None:
            raise UnknownJob(job_id=self.id)
        return state


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


class AsyncPacktrain:
    """A fleet, for one event loop. Arguments and errors as of `Packtrain`."""

    def __init__(self, url: str | None = None, *, transport: AsyncTransport | None = None) -> None:
        self._transport = transport or _open(url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncPacktrain {self._transport.url}>"

    async def close(self) -> None:
        """As `Packtrain.close`."""
        await self._transport.close()

    async def submit(
        self,
        model: str,
        prompt: Prompt,
        *,
        raw: bool = False,
        stream: bool = True,
        idempotency_key: str | None = None,
        expires_in: float | None = None,
        **options: Any,
    ) -> AsyncJob:
        """As `Packtrain.submit`."""
        spec = build_spec(model, prompt, raw=raw, stream=stream, expires_in=expires_in, options=options)
        submitted = await self._transport.submit(job_id_of(spec, idempotency_key), spec)
        return AsyncJob(self._transport, submitted.job_id)

    async def generate(
        self,
        model: str,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        **options: Any,
    ) -> Result:
        """As `Packtrain.generate`."""
        return await (await self.submit(model, prompt, stream=False, **options)).result(timeout)

    async def stream(self, model: str, prompt: Prompt, **options: Any) -> AsyncTextStream:
        """As `Packtrain.stream`."""
        return AsyncTextStream(await self.submit(model, prompt, **options))

    async def count_tokens(
        self, model: str, prompt: Prompt, *, raw: bool = False, timeout: float | None = None, **options: Any
    ) -> int:
        """As `Packtrain.count_tokens`."""
        spec = build_spec(model, prompt, raw=raw, stream=False, expires_in=None, options=options, is_count=True)
        submitted = await self._transport.submit(job_id_of(spec, None), spec)
        return (await AsyncJob(self._transport, submitted.job_id).result(timeout)).usage.prompt_tokens

    async def map(
        self,
        model: str,
        prompts: Iterable[Prompt],
        *,
        in_flight: int = 64,
        on_error: Literal["raise", "return"] = "raise",
        **options: Any,
    ) -> AsyncIterator[Result]:
        """As `Packtrain.map`."""
        window = Window(in_flight, raises=on_error == "raise", options=options)
        submits = (partial(self.submit, model, prompt, stream=False, **options) for prompt in prompts)
        async for result in self._run_in_order(submits, window):
            yield result

    async def submit_embedding(
        self,
        model: str,
        text: str,
        *,
        dimensions: int | None = None,
        idempotency_key: str | None = None,
        expires_in: float | None = None,
        **options: Any,
    ) -> AsyncJob:
        """As `Packtrain.submit_embedding`."""
        spec = build_embed_spec(model, text, dimensions=dimensions, expires_in=expires_in, options=options)
        submitted = await self._transport.submit(job_id_of(spec, idempotency_key), spec)
        return AsyncJob(self._transport, submitted.job_id)

    @overload
    async def embed(
        self, model: str, texts: str, *, dimensions: int | None = None, timeout: float | None = None, **options: Any
    ) -> list[float]: ...

    @overload
    async def embed(
        self,
        model: str,
        texts: Iterable[str],
        *,
        dimensions: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> list[list[float]]: ...

    async def embed(
        self,
        model: str,
        texts: str | Iterable[str],
        *,
        dimensions: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> list[float] | list[list[float]]:
        """As `Packtrain.embed`."""
        window = Window(EMBED_IN_FLIGHT, raises=True, options=options)
        each = iter([texts] if isinstance(texts, str) else texts)
        submits = (partial(self.submit_embedding, model, text, dimensions=dimensions, **options) for text in each)
        vectors = [list(r.embedding or ()) async for r in self._run_in_order(submits, window, timeout)]
        return vectors[0] if isinstance(texts, str) else vectors

    async def _run_in_order(
        self, submits: Iterator[Callable[[], Awaitable[AsyncJob]]], window: Window, timeout: float | None = None
    ) -> AsyncIterator[Result]:
        """Results in the order of `submits`, each called once the window has room for its job."""
        begin = time.monotonic()
        deadline = None if timeout is None else begin + timeout
        try:
            while True:
                for submit in islice(submits, window.room):
                    try:
                        window.add((await submit()).id)
                    except InvalidRequest as error:
                        window.refuse(error)
                if window.is_empty:
                    return
                while not window.is_next_ready:
                    async for event in read_events(self._transport, window.cursors, deadline, until_end=True):
                        if event.end:
                            window.ended(event.job_id, await self._transport.status(event.job_id))
                    window.check_time(timeout, time.monotonic() - begin)
                yield window.take()
        finally:
            for job_id in window.cursors.after:
                with suppress(TryLater):  # what is in flight is not worth hiding the cause for
                    await self._transport.cancel(job_id)

    def job(self, job_id: str) -> AsyncJob:
        """As `Packtrain.job`."""
        return AsyncJob(self._transport, JobId(job_id))

    async def models(self) -> list[ModelInfo]:
        """As `Packtrain.models`."""
        return await self._transport.models()

    async def nodes(self) -> list[NodeBeat]:
        """As `Packtrain.nodes`."""
        return await self._transport.nodes()


async def _read_or_cancel(job: AsyncJob) -> AsyncGenerator[str]:
    has_ended = False
    try:
        async for text in job.stream():
            yield text
        has_ended = True
    finally:
        if not has_ended:
            await job.cancel()


def _open(url: str | None) -> AsyncTransport:
    settings = load_settings(**({"url": url} if url else {}))
    url = settings.broker_url()
    if url.startswith(("http://", "https://")):
        raise SetupError("this version speaks to the broker itself; use a redis:// or rediss:// URL")
    return AsyncRedisTransport(url, max_waiting=settings.max_waiting, keep_ms=int(settings.keep_s * 1000))


async def read_events(
    transport: AsyncTransport, cursors: Cursors, deadline: float | None, *, until_end: bool = False
) -> AsyncIterator[Event]:
    """As `client.read_events`."""
    patience = Patience()
    while cursors.after:
        block_s = BLOCK_S if deadline is None else min(BLOCK_S, deadline - time.monotonic())
        if block_s <= 0:
            return
        try:
            events = await transport.events(cursors.after, block_s=block_s)
            patience.is_back()
        except BrokerUnavailable as error:
            patience.is_away(error, time.monotonic())
            await asyncio.sleep(RETRY_S)
            continue
        if not events:
            for job_id in list(cursors.after):
                # A record that is gone or has ended without an end in its stream: nothing will come any more.
                status = await transport.status(job_id)
                if status is None:
                    raise UnknownJob(job_id=job_id)
                if status.state.is_terminal and not await transport.events({job_id: cursors.after[job_id]}, block_s=0):
                    events.append(Event(job_id, cursors.after[job_id], end=status.state))
        for event in events:
            cursors.advance(event)
            yield event
        if until_end and any(event.end for event in events):
            return
