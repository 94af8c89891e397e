"""The history in a real broker: samples, faults once each, and how long first tokens took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from packtrain.broker import keys
from packtrain.broker.chunks import Chunk
from packtrain.broker.history import MAX_SAMPLES, Fault, Sample
from packtrain.broker.history_store import History, Recorder
from packtrain.broker.ids import JobId, new_job_id
from packtrain.broker.outcome import Outcome
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.states import InstanceState, JobState
from tests.support.factories import INSTANCE, NODE, ROUTES, instance_beat, model_info, spec

pytestmark = pytest.mark.integration


@pytest.fixture
def jobs(redis: Redis) -> Iterator[RedisJobs]:
    RedisRegistry(redis).put_models([model_info()])
    yield RedisJobs(redis)
    for job_id in redis.zrange(keys.RECENT, 0, -1):
        RedisJobs(redis).cancel(JobId(str(job_id)))


def submit(jobs: RedisJobs, **fields: Any) -> JobId:
    job_id = new_job_id()
    jobs.submit(job_id, spec(**fields), max_waiting=10)
    return job_id


def claim(jobs: RedisJobs) -> int:
    found = jobs.claim(ROUTES, INSTANCE, NODE, lease_ms=10_000)
    assert found
    return found.epoch


def test_the_wait_for_the_first_token_is_kept_once_for_each_job(redis: Redis, jobs: RedisJobs) -> None:
    streamed, epoch = submit(jobs), claim(jobs)
    for index, text in enumerate("ab"):
        jobs.emit([(streamed, epoch, Chunk(index, text, (index,)))])
    jobs.finish(streamed, epoch, Outcome(state=JobState.SUCCEEDED), Chunk(2, "c", (2,)))
    whole, epoch = submit(jobs), claim(jobs)
    jobs.finish(whole, epoch, Outcome(state=JobState.SUCCEEDED), Chunk(0, "a", (0,)))
    waits = History(redis).firsts_ms(0)

    assert len(waits) == 2
    for job_id, wait_ms in zip((streamed, whole), waits, strict=True):
        status = jobs.status(job_id)
        assert status
        assert status.first_token_ms
        assert wait_ms == status.first_token_ms - status.submitted_ms


def test_the_leader_samples_each_fifteen_seconds(redis: Redis, jobs: RedisJobs) -> None:
    now_s = [100.0]
    recorder = Recorder(redis, clock=lambda: now_s[0])
    registry = RedisRegistry(redis)
    registry.put_instance(instance_beat(slots_used=2, tokens_out=10))
    submit(jobs)
    submit(jobs, lane="bulk")

    recorder.tick()
    recorder.tick()
    registry.put_instance(instance_beat(slots_used=2, tokens_out=40))
    now_s[0] += 15
    recorder.tick()
    first, second = History(redis).samples(0)

    assert (first.running, first.interactive, first.bulk, first.tokens_per_s) == (2, 1, 1, None)
    assert second.tokens_per_s


def test_a_fault_is_kept_once_by_whoever_leads(redis: Redis) -> None:
    RedisRegistry(redis).put_instance(
        instance_beat(state=InstanceState.FAILED, ended_ms=5, reason="was killed by SIGABRT")
    )
    for _ in range(2):  # another leader sees it again
        Recorder(redis).tick()

    assert History(redis).faults(10) == [
        Fault(at_ms=5, state="FAILED", instance=INSTANCE, model="tiny", node=NODE, reason="was killed by SIGABRT")
    ]


def test_a_day_is_kept_and_no_more(redis: Redis) -> None:
    history = History(redis)
    usual = Sample(at_ms=1764432529123, tokens_per_s=123.45, interactive=12, running=8, firsts=9, first_p50_ms=1234.0)
    pipe = redis.pipeline(transaction=False)
    for _ in range(MAX_SAMPLES + 300):
        pipe.xadd(keys.HISTORY, {"s": usual.model_dump_json(exclude_defaults=True)})
    pipe.execute()
    history.write(usual, [])

    assert MAX_SAMPLES <= redis.xlen(keys.HISTORY) < MAX_SAMPLES + 100  # Redis drops whole nodes of a stream
    assert (redis.memory_usage(keys.HISTORY) or 0) < 1_500_000


def test_what_a_newer_version_wrote_is_left_out(redis: Redis) -> None:
    history = History(redis)
    redis.xadd(keys.HISTORY, {"s": "{}"})
    redis.pexpire(keys.HISTORY, 1000)
    history.write(Sample(at_ms=7), [])

    assert [each.at_ms for each in history.samples(0)] == [7]
