"""Many waits at once on a real broker: each thread holds a connection and none may be refused one; tasks share them."""

from __future__ import annotations

import asyncio
import threading

import pytest
from redis import Redis

from packtrain.broker.outcome import Outcome
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.server import BrokerServer
from packtrain.broker.states import JobState
from packtrain.client import AsyncPacktrain, Packtrain
from tests.support.factories import INSTANCE, MODEL, NODE, ROUTES, model_info

pytestmark = pytest.mark.integration

#: redis-py gives 100 connections when nobody says otherwise.
NUM_WAITS = 150


def answer_all(redis: Redis) -> None:
    store = RedisJobs(redis)
    while claim := store.claim(ROUTES, INSTANCE, NODE, lease_ms=60_000):
        store.finish(claim.job_id, claim.epoch, Outcome(state=JobState.SUCCEEDED, text="yes"))


def test_more_tasks_wait_than_a_pool_of_the_library_has_connections(broker: BrokerServer, redis: Redis) -> None:
    RedisRegistry(redis).put_models([model_info()])

    async def main() -> list[str]:
        async with AsyncPacktrain(broker.url) as fleet:
            jobs = await asyncio.gather(*(fleet.submit(MODEL, f"{i}", raw=True) for i in range(NUM_WAITS)))
            waits = [asyncio.create_task(job.result(timeout=20)) for job in jobs]
            await asyncio.sleep(1)
            reading = [client for client in redis.client_list() if client["cmd"] == "xread"]
            assert len(reading) <= NUM_WAITS / 10
            await asyncio.to_thread(answer_all, redis)
            return [result.text for result in await asyncio.gather(*waits)]

    assert asyncio.run(main()) == ["yes"] * NUM_WAITS


def test_more_threads_wait_than_a_pool_of_the_library_has_connections(broker: BrokerServer, redis: Redis) -> None:
    RedisRegistry(redis).put_models([model_info()])
    texts: list[str] = []
    with Packtrain(broker.url) as fleet:
        jobs = [fleet.submit(MODEL, f"{i}", raw=True) for i in range(NUM_WAITS)]
        threads = [threading.Thread(target=lambda job=job: texts.append(job.result(timeout=20).text)) for job in jobs]
        for thread in threads:
            thread.start()
        answer_all(redis)
        for thread in threads:
            thread.join()

    assert texts == ["yes"] * NUM_WAITS
