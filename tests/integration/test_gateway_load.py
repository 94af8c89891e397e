"""Two hundred readers at once: each gets its own events once, killed ones leave no work behind, and memory stays."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from packtrain.broker.states import JobState
from packtrain.client import AsyncPacktrain
from tests.support.fleets import Fleet, scripted_fleet
from tests.support.gateways import Gateway, gateway
from tests.support.raw_http import Connection

pytestmark = pytest.mark.integration

READERS, KILLED = 200, 50
MODEL = "steps"
MIB = 2**20


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    script = {"n_slots": READERS, "n_ctx": 512, "step_ms": 40, "keep_alive_s": -1}
    with scripted_fleet(tmp_path_factory.mktemp("home"), {MODEL: script}) as running:
        running.client.generate(MODEL, "x", max_tokens=1)
        yield running


@pytest.fixture(scope="module")
def door(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(fleet.url, tmp_path_factory.mktemp("gateway")) as running:
        yield running


def prompt_of(number: int) -> str:
    return f"reader number {number} reads this, and nobody else"


async def read_all(url: str, number: int) -> list[str]:
    """The texts of all events of a stream of its own."""
    async with Connection.to(url) as connection:
        chunks = [json.loads(event) async for event in connection.stream(model=MODEL, prompt=prompt_of(number))]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    return [chunk["choices"][0]["text"] for chunk in chunks]


async def round_of_readers(url: str) -> int:
    """Let all read at once; how many events they got."""
    texts = await asyncio.gather(*(read_all(url, number) for number in range(READERS)))
    for number, found in enumerate(texts):
        assert "".join(found) == prompt_of(number)[::-1], f"reader {number} got {found}"
    return sum(map(len, texts))


def test_each_of_many_readers_gets_its_own_events_once_and_memory_stays(door: Gateway) -> None:
    process = psutil.Process(door.process.pid)
    events = asyncio.run(round_of_readers(door.url))  # the first round fills pools and caches
    resident = process.memory_info().rss
    for _ in range(2):
        events += asyncio.run(round_of_readers(door.url))

    grown = process.memory_info().rss - resident
    assert events > 3 * READERS * 4  # they were streams
    assert grown < 8 * MIB, f"{grown / MIB:.1f} MiB more after two rounds more of {READERS} streams"


def test_jobs_of_killed_readers_are_cancelled_and_nobody_elses(fleet: Fleet, door: Gateway) -> None:
    rng = random.Random(1)
    doomed = set(rng.sample(range(READERS), KILLED))
    killed: dict[str, float] = {}  # jobs, and when their reader was killed
    gone: dict[str, float] = {}  # how long each went on, seconds

    async def read(number: int) -> str | None:
        async with Connection.to(door.url) as connection:
            stream = connection.stream(model=MODEL, prompt=f"!long {number}", max_tokens=100)
            lives, texts = rng.randrange(1, 5), 0
            async for _ in stream:
                texts += 1
                if number in doomed and texts == lives:
                    killed[connection.job] = time.monotonic()
                    connection.reset()
                    return None
            return connection.job

    async def watch(client: AsyncPacktrain) -> None:
        while len(gone) < KILLED:
            for job in killed.keys() - gone.keys():
                if (await client.job(job).status()).state.is_terminal:
                    gone[job] = time.monotonic() - killed[job]
            await asyncio.sleep(0.02)

    async def main() -> Counter[JobState]:
        async with AsyncPacktrain(fleet.url) as client, asyncio.timeout(60):
            watching = asyncio.create_task(watch(client))
            survivors = [job for job in await asyncio.gather(*map(read, range(READERS))) if job]
            await watching
            states = [(await client.job(job).status()).state for job in (*survivors, *killed)]
        assert len(survivors) == READERS - KILLED
        return Counter(states)

    states = asyncio.run(main())
    assert states == {JobState.SUCCEEDED: READERS - KILLED, JobState.CANCELLED: KILLED}
    assert max(gone.values()) < 2, sorted(gone.values())[-5:]
    assert "Traceback" not in Path(door.log).read_text()
