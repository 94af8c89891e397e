"""`AsyncPacktrain`: the twin of `Packtrain` for asyncio, method for method.

What takes milliseconds is the method of `Packtrain` itself, run in a thread (threads.py); what waits for jobs waits
here, asynchronously, however many tasks do so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import aclosing
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, overload

from packtrain.broker.ids import JobId
from packtrain.broker.pieces import Piece, text_of
from packtrain.client.aio_job import AsyncJob, AsyncTextStream
from packtrain.client.aio_waiting import Waiter
from packtrain.client.client import Packtrain
from packtrain.client.job import Job
from packtrain.client.opening import open_async_transport
from packtrain.client.reading import EMBED_IN_FLIGHT, Several, Window
from packtrain.client.request import Prompt, Tokens, build_listing_spec, build_spec, choice_seeds
from packtrain.client.result import AnswerDelta, Result
from packtrain.client.threads import Twin, in_thread, new_pool
from packtrain.client.transport import AsyncTransport
from packtrain.client.verify import Verification, start_again

P = ParamSpec("P")


def _submits(
    method: Callable[Concatenate[Packtrain, P], Job],
) -> Callable[Concatenate[AsyncPacktrain, P], Coroutine[Any, Any, AsyncJob]]:
    """The same method for the twin. Cancelled before it returns, it leaves no job that nobody knows the id of."""

    @wraps(method)
    async def run(self: AsyncPacktrain, /, *args: P.args, **kwargs: P.kwargs) -> AsyncJob:
        undo = None if kwargs.get("idempotency_key") else Job.cancel
        return self._job(await self._in_thread(partial(method, self._sync, *args, **kwargs), undo=undo))

    return run


class AsyncPacktrain(Twin[Packtrain]):
    """A fleet, for one event loop. Arguments and errors as of `Packtrain`."""

    def __init__(
        self, url: str | None = None, *, api_key: str | None = None, transport: AsyncTransport | None = None
    ) -> None:
        self._transport = transport or open_async_transport(url, api_key)
        self._pool = new_pool()
        super().__init__(Packtrain(transport=self._transport.blocking), self._pool)
        self._waiter = Waiter(self._transport, self._pool)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncPacktrain {self._transport.blocking.url}>"

    @property
    def transport(self) -> AsyncTransport:
        """The way to the fleet, for those who pass on messages as they are."""
        return self._transport

    async def close(self) -> None:
        """As `Packtrain.close`. Waits for calls under way, such as the cancelling of a job whose reader left."""
        await self._waiter.close()
        await asyncio.to_thread(self._pool.shutdown)
        await self._transport.close()

    submit = _submits(Packtrain.submit)
    submit_embedding = _submits(Packtrain.submit_embedding)
    hand_in = _submits(Packtrain.hand_in)
    jobs = in_thread(Packtrain.jobs)
    explain = in_thread(Packtrain.explain)
    models = in_thread(Packtrain.models)
    nodes = in_thread(Packtrain.nodes)
    instances = in_thread(Packtrain.instances)
    waiting = in_thread(Packtrain.waiting)
    waits = in_thread(Packtrain.waits)
    load = in_thread(Packtrain.load)
    unload = in_thread(Packtrain.unload)
    pull = in_thread(Packtrain.pull)
    pull_status = in_thread(Packtrain.pull_status)
    set_node = in_thread(Packtrain.set_node)
    drain_node = in_thread(Packtrain.drain_node)
    resume_node = in_thread(Packtrain.resume_node)

    async def generate(self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> Result:
        """As `Packtrain.generate`."""
        return await (await self.submit(model, prompt, stream=False, **options)).result(timeout)

    async def choices(
        self,
        model: str,
        prompt: Prompt,
        n: int,
        *,
        seed: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> list[Result]:
        """As `Packtrain.choices`."""
        seeds = choice_seeds(n, seed)
        window = Window(n, raises=True, options=options)
        submits = (partial(self.submit, model, prompt, seed=each, stream=False, **options) for each in seeds)
        return [result async for result in self._waiter.run_in_order(submits, window, timeout)]

    async def stream(self, model: str, prompt: Prompt, **options: Any) -> AsyncTextStream:
        """As `Packtrain.stream`."""
        return AsyncTextStream(await self.submit(model, prompt, **options))

    async def count_tokens(
        self, model: str, prompt: Prompt, *, raw: bool = False, timeout: float | None = None, **options: Any
    ) -> int:
        """As `Packtrain.count_tokens`."""
        spec = build_spec(model, prompt, raw=raw, stream=False, expires_in=None, options=options, count={})
        return (await (await self.hand_in(spec)).result(timeout)).usage.prompt_tokens

    async def tokenize(
        self,
        model: str,
        prompt: Prompt,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        timeout: float | None = None,
        **options: Any,
    ) -> tuple[Piece, ...]:
        """As `Packtrain.tokenize`."""
        spec = build_listing_spec(model, prompt, add_special=add_special, parse_special=parse_special, options=options)
        return (await (await self.hand_in(spec)).result(timeout)).pieces

    async def detokenize(
        self, model: str, tokens: Iterable[int], *, timeout: float | None = None, **options: Any
    ) -> str:
        """As `Packtrain.detokenize`."""
        return text_of(await self.tokenize(model, Tokens(tokens), timeout=timeout, **options))

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
        async with aclosing(self._waiter.run_in_order(submits, window)) as results:
            async for result in results:
                yield result

    @overload
    async def embed(
        self,
        model: str,
        texts: str | Tokens,
        *,
        dimensions: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> list[float]: ...

    @overload
    async def embed(
        self,
        model: str,
        texts: Iterable[str | Tokens],
        *,
        dimensions: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> list[list[float]]: ...

    async def embed(
        self,
        model: str,
        texts: str | Tokens | Iterable[str | Tokens],
        *,
        dimensions: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> list[float] | list[list[float]]:
        """As `Packtrain.embed`."""
        window = Window(EMBED_IN_FLIGHT, raises=True, options=options)
        each: Iterator[str | Tokens] = iter([texts] if isinstance(texts, str | Tokens) else texts)
        submits = (partial(self.submit_embedding, model, text, dimensions=dimensions, **options) for text in each)
        vectors = [list(r.embedding or ()) async for r in self._waiter.run_in_order(submits, window, timeout)]
        return vectors[0] if isinstance(texts, str | Tokens) else vectors

    async def answers(self, jobs: Sequence[AsyncJob]) -> AsyncGenerator[tuple[int, AnswerDelta | Result]]:
        """As `Packtrain.answers`."""
        several = Several([job.id for job in jobs])
        async with aclosing(self._waiter.read_events(several.cursors, None)) as events:
            async for event in events:
                for found in several.take(event):
                    yield found
                if event.end:
                    for found in several.ended(event.job_id, await self.job(event.job_id).status()):
                        yield found

    async def verify(self, job_id: str, *, on: str | None = None, timeout: float | None = None) -> Verification:
        """As `Packtrain.verify`."""
        blocking = self._transport.blocking
        start = partial(start_again, blocking, JobId(job_id), on)
        rerun = await self._in_thread(start, undo=lambda started: blocking.cancel(JobId(started.new_job_id)))
        again = self.job(rerun.new_job_id)
        await again.result(timeout)
        return rerun.compare(await again.status())

    def job(self, job_id: str) -> AsyncJob:
        """As `Packtrain.job`."""
        return self._job(self._sync.job(job_id))

    def _job(self, job: Job) -> AsyncJob:
        return AsyncJob(job, self._waiter)
