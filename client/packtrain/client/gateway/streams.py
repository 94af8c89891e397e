"""A response that is a stream of server-sent events, and how one notices that its reader has gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

#: Keeps proxies such as nginx from collecting the stream before they pass it on.
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
#: Made once: json.dumps would make one for each event.
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Gone(Exception):
    """The client has closed its connection."""


class EventStream(Response):
    """Events as they come, until they end or the client is gone; then `events` is closed at once.

    Starlette's own StreamingResponse notices a lost client only when it next sends, which for a job that waits in a
    queue may be an hour later.
    """

    def __init__(self, events: AsyncGenerator[bytes], media_type: str, headers: Mapping[str, str]) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers({**_HEADERS, **headers})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            with suppress(Gone):
                await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError as error:
            raise Gone from error


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns.

    Raises:
        Gone: The client closed its connection before; `work` was cancelled.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.wait([task, watch])


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def data(value: Any, event: str = "") -> bytes:
    """One event. JSON has no line ends, so one `data:` line holds it."""
    text = value if isinstance(value, str) else _to_json(value)
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {text}\n\n".encode(errors="backslashreplace")


def comment(text: str) -> bytes:
    """A line that readers skip, to keep a connection open."""
    return f": {text}\n\n".encode()
