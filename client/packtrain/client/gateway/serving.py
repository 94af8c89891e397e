"""From a call to a response: the one way for all APIs that a gateway speaks.

    call ──hand in──▶ jobs ──▶ results ──▶ one body
                           └─▶ deltas  ──▶ a stream, as a `Writer` writes it

A stream's status is sent before its text, so what can go wrong early is waited for, at most `hold_s`: a prompt that is
too long fails with its own status, when an instance is there to say so. A client that leaves cancels its jobs, unless
it has given them a key to come back with.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from packtrain.broker import hops
from packtrain.broker.errors import PacktrainError
from packtrain.broker.explain import Explanation
from packtrain.client.gateway.access import Caller
from packtrain.client.gateway.answering import Answering
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import Refused, json_response
from packtrain.client.gateway.names import names_of, no_other_names
from packtrain.client.gateway.patience import begin_in_time
from packtrain.client.gateway.streams import EventStream, Gone, unless_gone
from packtrain.client.openai import Call, Fault, Stamp, fault_of
from packtrain.client.openai.faults import RETRY_AFTER_S
from packtrain.client.result import AnswerDelta, Result


class Writer(Protocol):
    """One API's form of a stream. Each method gives what to send, ready-made."""

    media_type: str
    tells_queue: bool  # it wants `waiting` with an explanation

    def opening(self) -> list[bytes]: ...
    def waiting(self, place: Explanation | None) -> list[bytes]:
        """Nothing came for a while."""
        ...

    def piece(self, choice: int, delta: AnswerDelta) -> list[bytes]: ...
    def closing(self, choice: int, result: Result) -> list[bytes]: ...
    def ending(self, results: Sequence[Result]) -> list[bytes]: ...
    def failing(self, fault: Fault) -> list[bytes]: ...


class Answerer(Protocol):
    """One API's form of an answer."""

    def body(self, stamp: Stamp, results: Sequence[Result]) -> dict[str, Any]: ...
    def writer(self, stamp: Stamp) -> Writer: ...


class OnlyBody:
    """The form of answers that do not stream."""

    def __init__(self, body: Callable[[Stamp, Sequence[Result]], dict[str, Any]]) -> None:
        self._body = body

    def body(self, stamp: Stamp, results: Sequence[Result]) -> dict[str, Any]:
        return self._body(stamp, results)

    def writer(self, stamp: Stamp) -> Writer:
        raise AssertionError("such a request asks for no stream")


async def serve(door: Door, request: Request, caller: Caller, call: Call, answerer: Answerer) -> Response:
    """Run a call and answer its request.

    Args:
        caller: Who sent it.

    Raises:
        PacktrainError: It was refused, or failed before its stream began.
    """
    call = call.come_through(hops.parse_trail(request.headers.get(hops.HEADER)))
    try:
        answering = await _begin(door, request, caller, call)
        stamp = Stamp(answering.jobs[0].id, int(door.now()), call.model)
        headers = {"X-Packtrain-Job": answering.jobs[0].id}
        if call.stream:
            writer = answerer.writer(stamp)
            events = _events(door, caller, answering, writer)
            return await _begun(request, events, writer.media_type, headers)
        try:
            results = await unless_gone(request.receive, answering.results())
        finally:
            await answering.close()
        return json_response(answerer.body(stamp, results), headers=headers)
    except Gone:
        raise Refused(Fault(499, "invalid_request_error", "client_gone", "the client has left")) from None
    except asyncio.CancelledError:
        if not door.is_ending.is_set():
            raise
        message = "this gateway ends, and the request did not end in time; send it again, to another one or in a moment"
        raise Refused(Fault(503, "unavailable_error", "gateway_ends", message, retry_after_s=RETRY_AFTER_S)) from None


async def _begin(door: Door, request: Request, caller: Caller, call: Call) -> Answering:
    """Hand in the jobs of a caller who may, and see to it that they are counted."""
    admission = await door.access.admit(caller, call.specs)
    try:
        with no_other_names(caller):
            answering = await unless_gone(request.receive, Answering.begin(door.fleet, call))
    except BaseException:
        await admission.end(0)
        raise

    request.state.model = call.model

    async def over(results: Sequence[Result] | None) -> None:
        if results is not None:
            await admission.end(call.form.used(results)["total_tokens"])
        else:
            await admission.end(max(admission.guess, await _seen(door, answering)) if admission.counts else None)

    answering.when_over = over
    if max_wait_s := call.max_wait_s or door.settings.max_wait_s:
        try:
            await unless_gone(request.receive, begin_in_time(door, caller, answering, max_wait_s))
        except BaseException as error:
            await answering.close(take_back=isinstance(error, Refused))
            raise
    return answering


async def _seen(door: Door, answering: Answering) -> int:
    """Tokens of answers that a client may have read before it left: who always leaves early pays for them, too."""
    look = partial(door.fleet.transport.blocking.statuses, [job.id for job in answering.jobs])
    with suppress(PacktrainError):
        return sum(status.tokens for status in (await asyncio.to_thread(look)).values() if status)
    return 0


async def _begun(
    request: Request, events: AsyncGenerator[bytes], media_type: str, headers: Mapping[str, str]
) -> Response:
    """The stream as a response, once its first event is there. Only a generator that has begun can be closed."""

    async def first_then_rest(first: bytes) -> AsyncGenerator[bytes]:
        try:
            yield first
            async for event in events:
                yield event
        finally:
            await events.aclose()

    try:
        first = await unless_gone(request.receive, anext(events))
    except BaseException:
        await events.aclose()
        raise
    rest = first_then_rest(first)
    return EventStream(rest, media_type, headers)


async def _events(door: Door, caller: Caller, answering: Answering, writer: Writer) -> AsyncGenerator[bytes]:
    results: dict[int, Result] = {}

    async def place() -> Explanation | None:
        with suppress(PacktrainError):
            return (await names_of(door, caller)).explanation(await answering.jobs[0].explain())
        return None

    try:
        item = await answering.next(door.settings.hold_s)
        yield b"".join(writer.opening())
        while True:
            match item:
                case None:
                    said = writer.waiting(await place() if writer.tells_queue and not results else None)
                case (choice, Result() as result):
                    results[choice] = result
                    said = writer.closing(choice, result)
                case (choice, delta):
                    said = writer.piece(choice, delta)
            if said:
                yield b"".join(said)
            if answering.is_over:
                break
            try:
                item = await answering.next(door.settings.keepalive_s)
            except PacktrainError as error:
                yield b"".join(writer.failing(fault_of(error)))
                return
        yield b"".join(writer.ending([results[number] for number in sorted(results)]))
    finally:
        await answering.close()
