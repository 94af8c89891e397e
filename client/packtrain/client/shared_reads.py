"""Many readers of streams, few reads: whoever waits at the moment shares one XREAD.

    reader ──events()──▶ waiting ──begin──▶ one read ──▶ who has events goes on
                            ▲                  │
                            └── the others ◀───┘

A read of its own for each reader costs a connection each, and a command for every event. A read that is under way takes
nobody more, so who comes meanwhile begins another, and nobody waits because others are silent. When there are several,
they are short, and soon there is one again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from packtrain.broker.chunks import Event
from packtrain.broker.ids import JobId

#: Streams of one read. Redis goes through all of them each time, some 0.2 µs each.
MAX_STREAMS = 2000
#: How long a read waits for its first event when others are under way, seconds.
SHORT_S = 0.1
#: From so many readers on, those that come within `GATHER_S` begin together: they come as the steps of a batch do.
CROWD, GATHER_S = 16, 0.005
#: With fewer than that, but some under way.
FEW_GATHER_S = 0.001

Read = Callable[[Mapping[JobId, str], float], Awaitable[list[Event]]]


@dataclass(eq=False, slots=True)
class _Wait:
    """One reader that waits."""

    after: dict[JobId, str]
    block_s: float
    until: float  # monotonic seconds
    events: asyncio.Future[list[Event]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def left_s(self, now: float) -> float:
        return self.until - now


class SharedReads:
    """Reads for all tasks of one event loop.

    Args:
        read: Events of these streams after the given ids, waiting so many seconds for the first.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._waiting: list[_Wait] = []
        self._under_way: dict[asyncio.Task[None], int] = {}  # with their numbers of readers
        self._begins: asyncio.Handle | None = None

    async def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        """As `AsyncTransport.events`. May wait a little less than `block_s`, to wait on together with others."""
        wait = _Wait(dict(after), block_s, time.monotonic() + block_s)
        self._wait(wait)
        return await wait.events

    async def close(self) -> None:
        """End what is under way; nobody may wait any more."""
        if self._begins:
            self._begins.cancel()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _wait(self, wait: _Wait) -> None:
        self._waiting.append(wait)
        if self._begins is None:
            loop = asyncio.get_running_loop()
            gather_s = self._gather_s()
            self._begins = loop.call_later(gather_s, self._begin) if gather_s else loop.call_soon(self._begin)

    def _gather_s(self) -> float:
        if not self._under_way:
            return 0  # those of this turn of the loop come together anyway
        return GATHER_S if len(self._waiting) + sum(self._under_way.values()) >= CROWD else FEW_GATHER_S

    def _begin(self) -> None:
        """Begin a read for those who wait."""
        self._begins = None
        together, self._waiting = take_together([wait for wait in self._waiting if not wait.events.done()])
        if together:
            task = asyncio.ensure_future(self._run(together))
            self._under_way[task] = len(together)
            task.add_done_callback(self._under_way.pop)
        if self._waiting:
            self._begins = asyncio.get_running_loop().call_soon(self._begin)

    async def _run(self, waits: list[_Wait]) -> None:
        cursors = {job_id: last for wait in waits for job_id, last in wait.after.items()}
        block_s = min(wait.left_s(time.monotonic()) for wait in waits)
        if len(self._under_way) > 1:
            block_s = min(block_s, SHORT_S)
        try:
            events = await self._read(cursors, max(0.0, block_s))
        except Exception as error:
            for wait in waits:
                if not wait.events.done():
                    wait.events.set_exception(error)
            return
        found: dict[JobId, list[Event]] = {}
        for event in events:
            found.setdefault(event.job_id, []).append(event)
        now = time.monotonic()
        for wait in waits:
            mine = [event for job_id in wait.after for event in found.get(job_id, ())]
            if wait.events.done():  # its reader has left
                continue
            # Who has waited for most of its time ends with the others, so that all begin together again.
            if mine or wait.left_s(now) <= wait.block_s / 2:
                wait.events.set_result(mine)
            else:
                self._wait(wait)


def take_together(waits: list[_Wait]) -> tuple[list[_Wait], list[_Wait]]:
    """Those who can share the next read, and the others: a read has one cursor for each stream, and a bound of them."""
    cursors: dict[JobId, str] = {}
    together: list[_Wait] = []
    others: list[_Wait] = []
    for wait in waits:
        is_alike = all(cursors.get(job_id, last) == last for job_id, last in wait.after.items())
        if not together or (is_alike and len(cursors) + len(wait.after) <= MAX_STREAMS):
            together.append(wait)
            cursors |= wait.after
        else:
            others.append(wait)
    return together, others
