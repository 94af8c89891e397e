"""One look at the fleet for all who ask."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from packtrain.broker.errors import BrokerUnavailable
from packtrain.client.gateway.page_shared import MAX_AGE_S, SHARE, Shared

pytestmark = pytest.mark.unit

URL = "redis://here"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.looks = 0
        self.look_s = 0.0

    def __call__(self) -> float:
        return self.now

    def look(self) -> int:
        self.looks += 1
        self.now += self.look_s
        return self.looks


def test_many_who_ask_at_once_cost_one_look() -> None:
    clock = Clock()

    async def ask() -> list[int]:
        shared = Shared(clock.look, 1.0, URL, now=clock)
        return await asyncio.gather(*[shared.get() for _ in range(20)])

    assert asyncio.run(ask()) == [1] * 20


def test_it_is_looked_anew_when_it_is_old_and_later_where_a_look_takes_long() -> None:
    clock = Clock()

    async def ask() -> list[int]:
        shared = Shared(clock.look, 1.0, URL, now=clock)
        found = [await shared.get()]
        for step_s, look_s in ((0.9, 0.0), (0.2, 1.0), (1.0 / SHARE - 0.1, 0.0), (0.2, 0.0)):
            clock.now, clock.look_s = clock.now + step_s, look_s
            found.append(await shared.get())
        return found

    assert asyncio.run(ask()) == [1, 1, 2, 2, 3]


def test_what_a_broker_that_was_away_answers_at_last_is_not_shown_for_long() -> None:
    clock = Clock()
    clock.look_s = 60.0

    async def ask() -> list[int]:
        shared = Shared(clock.look, 1.0, URL, now=clock)
        found = [await shared.get()]
        clock.now += MAX_AGE_S + 0.1
        return [*found, await shared.get()]

    assert asyncio.run(ask()) == [1, 2]


def test_a_broker_that_does_not_answer_is_told_soon_and_holds_one_thread() -> None:
    may_end, begun = threading.Event(), []

    def look() -> str:
        begun.append(1)
        may_end.wait(10)
        return "found"

    async def ask() -> str:
        shared = Shared(look, 1.0, URL, patience_s=0.01)
        for _ in range(5):
            with pytest.raises(BrokerUnavailable, match="did not answer within"):
                await shared.get()
        assert begun == [1]
        may_end.set()
        while True:
            with suppress(BrokerUnavailable):
                return await shared.get()

    assert asyncio.run(ask()) == "found"
    assert begun == [1]


def test_a_failure_is_told_and_the_next_who_asks_looks_again() -> None:
    looks = []

    def look() -> str:
        looks.append(1)
        if len(looks) == 1:
            raise RedisConnectionError("refused")
        return "found"

    async def ask() -> str:
        shared = Shared(look, 1.0, URL)
        with pytest.raises(BrokerUnavailable, match="refused"):
            await shared.get()
        return await shared.get()

    assert asyncio.run(ask()) == "found"
