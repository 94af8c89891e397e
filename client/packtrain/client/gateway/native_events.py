"""What happens to jobs, as it happens: one answer of a long poll, or a stream of server-sent events.

A stream for browsers carries an `id:` after each event: how far each of its jobs has been read, in the order in which
the URL names them. `Last-Event-ID` brings it back, so no event is lost or comes twice, whichever gateway answers then.
A reader that has seen all ends is told 204, upon which an EventSource stops to come back.

    GET  /events?job=A&job=B        id: 1764432529123-0,0    A was read so far, B has said nothing
                                    id: 1764432529300-1-end,1764432529200-0    A has ended
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.requests import Request
from starlette.responses import Response

from packtrain.broker.chunks import Event
from packtrain.broker.errors import InvalidParameter, PacktrainError, UnknownJob
from packtrain.broker.ids import JobId
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.native_form import as_json, native_body, read_body
from packtrain.client.gateway.native_owners import Owners, visible
from packtrain.client.gateway.schema import takes
from packtrain.client.gateway.streams import EventStream, comment, data
from packtrain.client.native_wire import BEAT, BEAT_S, EVENT_ID, Events, EventsBody, JobIdText, is_job_id, write_event
from packtrain.client.openai.faults import fault_of
from packtrain.client.reading import Cursors
from packtrain.client.waiting import unsaid_ends

#: Jobs of one stream whose ids stand in its URL; their places stand behind every event.
MAX_NAMED = 32
_END = "-end"
_PLACE = re.compile(rf"{EVENT_ID}(-end)?")
_SSE = "text/event-stream"

LastEventId = Annotated[str, Header(alias="Last-Event-ID", description="`id:` of the last event that arrived")]


class Places:
    """How far each job of a stream has been read, as an `id:` tells it.

    Args:
        said: Such an id; empty: from the beginning.

    Raises:
        InvalidParameter: It is none of a stream of so many jobs.
    """

    def __init__(self, job_ids: Sequence[JobId], said: str) -> None:
        places = said.split(",") if said else ["0"] * len(job_ids)
        if len(places) != len(job_ids) or not all(map(_PLACE.fullmatch, places)):
            raise InvalidParameter(
                f"Last-Event-ID = {said[:60]!r} is no id of an event of this stream; send back its last one, with the "
                "same jobs in the same order",
                field="Last-Event-ID",
            )
        self._places = dict(zip(job_ids, places, strict=True))

    def cursors(self) -> Cursors:
        """Of the jobs that have not ended yet."""
        cursors = Cursors()
        cursors.after = {job_id: place for job_id, place in self._places.items() if not place.endswith(_END)}
        return cursors

    def after(self, event: Event) -> str:
        """The id behind an event."""
        self._places[event.job_id] = event.id + (_END if event.end else "")
        return ",".join(self._places.values())


def add_events(router: APIRouter, door: Door, owners: Owners) -> None:
    """Serve events."""
    transport = door.fleet.transport

    async def stream(request: Request, job_ids: Sequence[JobId], said: str) -> Response:
        caller = await door.access.caller(request)
        for job_id in job_ids:
            if not is_job_id(job_id):
                raise UnknownJob(job_id=job_id)
        for job_id, status in (await asyncio.to_thread(transport.blocking.statuses, job_ids)).items():
            visible(caller, status, job_id)
        places = Places(job_ids, said)
        cursors = places.cursors()
        if not cursors.after:
            return Response(status_code=204)
        return EventStream(follow(door, cursors, places), _SSE, {})

    @router.get("/jobs/{job_id}/events", summary="Events of a job as they come")
    async def of_one(request: Request, job_id: str, last_event_id: LastEventId = "") -> Response:
        return await stream(request, [JobId(job_id)], last_event_id)

    @router.get("/events", summary="Events of several jobs as they come")
    async def of_some(
        request: Request,
        job: Annotated[list[JobIdText], Query(min_length=1, max_length=MAX_NAMED)],
        last_event_id: LastEventId = "",
    ) -> Response:
        return await stream(request, [JobId(job_id) for job_id in dict.fromkeys(job)], last_event_id)

    @router.post(
        "/events",
        summary="Events of many jobs: what there is by now, or as a stream",
        description="With `Accept: text/event-stream` they come as they happen; resume by what `after` says.",
        openapi_extra=takes(EventsBody),
    )
    async def of_many(request: Request) -> Response:
        caller = await door.access.caller(request)
        body = await read_body(request, door, EventsBody)
        after = {JobId(job_id): cursor for job_id, cursor in body.after.items()}
        await owners.check(caller, after)
        if _SSE in request.headers.get("accept", ""):
            cursors = Cursors()
            cursors.after = after
            return EventStream(follow(door, cursors), _SSE, {})
        events = await transport.events(after, block_s=body.wait_s)
        ended = [event.job_id for event in events if event.end] if body.records else []
        found = await asyncio.to_thread(transport.blocking.statuses, ended) if ended else {}
        records = [status for status in found.values() if status]
        return as_json(Events(events=events, records=records).model_dump_json(exclude_defaults=True))


async def follow(door: Door, cursors: Cursors, places: Places | None = None) -> AsyncGenerator[bytes, None]:
    """Events until every job has ended or the gateway shall end, with a comment when nothing came for a while.

    A failure is an event, too, and then the stream ends; reading may go on at this gateway or another.

    Args:
        places: Each event tells by its id how far all of them are.
    """
    transport = door.fleet.transport
    yield comment("begun")
    try:
        while cursors.after and not door.is_ending.is_set():
            events = await transport.events(cursors.after, block_s=BEAT_S)
            events = events or await asyncio.to_thread(partial(unsaid_ends, transport.blocking, cursors))
            for event in events:
                cursors.advance(event)
            yield b"".join(_lines(events, places)) or comment(BEAT)
    except PacktrainError as error:
        yield data(native_body(fault_of(error)), event="error")


def _lines(events: Iterable[Event], places: Places | None) -> Iterable[bytes]:
    for event in events:
        place = f"id: {places.after(event)}\n".encode() if places else b""
        yield b"".join((place, b"data: ", write_event(event), b"\n\n"))
