"""Jobs of a name with several targets: they go from one to the next, and are never in two places or none.

Each is shown on the in-memory twin and on a real server; random steps are played on both at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from packtrain.broker.chunks import Chunk
from packtrain.broker.ids import InstanceId, JobId, ModelId, Route, route_of
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import JobStore, Move
from packtrain.broker.memory_jobs import MemoryJobs
from packtrain.broker.outcome import Cause, Outcome
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.states import JobState
from tests.support.clock import FakeClock
from tests.support.factories import NODE, model_info, spec

pytestmark = pytest.mark.contract

LEASE_MS = 600_000
A, B, C = TARGETS = (ModelId("a"), ModelId("b"), ModelId("c"))
ALIAS = model_info("any", alias_of=A, targets=TARGETS, spill_after_s=20)
FAST = [route_of(model) for model in TARGETS]
ROUTES = [*FAST, *(route_of(model, deterministic=True) for model in TARGETS)]
WHY = Cause(instance="", reason="it would have waited too long")
DONE = Outcome(state=JobState.SUCCEEDED, text="hi")


def in_memory() -> JobStore:
    return MemoryJobs(FakeClock(), {**{model: model for model in TARGETS}, "any": A}, [ALIAS])


def on_server(redis: Redis) -> JobStore:
    redis.flushdb()
    RedisRegistry(redis).put_models([*(model_info(model) for model in TARGETS), ALIAS])
    return RedisJobs(redis)


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> JobStore:
    return in_memory() if request.param == "memory" else on_server(request.getfixturevalue("redis"))


def submit(store: JobStore, job_id: str, **fields: Any) -> JobId:
    return store.submit(JobId(job_id), spec(**{"model": "any", **fields}), max_waiting=100).job_id


def claim(store: JobStore, route: Route) -> tuple[JobId, int] | None:
    taken = store.claim([route], InstanceId(f"on-{route}"), NODE, lease_ms=LEASE_MS)
    return (taken.job_id, taken.epoch) if taken else None


def move(
    store: JobStore, job_id: JobId, source: Route = FAST[0], target: ModelId = B, *, has_failed: bool = False
) -> bool:
    return store.move([Move(job_id, source, target, WHY, has_failed)])[0]


def test_a_waiting_job_goes_to_another_target_and_is_claimed_only_there(store: JobStore) -> None:
    job_id = submit(store, "one")
    (found,) = store.movable(FAST[0])
    assert (found.job_id, found.ahead, found.spill_ms, found.targets) == (job_id, 0, 20_000, TARGETS)

    assert move(store, job_id)
    assert not move(store, job_id)
    assert store.waiting() == {FAST[1]: 1}
    assert claim(store, FAST[0]) is None
    assert claim(store, FAST[1]) == (job_id, 1)
    status = store.status(job_id)
    assert status is not None
    assert (status.model, status.route, status.cause) == (B, FAST[1], WHY)


def test_what_was_claimed_ended_or_asked_for_directly_is_not_moved(store: JobStore) -> None:
    claimed, direct, meant = submit(store, "1"), submit(store, "2", model=A), submit(store, "3", meant_for="n1")
    tokens = submit(store, "4", prompt="", prompt_tokens=[1, 2])
    vector = submit(store, "6", kind="embed")
    still = store.submit(JobId("5"), spec(model="any"), max_waiting=100, may_move=False).job_id
    assert claim(store, FAST[0]) == (claimed, 1)

    assert not any(move(store, job_id) for job_id in (claimed, direct, meant, tokens, vector, still, JobId("none")))
    assert store.movable(FAST[0]) == []
    assert store.waiting() == {FAST[0]: 5}


def test_a_job_that_fails_before_its_first_token_goes_to_each_target_once(store: JobStore) -> None:
    job_id = submit(store, "one")
    assert claim(store, FAST[0]) == (job_id, 1)
    assert store.fall_back(job_id, 1, WHY) == FAST[1]
    assert store.fall_back(job_id, 1, WHY) is None  # the same said twice
    assert claim(store, FAST[1]) == (job_id, 2)
    assert store.fall_back(job_id, 2, WHY) == FAST[2]
    assert claim(store, FAST[2]) == (job_id, 3)
    assert store.fall_back(job_id, 3, WHY) is None
    assert store.finish(job_id, 3, DONE)


def test_a_job_that_spilled_over_comes_back_to_the_first_when_the_second_fails(store: JobStore) -> None:
    job_id = submit(store, "one")
    move(store, job_id)
    claim(store, FAST[1])

    assert store.fall_back(job_id, 1, WHY) == FAST[0]
    (found,) = store.movable(FAST[0])
    assert found.failed == {B}


def test_a_target_that_could_not_run_it_is_not_tried_again(store: JobStore) -> None:
    job_id = submit(store, "one")
    move(store, job_id, has_failed=True)
    claim(store, FAST[1])

    assert store.fall_back(job_id, 1, WHY) == FAST[2]


def test_a_job_with_tokens_stays_where_it_is(store: JobStore) -> None:
    job_id = submit(store, "one")
    claim(store, FAST[0])
    store.emit([(job_id, 1, Chunk(0, "hi", (), num_pieces=1))])
    assert store.fall_back(job_id, 1, WHY) is None

    store.release(job_id, 1)
    assert not move(store, job_id)
    assert store.movable(FAST[0]) == []


def test_pieces_without_token_ids_are_stored_once_however_often_they_are_sent(store: JobStore) -> None:
    job_id = submit(store, "one")
    claim(store, FAST[0])
    for chunk in (Chunk(0, "a", (), num_pieces=1), Chunk(0, "a", (), num_pieces=1), Chunk(1, "b", (), num_pieces=2)):
        store.emit([(job_id, 1, chunk)])

    assert [event.text for event in store.events({job_id: "0"})] == ["a", "b"]
    status = store.status(job_id)
    assert status is not None
    assert status.tokens == 3


def test_a_cancelled_job_does_not_fall_back(store: JobStore) -> None:
    job_id = submit(store, "one")
    claim(store, FAST[0])
    store.cancel(job_id)

    assert store.fall_back(job_id, 1, WHY) is None
    status = store.status(job_id)
    assert status is not None
    assert status.state is JobState.CANCELLED


def test_last_ones_come_first_and_the_first_are_among_them(store: JobStore) -> None:
    for number in range(450):
        store.submit(JobId(f"j{number}"), spec(model="any"), max_waiting=1000)
    ahead = [job.ahead for job in store.movable(FAST[0])]

    assert ahead == [*range(449, 249, -1), *range(199, -1, -1)]


def test_users_take_turns_where_their_jobs_went(store: JobStore) -> None:
    for number in range(4):
        submit(store, f"ann{number}", user="ann")
        move(store, JobId(f"ann{number}"))
    bob = submit(store, "bob", user="bob")
    move(store, bob)

    order = [claim(store, FAST[1]) for _ in range(5)]
    assert [taken[0] for taken in order if taken].index(bob) == 1


Step = tuple[str, int, int]
NAMES = ("submit", "submit", "claim", "claim", "emit", "fall", "fall", "move", "move", "finish", "gone", "cancel")
STEPS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 5), st.integers(0, 5)), min_size=20, max_size=60)


def play(store: JobStore, steps: Sequence[Step]) -> list[object]:
    """Everything the store answers, and every record at the end."""
    held: dict[JobId, int] = {}
    seen: list[object] = []
    for name, number, other in steps:
        job_id, route = JobId(f"j{number}"), ROUTES[other]
        match name:
            case "submit":
                try:
                    seen.append(store.submit(job_id, _spec(number, other), max_waiting=100).route)
                except Exception as error:
                    seen.append(type(error))
            case "claim":
                taken = claim(store, route)
                seen.append(taken)
                held.update([taken] if taken else [])
            case "emit":
                seen.append(store.emit([(job_id, held.get(job_id, 0), Chunk(0, "x", (), num_pieces=1))]))
            case "fall":
                seen.append(store.fall_back(job_id, held.get(job_id, 0), WHY))
            case "move":
                seen.append(move(store, job_id, route, TARGETS[(other + 1) % 3], has_failed=bool(number % 2)))
            case "finish" if other % 2:
                seen.append(store.release(job_id, held.get(job_id, 0)))
            case "finish":
                seen.append(store.finish(job_id, held.get(job_id, 0), DONE))
            case "gone":
                seen.append(sorted((r.job_id, r.state) for r in store.reap(InstanceId(f"on-{route}"))))
            case "cancel":
                seen.append(store.cancel(job_id))
        for each in ROUTES:
            rows = [(m.job_id, m.ahead, m.targets, m.failed) for m in store.movable(each)]
            seen.append((each, rows))
        waiting = store.waiting()
        seen.append(waiting)
        states = [store.status(JobId(f"j{number}")) for number in range(6)]
        assert sum(waiting.values()) == sum(status is not None and status.state is JobState.QUEUED for status in states)
        seen.append([status and (status.state, status.route, status.epoch, status.tokens) for status in states])
    return seen


def _spec(number: int, kind: int) -> JobSpec:
    return spec(model="any" if kind % 3 else A, user=f"u{number % 2}", lane=("interactive", "bulk")[kind % 2],
                deterministic=kind == 5, params={"max_tokens": 10 * (number + 1)})  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_the_twin_and_the_server_agree_on_any_sequence_of_steps(redis: Redis, steps: list[Step]) -> None:
    assert play(on_server(redis), steps) == play(in_memory(), steps)
