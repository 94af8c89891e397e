"""Counters in a real broker: each end of a job counts once, whoever tells it and however often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from packtrain.broker import deeds, errors, jobs, keys
from packtrain.broker.chunks import Chunk
from packtrain.broker.deeds import Deed
from packtrain.broker.deeds_store import RedisDeeds
from packtrain.broker.ids import JobId, new_job_id
from packtrain.broker.outcome import Outcome, Timings, Usage
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.scripts import Scripts
from packtrain.broker.states import MAX_ATTEMPTS, JobState
from packtrain.broker.tally import Pace, Tally
from packtrain.broker.tally_store import Counted, Counters
from tests.support.factories import INSTANCE, MODEL, NODE, ROUTE, ROUTES, model_info, spec

pytestmark = pytest.mark.integration

DONE = Outcome(
    state=JobState.SUCCEEDED,
    finish_reason="stop",
    usage=Usage(prompt_tokens=12, completion_tokens=3, reused_tokens=4),
    timings=Timings(queue_ms=20, first_token_ms=80, run_ms=380),
)


@pytest.fixture
def store(redis: Redis) -> RedisJobs:
    RedisRegistry(redis).put_models([model_info()])
    return RedisJobs(redis)


def submit(store: RedisJobs, **fields: Any) -> JobId:
    job_id = new_job_id()
    store.submit(job_id, spec(**fields), max_waiting=2000)
    return job_id


def claim(store: RedisJobs, *, lease_ms: int = 10_000) -> jobs.Claim:
    found = store.claim(ROUTES, INSTANCE, NODE, lease_ms=lease_ms)
    assert found
    return found


def look(redis: Redis) -> Counted:
    return Counters(redis).look()


def tally(redis: Redis) -> Tally:
    return look(redis).tallies[MODEL, "interactive"]


def test_an_end_that_is_sent_twice_counts_once(redis: Redis, store: RedisJobs) -> None:
    submit(store, user="anna", tag="nightly")
    lease = claim(store)
    for _ in range(3):  # its reply was lost
        assert store.finish(lease.job_id, lease.epoch, DONE, Chunk(0, "abc", (1, 2, 3)), pace=Pace((0, 2), 9000))
    store.cancel(lease.job_id)
    found = look(redis)
    counted = found.tallies[MODEL, "interactive"]

    assert (counted.ends, counted.prompt, counted.output, counted.reused) == ({JobState.SUCCEEDED: 1}, 12, 3, 4)
    assert {name: histogram.count for name, histogram in counted.histograms.items()} == {
        "queue": 1, "first": 1, "prefill": 1, "decode": 1, "whole": 1, "gap": 2,
    }  # fmt: skip
    assert [(u.name, u.model, u.jobs, u.prompt, u.output) for u in found.users] == [("anna", MODEL, 1, 12, 3)]
    assert [(u.name, u.jobs, u.output) for u in found.tags] == [("nightly", 1, 3)]
    assert found.tallies[MODEL, "bulk"].ends == {}


def test_an_end_of_a_job_that_is_lost_counts_nothing(redis: Redis, store: RedisJobs) -> None:
    submit(store)
    old = claim(store, lease_ms=0)
    store.reap()
    new = claim(store)

    assert not store.finish(old.job_id, old.epoch, DONE)
    assert tally(redis).ends == {}
    assert store.finish(new.job_id, new.epoch, DONE)
    counted = tally(redis)
    assert (counted.ends, counted.output, counted.lapsed, counted.retried) == ({JobState.SUCCEEDED: 1}, 3, 1, 1)


def _cancel(store: RedisJobs) -> None:
    store.cancel(submit(store))


def _expire(store: RedisJobs) -> None:
    submit(store, expires_in_ms=1)
    while not store.reap():
        pass


def _reject(store: RedisJobs) -> None:
    submit(store)
    store.reject(ROUTE, errors.JobFailed("no"))


def _die(store: RedisJobs) -> None:
    submit(store)
    for _ in range(MAX_ATTEMPTS):
        claim(store)
        store.reap(INSTANCE)


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (_cancel, JobState.CANCELLED),
        (_expire, JobState.EXPIRED),
        (_reject, JobState.FAILED),
        (_die, JobState.DEAD),
    ],
)
def test_every_other_end_counts_too(
    redis: Redis, store: RedisJobs, end: Callable[[RedisJobs], None], state: JobState
) -> None:
    end(store)
    counted = tally(redis)

    assert counted.ends == {state: 1}
    assert sum(histogram.count for histogram in counted.histograms.values()) == 0
    is_dead = state is JobState.DEAD
    assert (counted.gone, counted.retried) == ((3, 2) if is_dead else (0, 0))


def test_tokens_that_readers_have_count_though_nobody_ended_the_job(redis: Redis, store: RedisJobs) -> None:
    submit(store, user="anna")
    lease = claim(store)
    store.emit([(lease.job_id, lease.epoch, Chunk(0, "ab", (1, 2)))])
    store.cancel(lease.job_id)
    store.reap(INSTANCE)
    found = look(redis)

    assert found.tallies[MODEL, "interactive"].output == 2
    assert [(used.name, used.output) for used in found.users] == [("anna", 2)]


def test_a_job_that_a_draining_instance_gives_back_is_counted_as_such(redis: Redis, store: RedisJobs) -> None:
    submit(store)
    lease = claim(store)
    store.release(lease.job_id, lease.epoch)
    store.cancel(lease.job_id)

    assert (tally(redis).released, tally(redis).retried) == (1, 0)


def test_so_many_users_are_told_apart_and_all_further_ones_are_one(
    redis: Redis, store: RedisJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [JobId(f"{number:032x}") for number in range(keys.USED_MAX + 5)]
    calls = [jobs.submit(job_id, spec(user=f"u{number}"), max_waiting=9999) for number, job_id in enumerate(ids)]
    Scripts(redis).run_many(calls)
    done = Outcome(state=JobState.SUCCEEDED, usage=Usage(prompt_tokens=1, completion_tokens=1))
    for _ in ids:
        lease = claim(store)
        store.finish(lease.job_id, lease.epoch, done)
    found = {used.name: used.jobs for used in look(redis).users}

    assert len(found) == keys.USED_MAX + 1
    assert found[keys.USED_OTHERS] == 5


def test_a_deed_counts_once_for_all_who_lead(redis: Redis) -> None:
    now = [0.0]
    first, second = RedisDeeds(redis, lambda: now[0]), RedisDeeds(redis, lambda: now[0])
    loaded = Deed("loaded tiny-1", {"loaded|tiny|n1": 1, "load:500|tiny": 1, "load:sum|tiny": 300_000})
    for leader in (first, second, first):
        leader.note([loaded])
        now[0] += 100
    second.note([loaded, Deed("loaded tiny-2", {"loaded|tiny|n1": 1})])
    first.rerung(3)
    found = look(redis).deeds

    assert found.instances == {(deeds.LOADED, "tiny", "n1"): 2}
    assert (found.loads["tiny"].count, found.loads["tiny"].sum_us, found.rerung) == (1, 300_000, 3)


def test_queues_tell_how_long_their_oldest_job_has_waited(redis: Redis, store: RedisJobs) -> None:
    old = submit(store, lane="bulk")
    submit(store, lane="bulk")
    redis.hincrby(keys.job(old), "submitted_ms", -60_000)
    (queue,) = look(redis).queues
    for job_id in redis.zrange(keys.RECENT, 0, -1):
        store.cancel(JobId(str(job_id)))

    assert (queue.route, queue.lane, queue.waiting, queue.head[0]) == (ROUTE, "bulk", 2, old)
    assert 60_000 <= queue.oldest_ms < 65_000


def test_what_a_client_wrote_among_the_ends_is_passed_over(redis: Redis, store: RedisJobs) -> None:
    for odd in (
        "",
        "x",
        "tiny interactive u",
        "tiny interactive u - end:SUCCEEDED 99999999999999999999",
        "a b c d e f",
    ):
        redis.rpush(keys.ENDS, odd)
    redis.pexpire(keys.ENDS, 60_000)
    submit(store)
    lease = claim(store)
    store.finish(lease.job_id, lease.epoch, DONE)

    assert tally(redis).ends == {JobState.SUCCEEDED: 1}
    assert redis.llen(keys.ENDS) == 0


def test_a_job_of_which_nothing_is_left_is_not_counted(redis: Redis, store: RedisJobs) -> None:
    store.cancel(submit(store), forget=True)

    assert tally(redis).ends == {}
