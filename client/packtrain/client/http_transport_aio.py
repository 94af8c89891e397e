"""The way to the fleet by HTTP for asyncio: what waits for events holds a connection and no thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

import httpx2

from packtrain.broker.chunks import Event
from packtrain.broker.ids import JobId
from packtrain.client.http_errors import Lost, answer, away, is_final
from packtrain.client.http_feed import Feed, Feeds, feed_cursors
from packtrain.client.http_options import FEED_TIMEOUT
from packtrain.client.http_transport import FEED_HEADERS, FEW_PAUSES_S, HttpTransport, askable, events_body


class AsyncHttpTransport:
    """An `AsyncTransport` beside this transport."""

    def __init__(self, blocking: HttpTransport) -> None:
        self.blocking = blocking
        self._http = httpx2.AsyncClient(**blocking.options.client())
        self._feeds: Feeds[httpx2.Response, AsyncIterator[bytes]] = Feeds()

    async def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        after = askable(after)
        if not after:
            return []
        if self._feeds.pay(after, block_s) and (found := await self._follow(after)) is not None:
            return found
        body = events_body(after, block_s)
        for pause_s in (*FEW_PAUSES_S, None):
            try:
                response = await self._http.request("POST", "/events", content=body)
                return self.blocking.took(answer(self.blocking.url, response.status_code, response.content) or b"")
            except (httpx2.TransportError, Lost) as error:
                if pause_s is None or is_final(error):
                    raise away(self.blocking.url, error) from error
                await asyncio.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        for feed in self._feeds.take_all():
            await feed.response.aclose()
        await self._http.aclose()
        self.blocking.close()

    async def _follow(self, after: Mapping[JobId, str]) -> list[Event] | None:
        """As `HttpTransport._follow`."""
        for stale in self._feeds.take_stale(time.monotonic()):
            await stale.response.aclose()
        feed = self._feeds.take(after)
        try:
            feed = feed or await self._open_feed(after)
            if feed is None:
                return None
            while (events := feed.parser.take(await anext(feed.pieces))) is None:
                pass
        except BaseException as error:
            if feed:
                await feed.response.aclose()
                self._feeds.failed(feed, error)
            if isinstance(error, httpx2.TransportError | StopAsyncIteration):
                return None
            raise
        if feed.took(events):
            if other := self._feeds.put(feed, time.monotonic()):
                await other.response.aclose()
        else:
            await feed.response.aclose()
        return None if feed.parser.has_failed and not events else events

    async def _open_feed(self, after: Mapping[JobId, str]) -> Feed[httpx2.Response, AsyncIterator[bytes]] | None:
        request = self._http.build_request(
            "POST", "/events", content=events_body(after, 0), headers=FEED_HEADERS, timeout=FEED_TIMEOUT
        )
        response = await self._http.send(request, stream=True)
        if response.status_code != 200:
            await response.aclose()
            return None
        return Feed(response, response.aiter_raw(), feed_cursors(after))
