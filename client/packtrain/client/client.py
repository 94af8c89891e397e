"""`Packtrain`: a fleet as a Python object.

    >>> fleet = Packtrain()                                       # doctest: +SKIP
    >>> job = fleet.submit("smollm2", "Hello!", max_tokens=32)    # doctest: +SKIP
    >>> for text in job.stream(): print(text, end="")             # doctest: +SKIP
    >>> job.result().usage.completion_tokens                      # doctest: +SKIP

Sampling options are keyword arguments with the names of `SamplingParams`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Literal, Self, overload

from packtrain.broker.errors import (
    BrokerUnavailable,
    InvalidRequest,
    PacktrainError,
    ResultTimeout,
    SetupError,
    TryLater,
    UnknownJob,
)
from packtrain.broker.ids import JobId, ModelId, Route, is_deterministic, model_of, new_job_id, route_of
from packtrain.broker.jobs import Event, routes_of
from packtrain.broker.messages import InstanceBeat, JobStatus, ModelInfo, NodeBeat
from packtrain.broker.settings import load_settings
from packtrain.broker.states import JobState
from packtrain.client.reading import EMBED_IN_FLIGHT, RETRY_S, Cursors, Patience, Window
from packtrain.client.redis_transport import RedisTransport
from packtrain.client.request import Prompt, build_embed_spec, build_spec, choice_seeds, job_id_of
from packtrain.client.result import AnswerDelta, Result, delta_of, result_of
from packtrain.client.transport import Transport
from packtrain.client.verify import Verification, first_difference, request_again, unit_of

BLOCK_S = 2.0


class Job:
    """A submitted job. Cheap to make and to throw away: the job itself lives in the fleet."""

    def __init__(self, transport: Transport, job_id: JobId) -> None:
        self.id = job_id
        self._transport = transport

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def status(self) -> JobStatus:
        """The job's record now.

        Raises:
            UnknownJob
        """
        status = self._transport.status(self.id)
        if status is None:
            raise UnknownJob(job_id=self.id)
        return status

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end.

        Args:
            timeout: Seconds; None waits as long as it takes.

        Raises:
            ResultTimeout: It goes on; only this wait has ended.
            PacktrainError: How it ended without a result, such as `PromptTooLong`, `JobCancelled`, `JobDead`.
        """
        status = self.status()
        if not status.state.is_terminal:
            deadline = None if timeout is None else time.monotonic() + timeout
            try:
                for _ in read_events(self._transport, Cursors([self.id]), deadline):
                    pass
                status = self.status()
            except BrokerUnavailable:
                if deadline is None or time.monotonic() < deadline:
                    raise  # else the wait has ended before the broker was back
        if status.outcome is None:
            raise ResultTimeout(job_id=self.id, timeout_s=timeout or 0, state=status.state)
        return result_of(self.id, status.outcome)

    def stream(self) -> Iterator[str]:
        """The text as it comes, from the beginning, whenever this is called; survives a dropped connection.

        Raises:
            PacktrainError: How the job ended, when it did not succeed; after all its text.
        """
        return (delta.text for delta in self.deltas() if delta.text)

    def deltas(self) -> Iterator[AnswerDelta]:
        """As `stream`, with reasoning and tool calls: each item has a bit more of one or several of them."""
        status = self.status()
        if status.state.is_terminal and not self._transport.events({self.id: "0"}, block_s=0):
            yield delta_of(self.result())  # its stream has expired, an hour after the end; its record lives for a day
            return
        for event in read_events(self._transport, Cursors([self.id]), None):
            if event.text or event.reasoning or event.calls:
                yield AnswerDelta(event.text, event.reasoning, event.calls)
            if event.end and event.end is not JobState.SUCCEEDED:
                self.result()

    def cancel(self) -> JobState:
        """Cancel it; the state afterwards. A running job ends within a second, an ended one stays as it is.

        Raises:
            UnknownJob
        """
        state = self._transport.cancel(self.id)
        if state is None:
            raise UnknownJob(job_id=self.id)
        return state


