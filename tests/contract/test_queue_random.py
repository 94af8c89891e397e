"""The queue under random steps of several users and instances: nothing lost, nothing run twice, and each his turn.

Both stores are played the same steps at once and must answer the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from packtrain.broker.fairness import cost_of
from packtrain.broker.ids import InstanceId, JobId
from packtrain.broker.jobs import Claim, JobStore
from packtrain.broker.memory_jobs import MemoryJobs
from packtrain.broker.outcome import Outcome
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.states import MAX_ATTEMPTS, SUSPECT_ATTEMPTS, JobState
from tests.support.clock import FakeClock
from tests.support.factories import MODEL, NODE, ROUTES, model_info, spec

pytestmark = pytest.mark.contract

LEASE_MS = 600_000
DONE = Outcome(state=JobState.SUCCEEDED, text="hi")
INSTANCES = (InstanceId("i0"), InstanceId("i1"))
COSTS = (1, 30, 400)
USERS = ("ann", "bob", "eve")

_number = st.integers(0, 40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.just("submit"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.just("claim"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.sampled_from(["finish", "finish", "release", "cancel", "late", "gone"]), _number, st.just(0)),
    ),
    min_size=30,  # shorter ones say little, and hypothesis would try mostly those
    max_size=90,
)
TURNS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.just("serve"), st.just(0), st.just(0)),
        st.tuples(st.just("serve"), st.just(0), st.just(0)),
        st.tuples(st.just("give back"), st.just(0), st.just(0)),
    ),
    min_size=30,
    max_size=60,
)
FIRST = st.lists(st.tuples(st.just("submit"), st.integers(0, 2), st.integers(0, 2)), min_size=15, max_size=40)


class Both:
    """Two stores that must answer alike."""

    def __init__(self, redis: Redis) -> None:
        redis.flushdb()
        RedisRegistry(redis).put_models([model_info()])
        self.stores: tuple[JobStore, ...] = (RedisJobs(redis), MemoryJobs(FakeClock(), {MODEL: MODEL}))

    def submit(self, job_id: JobId, user: str, cost: int, lane: str) -> None:
        job = spec("x", user=user, lane=lane, params={"max_tokens": cost})
        for store in self.stores:
            store.submit(job_id, job, max_waiting=1000)

    def claim(self, instance: InstanceId, *, bulk: bool = True) -> Claim | None:
        real, twin = (store.claim(ROUTES, instance, NODE, lease_ms=LEASE_MS, bulk=bulk) for store in self.stores)
        assert (real and (real.job_id, real.epoch, real.attempts)) == (
            twin and (twin.job_id, twin.epoch, twin.attempts)
        )
        return real

    def finish(self, job_id: JobId, epoch: int) -> bool:
        return self._same([store.finish(job_id, epoch, DONE) for store in self.stores])

    def release(self, job_id: JobId, epoch: int) -> bool:
        return self._same([store.release(job_id, epoch) for store in self.stores])

    def cancel(self, job_id: JobId) -> JobState | None:
        states = [store.cancel(job_id) for store in self.stores]
        assert states[0] is states[1]
        return states[0]

    def reap(self, instance: InstanceId) -> dict[JobId, JobState]:
        changed = [{r.job_id: r.state for r in store.reap(instance)} for store in self.stores]
        assert changed[0] == changed[1]
        return changed[0]

    def ends(self, job_id: JobId) -> list[JobState]:
        """Every end that readers of a job are told of."""
        told = [[e.end for e in store.events({job_id: "0"}) if e.end] for store in self.stores]
        assert told[0] == told[1]
        return told[0]

    def _same(self, answers: Sequence[bool]) -> bool:
        assert answers[0] == answers[1]
        return answers[0]


@dataclass
class Truth:
    """What must be so, kept beside the stores."""

    waiting: set[JobId] = field(default_factory=set)
    running: dict[JobId, tuple[int, InstanceId]] = field(default_factory=dict)
    ended: dict[JobId, JobState] = field(default_factory=dict)
    attempts: Counter[JobId] = field(default_factory=Counter)
    cancelled: set[JobId] = field(default_factory=set)
    epochs: Counter[JobId] = field(default_factory=Counter)

    def suspects(self, jobs: set[JobId]) -> set[JobId]:
        return {job_id for job_id in jobs if self.attempts[job_id] >= SUSPECT_ATTEMPTS}

    def claim(self, both: Both, instance: InstanceId, *, bulk: bool = True) -> Claim | None:
        taken = both.claim(instance, bulk=bulk)
        held = {job_id for job_id, (_, holder) in self.running.items() if holder == instance}
        if taken is None:
            assert not bulk or not self.waiting or (held and self.suspects(self.waiting | held))
            return None
        assert taken.job_id in self.waiting
        assert taken.epoch == self.epochs[taken.job_id] + 1
        assert not self.suspects(held | {taken.job_id}) or not held
        self.waiting.remove(taken.job_id)
        self.running[taken.job_id] = (taken.epoch, instance)
        self.epochs[taken.job_id] = taken.epoch
        return taken

    def put_back(self, job_id: JobId) -> None:
        del self.running[job_id]
        if job_id in self.cancelled:
            self.ended[job_id] = JobState.CANCELLED
        else:
            self.waiting.add(job_id)


def step(both: Both, truth: Truth, name: str, number: int, other: int) -> None:
    known = [*truth.waiting, *truth.running, *truth.ended]
    running = sorted(truth.running)
    match name:
        case "submit":
            job_id = JobId(f"j{len(known):03}")
            both.submit(job_id, USERS[number], COSTS[other], "bulk" if number == 2 else "interactive")
            truth.waiting.add(job_id)
        case "claim":
            truth.claim(both, INSTANCES[number], bulk=bool(other))
        case "finish" if running:
            job_id = running[number % len(running)]
            assert both.finish(job_id, truth.running.pop(job_id)[0])
            truth.ended[job_id] = JobState.SUCCEEDED
        case "release" if running:
            job_id = running[number % len(running)]
            assert both.release(job_id, truth.running[job_id][0])
            truth.put_back(job_id)
        case "cancel" if known:
            job_id = sorted(known)[number % len(known)]
            state = both.cancel(job_id)
            if job_id in truth.waiting:
                truth.waiting.remove(job_id)
                truth.ended[job_id] = JobState.CANCELLED
            elif job_id in truth.running:
                truth.cancelled.add(job_id)
                assert state is JobState.RUNNING
            else:
                assert state is truth.ended[job_id]
        case "late" if known:  # a holder of an earlier lease wakes up
            job_id = sorted(known)[number % len(known)]
            if (epoch := truth.epochs[job_id]) > 1:
                assert not both.finish(job_id, epoch - 1)
                assert not both.release(job_id, epoch - 1)
        case "gone":
            instance = INSTANCES[number % 2]
            lost = {job_id for job_id, (_, holder) in truth.running.items() if holder == instance}
            changed = both.reap(instance)
            assert changed.keys() == lost
            for job_id in lost:
                truth.attempts[job_id] += 1
                truth.put_back(job_id)
                if truth.attempts[job_id] >= MAX_ATTEMPTS and job_id in truth.waiting:
                    truth.waiting.remove(job_id)
                    truth.ended[job_id] = JobState.DEAD
                assert changed[job_id] is (JobState.QUEUED if job_id in truth.waiting else truth.ended[job_id])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_no_job_is_lost_and_each_ends_once(redis: Redis, steps: list[tuple[str, int, int]]) -> None:
    both, truth = Both(redis), Truth()
    for name, number, other in steps:
        step(both, truth, name, number, other)
    for instance in INSTANCES:
        step(both, truth, "gone", INSTANCES.index(instance), 0)
    while taken := truth.claim(both, InstanceId("last")):  # it holds nothing else, so it may have suspects
        step(both, truth, "finish", sorted(truth.running).index(taken.job_id), 0)

    assert not truth.waiting
    assert not truth.running
    for job_id, state in truth.ended.items():
        assert both.ends(job_id) == [state]
        assert [status.state for store in both.stores if (status := store.status(job_id))] == [state, state]
    assert [store.waiting() for store in both.stores] == [{}, {}]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=FIRST, turns=TURNS)
def test_users_who_wait_together_get_the_same_tokens_but_for_one_job_each(
    redis: Redis, first: list[tuple[str, int, int]], turns: list[tuple[str, int, int]]
) -> None:
    both = Both(redis)
    waiting: dict[str, int] = dict.fromkeys(USERS, 0)
    served: dict[str, int] = dict.fromkeys(USERS, 0)
    of: dict[JobId, tuple[str, int]] = {}
    paid: set[JobId] = set()
    lead: dict[tuple[str, str], list[int]] = {}  # of the first before the second, since both have had jobs waiting
    for name, number, size in [*first, *turns]:
        if name == "submit":
            job_id, user = JobId(f"j{len(of):03}"), USERS[number]
            both.submit(job_id, user, COSTS[size], "interactive")
            of[job_id] = (user, cost_of(spec("x", params={"max_tokens": COSTS[size]})))
            waiting[user] += 1
        elif taken := both.claim(INSTANCES[0]):
            user, cost = of[taken.job_id]
            if name == "give back":
                both.release(taken.job_id, taken.epoch)
            else:
                both.finish(taken.job_id, taken.epoch)
                waiting[user] -= 1
            served[user] += cost * (taken.job_id not in paid)
            paid.add(taken.job_id)
        for pair in combinations(USERS, 2):
            if all(waiting[user] for user in pair):
                lead.setdefault(pair, []).append(served[pair[0]] - served[pair[1]])
                assert max(lead[pair]) - min(lead[pair]) <= 2 * (max(COSTS) + 1) + 1
            else:
                lead.pop(pair, None)
