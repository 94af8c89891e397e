"""How tasks wait for jobs: waiting.py for asyncio. A wait holds no thread; over Redis all share a few connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import aclosing
from functools import partial
from itertools import islice

from packtrain.broker.chunks import Event
from packtrain.broker.errors import BrokerUnavailable, InvalidRequest
from packtrain.client.reading import RETRY_S, Cursors, Patience, Window, block_s_until
from packtrain.client.result import Result
from packtrain.client.threads import Twin
from packtrain.client.transport import AsyncTransport, Transport
from packtrain.client.waiting import Submitted, cancel_all, unsaid_ends


class Waiter(Twin[Transport]):
    """Waits for jobs of one client."""

    def __init__(self, transport: AsyncTransport, pool: Executor) -> None:
        super().__init__(transport.blocking, pool)
        self.transport = transport
        self.pool = pool
        self._windows: list[Window] = []  # of maps that go on

    async def close(self) -> None:
        """Cancel what maps that were left early have in flight: asyncio may finish their generators much later."""
        windows, self._windows = self._windows, []
        for window in windows:
            await self._cancel(window)

    async def _cancel(self, window: Window) -> None:
        if window.cursors.after:
            await self._in_thread(partial(cancel_all, self._sync, list(window.cursors.after)))

    async def read_events(self, cursors: Cursors, deadline: float | None) -> AsyncGenerator[Event]:
        """As `waiting.read_events`."""
        async with aclosing(self.read_batches(cursors, deadline)) as batches:
            async for events in batches:
                for event in events:
                    cursors.advance(event)
                    yield event

    async def read_batches(self, cursors: Cursors, deadline: float | None) -> AsyncGenerator[list[Event]]:
        """As `waiting.read_batches`."""
        patience = Patience()
        while cursors.after:
            block_s = block_s_until(deadline, time.monotonic())
            if block_s <= 0:
                return
            try:
                events = await self.transport.events(cursors.after, block_s=block_s)
                events = events or await self._in_thread(partial(unsaid_ends, self._sync, cursors))
                patience.is_back()
            except BrokerUnavailable as error:
                patience.is_away(error, time.monotonic())
                await asyncio.sleep(RETRY_S)
                continue
            yield events

    async def run_in_order(
        self, submits: Iterator[Callable[[], Awaitable[Submitted]]], window: Window, timeout: float | None = None
    ) -> AsyncGenerator[Result, None]:
        """As `waiting.run_in_order`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._windows.append(window)
        try:
            while True:
                for submit in islice(submits, window.room):
                    try:
                        window.add((await submit()).id)
                    except InvalidRequest as error:
                        window.refuse(error)
                if window.is_empty:
                    return
                if not window.has_next():
                    async for events in self.read_batches(window.cursors, deadline):
                        if ended := window.saw(events):
                            statuses = await self._in_thread(partial(self._sync.statuses, ended))
                            for job_id, status in statuses.items():
                                window.ended(job_id, status)
                        if window.has_next():
                            break
                    else:
                        raise window.out_of_time(timeout)
                yield window.take()
        finally:
            if window in self._windows:  # else the client has been closed
                self._windows.remove(window)
                await self._cancel(window)