class TextStream:
    """The text of one job as it comes. Leaving it early (`break`, `close`, an exception) cancels the job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        # Not a method: a generator that holds its stream would be a cycle, and outlive a `break` until the next GC.
        self._texts = _read_or_cancel(job)
        next(self._texts)

    def __iter__(self) -> Iterator[str]:
        return self._texts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading; the job is cancelled unless it has ended."""
        self._texts.close()


class Packtrain:
    """A fleet. Safe to share between threads.

    Args:
        url: Of the fleet, redis:// or rediss://; default: `PACKTRAIN_URL`, else the one that `packtrain up` runs here.
        transport: Instead of a URL.

    Raises:
        SetupError: No fleet is known, or the URL is none.
    """

    def __init__(self, url: str | None = None, *, transport: Transport | None = None) -> None:
        self._transport = transport or open_transport(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Packtrain {self._transport.url}>"

    def close(self) -> None:
        """Free the connection. Jobs go on."""
        self._transport.close()

    def submit(
        self,
        model: str,
        prompt: Prompt,
        *,
        raw: bool = False,
        stream: bool = True,
        idempotency_key: str | None = None,
        expires_in: float | None = None,
        **options: Any,
    ) -> Job:
        """Hand in a job and return at once.

        Args:
            prompt: A text (one user turn), or the turns of a chat.
            raw: Continue the text as it stands, without the chat template.
            stream: False when only the result is wanted: tokens then come once a second, which spares the cores.
            idempotency_key: The same key again gives the same job, however often and from wherever it is sent.
            expires_in: Seconds after which the job ends as EXPIRED.
            options: Sampling parameters by name; `lane` ("interactive" or "bulk"), `user`; for a text, `suffix`: what
                stands behind the gap that is to be filled; with `raw`, `echo`: the answer begins with the prompt; for a
                chat, `tools` and `tool_choice` in OpenAI's shape,
                `parallel_tool_calls`, `reasoning` ("auto", "off", "on", "low", "medium", "high", as far as the model
                can), `template_args` (further variables for its chat template); `deterministic`; and what form the
                answer has: `schema` (JSON of a JSON schema or of a pydantic model), `json=True` (some JSON object),
                `grammar` (GBNF), or OpenAI's `response_format`.

        Raises:
            InvalidParameter, PromptEmpty, UnknownModel, QueueFull, IdempotencyConflict, BrokerUnavailable
        """
        spec = build_spec(model, prompt, raw=raw, stream=stream, expires_in=expires_in, options=options)
        return Job(self._transport, self._transport.submit(job_id_of(spec, idempotency_key), spec).job_id)

    def generate(self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> Result:
        """Submit, and wait for the result. Arguments as of `submit`; errors as of `submit` and `Job.result`."""
        return self.submit(model, prompt, stream=False, **options).result(timeout)

    def choices(
        self,
        model: str,
        prompt: Prompt,
        n: int,
        *,
        seed: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> list[Result]:
        """Several answers to one prompt, drawn with seeds that follow from `seed`.

        Each is a job of its own, so they share a batch; the prompt is computed once per instance that takes part.
        """
        jobs: list[Job] = []
        until = None if timeout is None else time.monotonic() + timeout
        try:
            jobs.extend(self.submit(model, prompt, seed=s, stream=False, **options) for s in choice_seeds(n, seed))
            return [job.result(None if until is None else max(0.0, until - time.monotonic())) for job in jobs]
        except BaseException:
            for job in jobs:  # nobody will read the others
                with suppress(PacktrainError):
                    job.cancel()
            raise

    def stream(self, model: str, prompt: Prompt, **options: Any) -> TextStream:
        """Submit, and give the text as it comes. Closing the stream cancels the job. Arguments as of `submit`."""
        return TextStream(self.submit(model, prompt, **options))

    def count_tokens(
        self, model: str, prompt: Prompt, *, raw: bool = False, timeout: float | None = None, **options: Any
    ) -> int:
        """How many tokens a prompt has for a model, as the model's template and tokenizer make them.

        Computed by an instance of the model, which is loaded if there is none. Arguments as of `submit`, errors as of
        `submit` and `Job.result`; a prompt too long for the model is counted all the same.
        """
        spec = build_spec(model, prompt, raw=raw, stream=False, expires_in=None, options=options, is_count=True)
        job = Job(self._transport, self._transport.submit(job_id_of(spec, None), spec).job_id)
        return job.result(timeout).usage.prompt_tokens

    def map(
        self,
        model: str,
        prompts: Iterable[Prompt],
        *,
        in_flight: int = 64,
        on_error: Literal["raise", "return"] = "raise",
        **options: Any,
    ) -> Iterator[Result]:
        """Results for many prompts, in their order, with at most `in_flight` jobs submitted and not yet given out.

        Args:
            on_error: "return" gives a result with its `error` set instead of raising it at its turn.

        Leaving the iteration early cancels what is in flight.
        """
        window = Window(in_flight, raises=on_error == "raise", options=options)
        submits = (partial(self.submit, model, prompt, stream=False, **options) for prompt in prompts)
        yield from self._run_in_order(submits, window)

    def submit_embedding(
        self,
        model: str,
        text: str,
        *,
        dimensions: int | None = None,
        idempotency_key: str | None = None,
        expires_in: float | None = None,
        **options: Any,
    ) -> Job:
        """Hand in one text to embed and return at once. The vector is `Job.result().embedding`.

        Args:
            dimensions: Keep only the first so many, stretched to length 1 again, for models trained for that.
            options: `lane`, `user`, `deterministic`.

        Other arguments and errors as of `submit`.
        """
        spec = build_embed_spec(model, text, dimensions=dimensions, expires_in=expires_in, options=options)
        return Job(self._transport, self._transport.submit(job_id_of(spec, idempotency_key), spec).job_id)

    @overload
    def embed(
        self, model: str, texts: str, *, dimensions: int | None = None, timeout: float | None = None, **options: Any
    ) -> list[float]: ...

    @overload
    def embed(
        self,
        model: str,
        texts: Iterable[str],
        *,
        dimensions: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> list[list[float]]: ...

    def embed(
        self,
        model: str,
        texts: str | Iterable[str],
        *,
        dimensions: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> list[float] | list[list[float]]:
        """Vectors of texts, in their order, each of length 1; of a single text its vector alone.

        Each text is a job of its own; a model embeds those that wait in batches.

        Args:
            timeout: Seconds for all of them; what is in flight is cancelled then. None waits as long as it takes.

        Other arguments as of `submit_embedding`, errors as of it and of `Job.result`.
        """
        window = Window(EMBED_IN_FLIGHT, raises=True, options=options)
        each = iter([texts] if isinstance(texts, str) else texts)
        submits = (partial(self.submit_embedding, model, text, dimensions=dimensions, **options) for text in each)
        vectors = [list(r.embedding or ()) for r in self._run_in_order(submits, window, timeout)]
        return vectors[0] if isinstance(texts, str) else vectors

    def _run_in_order(
        self, submits: Iterator[Callable[[], Job]], window: Window, timeout: float | None = None
    ) -> Iterator[Result]:
        """Results in the order of `submits`, each called once the window has room for its job."""
        begin = time.monotonic()
        deadline = None if timeout is None else begin + timeout
        try:
            while True:
                for submit in islice(submits, window.room):
                    try:
                        window.add(submit().id)
                    except InvalidRequest as error:
                        window.refuse(error)
                if window.is_empty:
                    return
                while not window.is_next_ready:
                    for event in read_events(self._transport, window.cursors, deadline, until_end=True):
                        if event.end:
                            window.ended(event.job_id, self._transport.status(event.job_id))
                    window.check_time(timeout, time.monotonic() - begin)
                yield window.take()
        finally:
            for job_id in window.cursors.after:
                with suppress(TryLater):  # what is in flight is not worth hiding the cause for
                    self._transport.cancel(job_id)

    def job(self, job_id: str) -> Job:
        """A job by its id, whoever submitted it."""
        return Job(self._transport, JobId(job_id))

    def verify(self, job_id: str, *, on: str | None = None, timeout: float | None = None) -> Verification:
        """Run a job again from its record and compare the answers.

        Args:
            on: The instance or node that shall run it; None: any that may.
            timeout: Seconds to wait for the new answer.

        Raises:
            InvalidRequest: The job has no whole answer, or nobody is called `on`.
        """
        status = self.job(job_id).status()
        old_spec = self._transport.spec(JobId(job_id))
        spec = request_again(job_id, old_spec, status.outcome, model=status.model, on=on)
        if on is not None:
            _check_is_there(self._transport, on, route_of(ModelId(status.model), deterministic=spec.deterministic))
        again = Job(self._transport, self._transport.submit(new_job_id(), spec).job_id)
        again.result(timeout)
        old, new = status.outcome, again.status().outcome
        assert old is not None
        assert new is not None
        difference = first_difference(old, new, is_deterministic=spec.deterministic)
        unit = unit_of(spec)
        return Verification(
            job_id, again.id, spec.deterministic, old.receipt, new.receipt, new.node, new.instance, difference, unit
        )

    def jobs(self, limit: int = 20) -> list[JobStatus]:
        """The newest jobs first."""
        return self._transport.recent(limit)

    def models(self) -> list[ModelInfo]:
        """Models and aliases that the fleet offers."""
        return self._transport.models()

    def nodes(self) -> list[NodeBeat]:
        """Live nodes."""
        return self._transport.nodes()

    def instances(self) -> list[InstanceBeat]:
        """Instances that live or ended lately."""
        return self._transport.instances()

    def waiting(self) -> dict[Route, int]:
        """Jobs that wait, by model."""
        return self._transport.waiting()

    def load(self, model: str) -> None:
        """Ask the fleet to load a model and keep it loaded."""
        self._transport.set_desired(ModelId(model), replicas=1, unload=False)

    def unload(self, model: str) -> None:
        """Ask the fleet to unload a model once its running jobs have ended."""
        self._transport.set_desired(ModelId(model), replicas=0, unload=True)


def _check_is_there(transport: Transport, name: str, route: Route) -> None:
    """A job meant for nobody would wait in vain."""
    instances = [i for i in transport.instances() if not i.state.is_terminal]
    serving = [i for i in instances if route in routes_of(ModelId(i.model), i.numerics)]
    known = sorted({i.instance for i in serving} | {i.node for i in serving})
    if name not in known:
        how = " in deterministic numerics" if is_deterministic(route) else ""
        loaded = ", ".join(known) or "none; load it first"
        raise InvalidRequest(f"no instance or node {name!r} holds {model_of(route)!r}{how} now; there are: {loaded}")


def _read_or_cancel(job: Job) -> Generator[str]:
    has_ended = False
    try:
        yield ""  # taken at once: only a generator that has begun runs its `finally` when it is closed
        yield from job.stream()
        has_ended = True
    finally:
        if not has_ended:
            job.cancel()


def open_transport(url: str | None) -> Transport:
    """The transport that a URL's scheme asks for."""
    settings = load_settings(**({"url": url} if url else {}))
    url = settings.broker_url()
    if url.startswith(("http://", "https://")):
        raise SetupError("this version speaks to the broker itself; use a redis:// or rediss:// URL")
    return RedisTransport(url, max_waiting=settings.max_waiting, keep_ms=int(settings.keep_s * 1000))


def read_events(
    transport: Transport, cursors: Cursors, deadline: float | None, *, until_end: bool = False
) -> Iterator[Event]:
    """Events as they come, until every job of `cursors` has ended or `deadline` (monotonic seconds) has passed.

    Args:
        until_end: Return after the first batch in which any job ended.
    """
    patience = Patience()
    while cursors.after:
        block_s = BLOCK_S if deadline is None else min(BLOCK_S, deadline - time.monotonic())
        if block_s <= 0:
            return
        try:
            events = transport.events(cursors.after, block_s=block_s)
            patience.is_back()
        except BrokerUnavailable as error:
            patience.is_away(error, time.monotonic())
            time.sleep(RETRY_S)
            continue
        if not events:
            for job_id in list(cursors.after):
                # A record that is gone or has ended without an end in its stream: nothing will come any more.
                status = transport.status(job_id)
                if status is None:
                    raise UnknownJob(job_id=job_id)
                if status.state.is_terminal and not transport.events({job_id: cursors.after[job_id]}, block_s=0):
                    events.append(Event(job_id, cursors.after[job_id], end=status.state))
        for event in events:
            cursors.advance(event)
            yield event
        if until_end and any(event.end for event in events):
            return
