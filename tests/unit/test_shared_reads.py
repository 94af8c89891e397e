"""Readers of streams share reads: each gets its own events, none waits because others are silent."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

import pytest

from packtrain.broker.chunks import Event
from packtrain.broker.errors import BrokerUnavailable
from packtrain.broker.ids import JobId
from packtrain.client.shared_reads import MAX_STREAMS, SHORT_S, SharedReads, _Wait, take_together

pytestmark = pytest.mark.unit

A, B, C = JobId("a"), JobId("b"), JobId("c")


class Store:
    """Streams in memory, and what was read of them."""

    def __init__(self) -> None:
        self.streams: dict[JobId, list[Event]] = {}
        self.reads: list[tuple[set[JobId], float]] = []
        self.fails = False
        self._news = asyncio.Condition()

    async def add(self, job_id: JobId, text: str) -> None:
        stream = self.streams.setdefault(job_id, [])
        stream.append(Event(job_id, str(len(stream) + 1), text))
        async with self._news:
            self._news.notify_all()

    def _after(self, after: Mapping[JobId, str]) -> list[Event]:
        return [e for job_id, last in after.items() for e in self.streams.get(job_id, ()) if int(e.id) > int(last)]

    async def read(self, after: Mapping[JobId, str], block_s: float) -> list[Event]:
        self.reads.append((set(after), block_s))
        if self.fails:
            raise BrokerUnavailable(url="redis://x", reason="gone")
        try:
            async with asyncio.timeout(block_s), self._news:
                await self._news.wait_for(lambda: self._after(after))
        except TimeoutError:
            pass
        return self._after(after)


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events]


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await test

    asyncio.run(bounded())


def test_those_who_come_together_share_one_read_and_get_their_own() -> None:
    async def main() -> None:
        store = Store()
        reads = SharedReads(store.read)
        for job in (A, B, C):
            await store.add(job, f"of {job}")
        found = await asyncio.gather(*(reads.events({job: "0"}, block_s=5) for job in (A, B, C)))

        assert [texts(events) for events in found] == [["of a"], ["of b"], ["of c"]]
        assert [jobs for jobs, _ in store.reads] == [{A, B, C}]
        await reads.close()

    run(main())


def test_who_comes_during_a_read_does_not_wait_for_it_and_is_joined_with_it_later() -> None:
    async def main() -> None:
        store = Store()
        reads = SharedReads(store.read)
        quiet = asyncio.create_task(reads.events({A: "0"}, block_s=30))
        await asyncio.sleep(0.01)
        await store.add(B, "early")
        assert texts(await reads.events({B: "0"}, block_s=30)) == ["early"]
        assert store.reads[1][0] == {B}
        assert store.reads[1][1] <= SHORT_S
        silent = [asyncio.create_task(reads.events({JobId(f"s{i}"): "0"}, block_s=30)) for i in range(5)]
        await asyncio.sleep(0.02)
        await store.add(A, "late")  # ends the long read; the next are short until there is one
        assert texts(await quiet) == ["late"]
        await asyncio.sleep(3 * SHORT_S)
        before = len(store.reads)
        again = asyncio.create_task(reads.events({A: "1"}, block_s=30))
        await asyncio.sleep(3 * SHORT_S)
        assert len(store.reads) <= before + 8
        for task in [*silent, again]:
            task.cancel()
        await reads.close()

    run(main())


def test_nothing_is_lost_or_doubled_however_readers_and_events_meet() -> None:
    async def reader(reads: SharedReads, job: JobId, count: int) -> list[str]:
        found: list[str] = []
        last = "0"
        while len(found) < count:
            for event in await reads.events({job: last}, block_s=0.05):
                found.append(event.text)
                last = event.id
        return found

    async def main() -> None:
        store = Store()
        reads = SharedReads(store.read)
        jobs = [JobId(f"j{i}") for i in range(40)]
        readers = [asyncio.create_task(reader(reads, job, 20)) for job in jobs]
        for number in range(20):
            for index, job in enumerate(jobs):
                await store.add(job, f"{job}:{number}")
                if index % 7 == number % 7:
                    await asyncio.sleep(0.001)
        for job, task in zip(jobs, readers, strict=True):
            assert await task == [f"{job}:{number}" for number in range(20)]
        assert len(store.reads) < 40 * 20 / 2
        await reads.close()

    run(main())


def test_two_readers_of_one_stream_are_where_they_are() -> None:
    async def main() -> None:
        store = Store()
        reads = SharedReads(store.read)
        await store.add(A, "one")
        await store.add(A, "two")
        found = await asyncio.gather(reads.events({A: "0"}, block_s=5), reads.events({A: "1"}, block_s=5))

        assert [texts(events) for events in found] == [["one", "two"], ["two"]]
        await reads.close()

    run(main())


def test_who_waits_in_vain_hears_so() -> None:
    async def main() -> None:
        reads = SharedReads(Store().read)

        assert await reads.events({A: "0"}, block_s=0.02) == []
        assert await reads.events({A: "0"}, block_s=0) == []
        await reads.close()

    run(main())


def test_a_failure_is_everybodys_and_the_next_read_begins_anew() -> None:
    async def main() -> None:
        store = Store()
        reads = SharedReads(store.read)
        store.fails = True
        failed = await asyncio.gather(
            reads.events({A: "0"}, block_s=5), reads.events({B: "0"}, block_s=5), return_exceptions=True
        )
        assert [type(error) for error in failed] == [BrokerUnavailable, BrokerUnavailable]
        store.fails = False
        await store.add(A, "back")
        assert texts(await reads.events({A: "0"}, block_s=5)) == ["back"]
        await reads.close()

    run(main())


def test_a_reader_that_leaves_takes_nobody_with_it() -> None:
    async def main() -> None:
        store = Store()
        reads = SharedReads(store.read)
        leaves = asyncio.create_task(reads.events({A: "0"}, block_s=5))
        stays = asyncio.create_task(reads.events({B: "0"}, block_s=5))
        await asyncio.sleep(0.01)
        leaves.cancel()
        await store.add(B, "here")

        assert texts(await stays) == ["here"]
        assert leaves.cancelled()
        await reads.close()

    run(main())


def test_a_read_has_a_bound_of_streams() -> None:
    async def main() -> None:
        waits = [_Wait({JobId(f"{i}"): "0"}, 1, 1) for i in range(MAX_STREAMS + 5)]
        huge = _Wait({JobId(f"h{i}"): "0" for i in range(MAX_STREAMS + 1)}, 1, 1)

        together, others = take_together([*waits, huge])
        assert (len(together), len(others)) == (MAX_STREAMS, 6)
        assert take_together([huge]) == ([huge], [])

    run(main())
