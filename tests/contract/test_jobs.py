"""What a job store promises, shown on the in-memory twin and on a real server."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from packtrain.broker import errors, jobs, keys
from packtrain.broker.chat import CallDelta
from packtrain.broker.chunks import Chunk
from packtrain.broker.ids import InstanceId, JobId, ModelId, NodeId
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import CLAIM_LOOK, MAX_PASSED, MAX_TAIL_CHARS, EmitReply, JobStore, Place
from packtrain.broker.memory_jobs import MemoryJobs
from packtrain.broker.outcome import Cause, Outcome
from packtrain.broker.pieces import Logprob, TokenLogprob
from packtrain.broker.prefixes import prefix_hashes
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.states import MAX_ATTEMPTS, SUSPECT_ATTEMPTS, JobState
from tests.support.clock import FakeClock
from tests.support.factories import DETERMINISTIC, INSTANCE, MODEL, NODE, ROUTE, ROUTES, model_info, spec

pytestmark = pytest.mark.contract

LEASE_MS = 60_000
DONE = Outcome(state=JobState.SUCCEEDED, text="hi", finish_reason="stop")
_numbers = itertools.count(1)


class Lapse(Protocol):
    """Let `milliseconds` pass on the store's clock."""

    def __call__(self, milliseconds: int) -> None: ...


def submit(store: JobStore, job: JobSpec | None = None, job_id: str | None = None, limit: int = 100) -> JobId:
    job_id = job_id or f"job{next(_numbers)}"
    return store.submit(JobId(job_id), job or spec(), max_waiting=limit).job_id


def claim(store: JobStore, instance: str = INSTANCE, lease_ms: int = LEASE_MS) -> tuple[JobId, int]:
    taken = store.claim(ROUTES, InstanceId(instance), NODE, lease_ms=lease_ms)
    assert taken is not None
    return taken.job_id, taken.epoch


def strict_claim(store: JobStore, numerics_class: str) -> JobId | None:
    """The job that an instance of this class gets from the route of deterministic jobs."""
    taken = store.claim((DETERMINISTIC,), INSTANCE, NODE, lease_ms=LEASE_MS, numerics_class=numerics_class)
    return None if taken is None else taken.job_id


def begun(store: JobStore, numerics_class: str, meant_for: str | None = None) -> tuple[JobId, str]:
    """A deterministic job that waits with one token of this class, and the id of its last event."""
    job_id = submit(store, spec(deterministic=True, meant_for=meant_for))
    node = NodeId(meant_for or NODE)
    taken = store.claim((DETERMINISTIC,), INSTANCE, node, lease_ms=LEASE_MS, numerics_class=numerics_class)
    assert taken is not None
    assert taken.job_id == job_id
    store.emit([(job_id, 1, Chunk(0, "he", (1,)))])
    store.release(job_id, 1)
    return job_id, store.events({job_id: "0"})[-1].id


def state(store: JobStore, job_id: JobId) -> JobState:
    status = store.status(job_id)
    assert status is not None
    return status.state


class JobStoreContract:
    """Inherited by one class for each store."""

    def test_a_submitted_job_waits(self, store: JobStore) -> None:
        job_id = submit(store)

        assert state(store, job_id) is JobState.QUEUED
        assert store.waiting() == {ROUTE: 1}

    def test_the_same_id_with_the_same_request_is_the_same_job(self, store: JobStore) -> None:
        submit(store, job_id="twice")

        again = store.submit(JobId("twice"), spec(), max_waiting=100)

        assert not again.is_new
        assert store.waiting() == {ROUTE: 1}

    def test_the_same_id_with_another_request_is_refused(self, store: JobStore) -> None:
        submit(store, job_id="twice")

        with pytest.raises(errors.IdempotencyConflict):
            submit(store, spec("other"), job_id="twice")

    def test_an_unknown_model_is_refused_with_the_known_ones(self, store: JobStore) -> None:
        with pytest.raises(errors.UnknownModel, match="tiny"):
            submit(store, spec(model="nosuch"))

    def test_an_alias_leads_to_its_model(self, store: JobStore) -> None:
        submitted = store.submit(JobId("aliased"), spec(model="little"), max_waiting=100)

        assert submitted.model == MODEL
        assert claim(store)[0] == "aliased"

    def test_a_full_queue_refuses_and_says_when_to_come_back(self, store: JobStore) -> None:
        submit(store, limit=1)

        with pytest.raises(errors.QueueFull) as caught:
            submit(store, limit=1)

        assert caught.value.data["retry_after_s"] > 0

    def test_a_users_share_of_the_queue_is_bounded_over_lanes_and_routes(self, store: JobStore) -> None:
        def hand_in(**fields: Any) -> jobs.Submitted:
            job_id = JobId(f"job{next(_numbers)}")
            return store.submit(job_id, spec(**fields), max_waiting=100, max_waiting_user=3)

        hand_in(user="mine", deterministic=True, lane="bulk")
        hand_in(user="mine")
        hand_in(user="mine", lane="bulk")
        with pytest.raises(errors.QueueFull, match="3 jobs of 'mine' already wait for 'tiny'") as caught:
            hand_in(user="mine")
        hand_in(user="other")

        assert caught.value.data["retry_after_s"] > 0
        running, epoch = claim(store)
        hand_in(user="mine")
        with pytest.raises(errors.QueueFull):
            hand_in(user="mine")
        store.release(running, epoch)  # what waits again counts again, and is not refused
        store.cancel(running)
        with pytest.raises(errors.QueueFull):
            hand_in(user="mine")

    def test_the_rate_of_a_route_is_measured_where_it_has_work(self, store: JobStore, lapse: Lapse) -> None:
        assert store.rate(ROUTE) is None
        for _ in range(4):
            submit(store)
        first, second = claim(store), claim(store)
        lapse(40)
        store.finish(*first, DONE)
        lapse(20)
        store.finish(*second, DONE)
        lapse(300)
        third = claim(store)
        lapse(30)
        store.finish(*third, DONE)
        failed = claim(store)
        store.finish(*failed, Outcome(state=JobState.FAILED))

        rate = store.rate(ROUTE)
        assert rate is not None
        assert rate.jobs == 3
        assert (40 + 20 + 30) / 3 <= rate.gap_ms < 100  # not the time in which nothing ran
        assert (40 + 60 + 30) / 3 <= rate.run_ms < 130

    def test_a_full_queue_says_when_to_come_back_by_the_measured_rate(self, store: JobStore, lapse: Lapse) -> None:
        submit(store)
        slow = claim(store)
        lapse(400)
        store.finish(*slow, DONE)
        for _ in range(50):
            submit(store)

        with pytest.raises(errors.QueueFull) as caught:
            submit(store, limit=50)

        assert 50 / 10 * 0.4 <= caught.value.data["retry_after_s"] < 4  # 5 is what it guesses without

    def test_a_waiting_job_has_a_place(self, store: JobStore) -> None:
        mine = [submit(store, spec(user="mine", lane="bulk", params={"max_tokens": 100})) for _ in range(4)]
        other = submit(store, spec(user="other", lane="bulk"))
        submit(store, spec(user="other", lane="bulk", deterministic=True))
        talk = submit(store)

        assert store.place(mine[0]) == Place(0, 5, 1, 2, 4, mine[0], 0)
        assert store.place(other) == Place(1, 5, 1, 2, 2, mine[0], 0)
        assert store.place(mine[-1]) == Place(4, 5, 1, 2, 4, mine[0], 0)
        assert store.place(talk) == Place(0, 1, 0, 1, 1, talk, 0)
        assert claim(store)[0] == talk
        assert store.place(talk) is None
        assert store.place(JobId("nosuch")) is None

    def test_a_place_shows_how_often_the_first_of_the_lane_was_lost(self, store: JobStore) -> None:
        bad, behind = submit(store), submit(store)
        claim(store)
        store.reap(INSTANCE)

        assert store.place(behind) == Place(1, 2, 0, 1, 2, bad, 1)

    def test_a_status_tells_route_and_tokens_so_far(self, store: JobStore) -> None:
        job_id = submit(store, spec(deterministic=True, meant_for=INSTANCE))
        assert strict_claim(store, "class-a") == job_id
        store.emit([(job_id, 1, Chunk(0, "he", (1, 2)))])

        status = store.status(job_id)
        assert status is not None
        assert (status.route, status.meant_for, status.tokens) == (DETERMINISTIC, INSTANCE, 2)

    def test_jobs_are_claimed_in_order_interactive_first(self, store: JobStore) -> None:
        bulk = submit(store, spec(lane="bulk"))
        first, second = submit(store), submit(store)

        assert [claim(store)[0] for _ in range(3)] == [first, second, bulk]

    def test_who_asks_for_interactive_jobs_only_gets_no_bulk_one(self, store: JobStore) -> None:
        bulk = submit(store, spec(lane="bulk"))
        strict = submit(store, spec(lane="bulk", deterministic=True))
        interactive = submit(store)
        both = (DETERMINISTIC, ROUTE)
        assert store.ready(ROUTES) == (1, 1)
        assert store.ready(both) == (1, 2)

        first = store.claim(both, INSTANCE, NODE, lease_ms=LEASE_MS, bulk=False)
        assert store.claim(both, INSTANCE, NODE, lease_ms=LEASE_MS, bulk=False) is None

        assert first is not None
        assert (first.job_id, first.lane) == (interactive, "interactive")
        assert store.waiting() == {ROUTE: 1, DETERMINISTIC: 1}
        taken = [store.claim(both, INSTANCE, NODE, lease_ms=LEASE_MS) for _ in range(2)]
        assert [(t.job_id, t.lane) for t in taken if t] == [(bulk, "bulk"), (strict, "bulk")]

    def test_users_take_turns_by_tokens_however_many_jobs_each_has(self, store: JobStore) -> None:
        for _ in range(20):
            submit(store, spec(user="many", params={"max_tokens": 100}))
        large = [submit(store, spec(user="large", params={"max_tokens": 400})) for _ in range(2)]
        few = [submit(store, spec(user="few", params={"max_tokens": 100})) for _ in range(5)]
        order = [claim(store)[0] for _ in range(14)]

        assert [job_id for job_id in order if job_id in few] == few
        assert order.index(few[-1]) == 11  # after 5 of the many, and 2 of those that cost 4 times as much
        assert order.index(large[0]) < 3
        assert order.index(large[1]) > 8

    def test_jobs_of_users_with_one_each_are_claimed_in_the_order_of_submission(self, store: JobStore) -> None:
        order = [submit(store, spec(user=f"u{n}"), job_id=f"j{9 - n}") for n in range(10)]

        assert [claim(store)[0] for _ in order] == order

    def test_a_user_has_no_credit_for_the_time_before_his_first_job(self, store: JobStore) -> None:
        busy = [submit(store, spec(user="busy", params={"max_tokens": 100})) for _ in range(30)]
        assert [claim(store)[0] for _ in range(20)] == busy[:20]
        late = [submit(store, spec(user="late", params={"max_tokens": 100})) for _ in range(10)]

        assert sum(claim(store)[0] in late for _ in range(10)) in (4, 5)

    def test_a_released_job_is_before_others_of_its_user_and_costs_him_nothing_twice(self, store: JobStore) -> None:
        mine = [submit(store, spec(user="mine", params={"max_tokens": 100})) for _ in range(3)]
        other = [submit(store, spec(user="other", params={"max_tokens": 100})) for _ in range(3)]
        assert claim(store) == (mine[0], 1)
        assert claim(store)[0] == other[0]
        store.release(mine[0], 1)

        order = [claim(store)[0] for _ in range(5)]

        assert order == [mine[0], mine[1], other[1], mine[2], other[2]]

    def test_a_user_whose_waiting_jobs_were_all_cancelled_owes_nothing_for_them(self, store: JobStore) -> None:
        dropped = [submit(store, spec(user="mine", params={"max_tokens": 100})) for _ in range(10)]
        others = [submit(store, spec(user="other", params={"max_tokens": 100})) for _ in range(4)]
        for job_id in dropped:
            store.cancel(job_id)
        mine = submit(store, spec(user="mine", params={"max_tokens": 100}))

        assert [claim(store)[0] for _ in range(3)] == [others[0], mine, others[1]]

    def test_lanes_and_models_have_clocks_of_their_own(self, store: JobStore) -> None:
        for _ in range(10):
            submit(store, spec(user="mine", params={"max_tokens": 100}))
        for _ in range(2):
            submit(store, spec(user="other", lane="bulk"))
        mine = submit(store, spec(user="mine", lane="bulk"))
        claimed = [claim(store)[0] for _ in range(12)]

        assert claimed[-1] == mine

    def test_a_user_keeps_his_turns_across_both_routes_of_a_model(self, store: JobStore) -> None:
        strict = [submit(store, spec(user="mine", deterministic=True)) for _ in range(2)]
        plain = [submit(store, spec(user="mine")) for _ in range(2)]
        other = submit(store, spec(user="other"))
        claimed = [store.claim((DETERMINISTIC, ROUTE), INSTANCE, NODE, lease_ms=LEASE_MS) for _ in range(5)]

        assert [taken.job_id for taken in claimed if taken] == [strict[0], other, strict[1], *plain]

    def test_deterministic_jobs_are_claimed_only_by_whoever_serves_their_route(self, store: JobStore) -> None:
        strict, plain = submit(store, spec(deterministic=True)), submit(store)

        assert store.waiting() == {ROUTE: 1, DETERMINISTIC: 1}
        assert claim(store)[0] == plain
        assert store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS) is None
        taken = store.claim((DETERMINISTIC, ROUTE), INSTANCE, NODE, lease_ms=LEASE_MS)
        assert taken is not None
        assert (taken.job_id, taken.route) == (strict, DETERMINISTIC)

    def test_both_routes_are_claimed_in_the_order_of_submission_interactive_first(self, store: JobStore) -> None:
        bulk = submit(store, spec(deterministic=True, lane="bulk"))
        order = [submit(store, spec(deterministic=n % 2 == 0)) for n in range(4)]
        claimed = [store.claim((DETERMINISTIC, ROUTE), INSTANCE, NODE, lease_ms=LEASE_MS) for _ in range(5)]

        assert [taken.job_id for taken in claimed if taken] == [*order, bulk]

    def test_a_released_deterministic_job_waits_on_its_route_again(self, store: JobStore) -> None:
        job_id = submit(store, spec(deterministic=True))
        taken = store.claim((DETERMINISTIC,), INSTANCE, NODE, lease_ms=LEASE_MS)
        assert taken is not None

        assert store.release(job_id, taken.epoch)

        assert store.waiting() == {DETERMINISTIC: 1}
        assert store.cancel(job_id) is JobState.CANCELLED
        assert store.waiting() == {}

    def test_a_job_meant_for_somebody_is_left_to_them(self, store: JobStore) -> None:
        for_instance = submit(store, spec(meant_for="other-1"))
        for_node = submit(store, spec(meant_for="n2"))
        anybody = submit(store)

        assert claim(store)[0] == anybody
        assert store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS) is None
        assert claim(store, "other-1")[0] == for_instance
        taken = store.claim(ROUTES, INSTANCE, NodeId("n2"), lease_ms=LEASE_MS)
        assert taken is not None
        assert taken.job_id == for_node

    def test_waiting_jobs_meant_for_nobody_who_serves_them_fail(self, store: JobStore) -> None:
        gone, there = submit(store, spec(meant_for="gone")), submit(store, spec(meant_for="n1"))
        plain, elsewhere = submit(store), submit(store, spec(meant_for="gone", deterministic=True))
        running = submit(store, spec(meant_for=INSTANCE))
        while claim(store)[0] != running:
            pass

        assert store.strand({ROUTE: {"n2"}}) == 1
        assert store.strand({ROUTE: set()}) == 0

        status = store.status(gone)
        assert status is not None
        assert status.outcome is not None
        assert status.outcome.error is not None
        assert "meant_for" in status.outcome.error["message"]
        assert [state(store, j) for j in (there, plain, running)] == [JobState.RUNNING] * 3
        assert state(store, elsewhere) is JobState.QUEUED
        assert store.strand({DETERMINISTIC: {"n1"}}) == 1
        assert store.waiting() == {}

    def test_a_deterministic_job_with_tokens_is_left_to_instances_of_its_class(self, store: JobStore) -> None:
        job_id, _ = begun(store, "class-a")

        assert strict_claim(store, "class-b") is None
        assert strict_claim(store, "class-a") == job_id

    def test_without_tokens_it_is_computed_in_whatever_class_claims_it_last(self, store: JobStore) -> None:
        job_id = submit(store, spec(deterministic=True))
        assert strict_claim(store, "class-a") == job_id
        store.reap(INSTANCE)
        assert strict_claim(store, "class-b") == job_id
        store.emit([(job_id, 2, Chunk(0, "he", (1,)))])
        store.reap(INSTANCE)

        assert strict_claim(store, "class-a") is None
        assert strict_claim(store, "class-b") == job_id

    def test_jobs_of_another_class_hide_no_job(self, store: JobStore) -> None:
        others = [submit(store, spec(deterministic=True)) for _ in range(CLAIM_LOOK + 1)]
        assert [strict_claim(store, "class-a") for _ in others] == others
        store.emit([(job_id, 1, Chunk(0, "he", (1,))) for job_id in others])
        store.reap(INSTANCE)
        mine = submit(store, spec(deterministic=True))

        assert strict_claim(store, "class-b") == mine

    def test_a_job_that_is_not_deterministic_goes_on_in_any_class(self, store: JobStore) -> None:
        job_id = submit(store)
        for epoch, numerics_class in enumerate(("class-a", "class-b", "class-a"), 1):
            taken = store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS, numerics_class=numerics_class)
            assert taken is not None
            store.emit([(job_id, epoch, Chunk(epoch - 1, "x", (1,)))])
            store.release(job_id, epoch)

        assert store.begin_anew({ROUTE: {("", "class-b")}}) == []

    def test_a_job_whose_class_is_gone_begins_anew_behind_what_was_read(self, store: JobStore) -> None:
        job_id, read = begun(store, "class-a")
        other, _ = begun(store, "class-b")

        assert [r.job_id for r in store.begin_anew({DETERMINISTIC: {("", "class-b"), ("", "class-c")}})] == [job_id]
        assert store.begin_anew({DETERMINISTIC: {("", "class-b"), ("", "class-c")}}) == []

        assert store.events({job_id: "0"}) == []
        assert strict_claim(store, "class-c") == job_id
        store.emit([(job_id, 2, Chunk(0, "HE", (7,)))])
        assert [(e.index, e.text) for e in store.events({job_id: read})] == [(0, "HE")]
        assert strict_claim(store, "class-b") == other
        assert [e.text for e in store.events({other: "0"})] == ["he"]

    def test_a_job_meant_for_somebody_begins_anew_when_that_one_computes_in_other_classes(
        self, store: JobStore
    ) -> None:
        job_id, _ = begun(store, "class-a", meant_for="node-b")
        elsewhere = {("", "class-a"), ("node-c", "class-a"), ("", "class-b")}

        assert store.begin_anew({DETERMINISTIC: elsewhere}) == []
        assert store.begin_anew({DETERMINISTIC: {*elsewhere, ("node-b", "class-a")}}) == []
        assert [r.job_id for r in store.begin_anew({DETERMINISTIC: {*elsewhere, ("node-b", "class-b")}})] == [job_id]

    def test_only_waiting_jobs_of_the_named_routes_begin_anew(self, store: JobStore) -> None:
        ended, _ = begun(store, "class-a")
        store.cancel(ended)
        running, _ = begun(store, "class-a")
        assert strict_claim(store, "class-a") == running
        waiting, _ = begun(store, "class-a")

        assert store.begin_anew({ROUTE: {("", "class-b")}, DETERMINISTIC: {("", "class-a")}}) == []
        assert [r.job_id for r in store.begin_anew({DETERMINISTIC: {("", "class-b")}})] == [waiting]
        assert [len(store.events({job_id: "0"})) for job_id in (ended, running, waiting)] == [2, 1, 0]

    def test_many_jobs_meant_for_others_hide_no_job(self, store: JobStore) -> None:
        for _ in range(2 * CLAIM_LOOK + 1):
            submit(store, spec(meant_for="other-1"))
        mine = submit(store)

        assert claim(store)[0] == mine

    def test_a_job_that_begins_as_one_held_comes_first(self, store: JobStore) -> None:
        common = "the same beginning of many a prompt, " * 20
        first = submit(store, spec("something quite different, " * 20))
        kin = submit(store, spec(common + "one"))
        held = prefix_hashes(spec(common + "two"))

        taken = store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS, prefixes=held)

        assert taken is not None
        assert taken.job_id == kin
        assert claim(store)[0] == first

    def test_the_longer_common_beginning_wins(self, store: JobStore) -> None:
        text = "".join(f"sentence {n} of a long text. " for n in range(100))
        submit(store, spec(text[:300] + "x" * 900))
        near = submit(store, spec(text[:1100] + "y" * 100))

        taken = store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS, prefixes=prefix_hashes(spec(text)))

        assert taken is not None
        assert taken.job_id == near

    def test_no_job_is_passed_over_for_ever(self, store: JobStore) -> None:
        common = "the same beginning of many a prompt, " * 20
        patient = submit(store, spec("something quite different, " * 20))
        held = prefix_hashes(spec(common))
        claimed = []
        for number in range(MAX_PASSED + 1):
            submit(store, spec(f"{common}{number}"))
            taken = store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS, prefixes=held)
            assert taken is not None
            claimed.append(taken.job_id)

        assert claimed.index(patient) == MAX_PASSED

    def test_an_interactive_job_comes_before_a_bulk_one_with_a_held_beginning(self, store: JobStore) -> None:
        common = "the same beginning of many a prompt, " * 20
        submit(store, spec(common, lane="bulk"))
        interactive = submit(store, spec("hello"))

        taken = store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS, prefixes=prefix_hashes(spec(common)))

        assert taken is not None
        assert taken.job_id == interactive

    def test_jobs_meant_for_others_do_not_let_a_later_one_of_another_route_go_first(self, store: JobStore) -> None:
        for _ in range(CLAIM_LOOK):
            submit(store, spec(meant_for="other-1"))
        first = submit(store)
        submit(store, spec(deterministic=True))

        taken = store.claim((DETERMINISTIC, ROUTE), INSTANCE, NODE, lease_ms=LEASE_MS)

        assert taken is not None
        assert taken.job_id == first

    def test_a_claim_looks_no_further_for_a_held_beginning_when_it_serves_two_routes(self, store: JobStore) -> None:
        common = "the same beginning of many a prompt, " * 20
        first = submit(store)
        for _ in range(CLAIM_LOOK - 1):
            submit(store)
        submit(store, spec(common, deterministic=True))

        taken = store.claim(
            (DETERMINISTIC, ROUTE), INSTANCE, NODE, lease_ms=LEASE_MS, prefixes=prefix_hashes(spec(common))
        )

        assert taken is not None
        assert taken.job_id == first

    def test_nothing_ready_gives_nothing(self, store: JobStore) -> None:
        assert store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS) is None

    def test_a_claim_carries_the_request_and_a_growing_epoch(self, store: JobStore) -> None:
        submit(store, spec("carry me"))
        first = store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS)
        assert first is not None
        store.release(first.job_id, first.epoch)

        second = store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS)

        assert second is not None
        assert JobSpec.model_validate_json(second.spec_json).prompt == "carry me"
        assert second.epoch > first.epoch

    def test_tokens_and_end_stand_in_the_stream_in_order(self, store: JobStore) -> None:
        job_id, epoch = submit(store), claim(store)[1]

        replies = store.emit([(job_id, epoch, Chunk(0, "he", (1,))), (job_id, epoch, Chunk(1, "llo", (2, 3)))])
        assert store.finish(job_id, epoch, DONE, Chunk(3, "!", (4,)))

        events = store.events({job_id: "0"})
        assert replies == [EmitReply.OK, EmitReply.OK]
        assert [(e.index, e.text, e.tokens) for e in events[:-1]] == [
            (0, "he", (1,)),
            (1, "llo", (2, 3)),
            (3, "!", (4,)),
        ]
        assert events[-1].end is JobState.SUCCEEDED
        assert (status := store.status(job_id))
        assert status.tokens == 4

    def test_reasoning_and_tool_calls_stand_beside_the_text(self, store: JobStore) -> None:
        job_id, epoch = submit(store), claim(store)[1]
        begun, more = CallDelta(0, "{", "c1", "look_up"), CallDelta(0, '"a": "\u00e9"}')

        store.emit(
            [(job_id, epoch, Chunk(0, "", (1,), "Hm. ")), (job_id, epoch, Chunk(1, "Hi", (2,), "So.", (begun,)))]
        )
        store.finish(job_id, epoch, DONE, Chunk(2, "", (), "", (more,)))

        events = store.events({job_id: "0"})
        assert [(e.text, e.reasoning, e.calls) for e in events[:-1]] == [
            ("", "Hm. ", ()),
            ("Hi", "So.", (begun,)),
            ("", "", (more,)),
        ]

    def test_logprobs_stand_beside_their_tokens_to_the_last_bit(self, store: JobStore) -> None:
        job_id, epoch = submit(store), claim(store)[1]
        top = (Logprob(token=7, text="\u00e9", logprob=-1 / 3), Logprob(token=8, text='"\n', logprob=-2e-300))
        first, second = (
            TokenLogprob(token=7, text="\u00e9", logprob=-1 / 3, top=top),
            TokenLogprob(token=8, logprob=-0.0),
        )

        store.emit([(job_id, epoch, Chunk(0, "\u00e9", (7,), logprobs=(first,))), (job_id, epoch, Chunk(1, "b", (9,)))])
        store.finish(job_id, epoch, DONE, Chunk(2, "", (8, 7), logprobs=(second, first)))

        events = store.events({job_id: "0"})
        assert [e.logprobs for e in events] == [(first,), (), (second, first), ()]

    def test_a_chunk_sent_twice_stands_once(self, store: JobStore) -> None:
        job_id, epoch = submit(store), claim(store)[1]

        store.emit([(job_id, epoch, Chunk(0, "he", (1,)))])
        store.emit([(job_id, epoch, Chunk(0, "he", (1,)))])

        assert [e.text for e in store.events({job_id: "0"})] == ["he"]

    def test_a_chunk_behind_a_gap_is_refused(self, store: JobStore) -> None:
        job_id, epoch = submit(store), claim(store)[1]
        store.emit([(job_id, epoch, Chunk(0, "he", (1,)))])

        assert store.emit([(job_id, epoch, Chunk(2, "lo", (3,)))]) == [EmitReply.LOST]
        assert [e.text for e in store.events({job_id: "0"})] == ["he"]

    def test_reading_resumes_after_a_given_event(self, store: JobStore) -> None:
        job_id, epoch = submit(store), claim(store)[1]
        store.emit([(job_id, epoch, Chunk(0, "a", (1,))), (job_id, epoch, Chunk(1, "b", (2,)))])
        first = store.events({job_id: "0"})[0]

        rest = store.events({job_id: first.id})

        assert [e.text for e in rest] == ["b"]

    def test_a_blocked_read_wakes_for_a_new_event(self, store: JobStore) -> None:
        job_id, epoch = submit(store), claim(store)[1]
        timer = threading.Timer(0.05, lambda: store.emit([(job_id, epoch, Chunk(0, "late", (1,)))]))
        timer.start()

        events = store.events({job_id: "0"}, block_ms=2000)

        timer.join()
        assert [e.text for e in events] == ["late"]

    def test_a_finished_job_keeps_its_outcome(self, store: JobStore) -> None:
        job_id, epoch = submit(store), claim(store)[1]

        store.finish(job_id, epoch, DONE)

        status = store.status(job_id)
        assert status is not None
        assert status.outcome == DONE

    def test_finishing_again_with_the_same_epoch_changes_nothing(self, store: JobStore) -> None:
        job_id, epoch = submit(store), claim(store)[1]
        store.finish(job_id, epoch, DONE)

        assert store.finish(job_id, epoch, DONE)
        assert len(store.events({job_id: "0"})) == 1

    def test_a_lapsed_lease_returns_the_job_to_the_front(self, store: JobStore, lapse: Lapse) -> None:
        job_id = submit(store)
        claim(store, lease_ms=50)
        submit(store)
        lapse(60)

        reaped = store.reap()

        assert [(r.job_id, r.state) for r in reaped] == [(job_id, JobState.QUEUED)]
        assert claim(store)[0] == job_id

    def test_a_renewed_lease_does_not_lapse(self, store: JobStore, lapse: Lapse) -> None:
        job_id = submit(store)
        _, epoch = claim(store, lease_ms=50)
        store.renew([(job_id, epoch)], lease_ms=LEASE_MS)
        lapse(60)

        assert store.reap() == []
        assert state(store, job_id) is JobState.RUNNING

    def test_late_writes_of_a_lost_lease_are_refused(self, store: JobStore, lapse: Lapse) -> None:
        job_id = submit(store)
        _, old = claim(store, lease_ms=50)
        lapse(60)
        store.reap()

        while_queued = store.emit([(job_id, old, Chunk(0, "ghost", (9,)))])
        _, new = claim(store)

        assert while_queued == [EmitReply.LOST]
        assert store.emit([(job_id, old, Chunk(0, "ghost", (9,)))]) == [EmitReply.LOST]
        assert store.renew([(job_id, old)], lease_ms=LEASE_MS) == {job_id: "lost"}
        assert not store.finish(job_id, old, DONE)
        assert not store.release(job_id, old)
        assert store.events({job_id: "0"}) == []
        assert store.finish(job_id, new, DONE)

    def test_a_job_that_loses_its_instance_too_often_is_dead(self, store: JobStore) -> None:
        job_id = submit(store)
        for _ in range(MAX_ATTEMPTS):
            claim(store)
            store.reap(INSTANCE)

        status = store.status(job_id)
        assert status is not None
        assert status.state is JobState.DEAD
        assert status.outcome is not None
        assert status.outcome.error is not None
        assert status.outcome.error["code"] == "job_dead"
        assert store.events({job_id: "0"})[-1].end is JobState.DEAD

    def test_a_job_keeps_why_it_lost_its_instance(self, store: JobStore) -> None:
        job_id = submit(store)
        claim(store)
        cause = Cause(instance=INSTANCE, reason="was killed by SIGABRT", signal="SIGABRT", tail=("one", "GGML_ASSERT"))

        store.reap(INSTANCE, cause)

        status = store.status(job_id)
        assert status is not None
        assert (status.state, status.attempts, status.cause) == (JobState.QUEUED, 1, cause)

    def test_a_lapsed_lease_names_the_instance_that_fell_silent(self, store: JobStore, lapse: Lapse) -> None:
        job_id = submit(store)
        for number in range(MAX_ATTEMPTS):
            claim(store, f"m.x-{number}", lease_ms=50)
            lapse(60)
            store.reap()
            status = store.status(job_id)
            assert status is not None
            assert status.cause is not None
            assert (status.cause.instance, "fell silent" in status.cause.reason) == (f"m.x-{number}", True)

        assert status is not None
        assert status.outcome is not None
        assert status.outcome.error is not None
        assert "m.x-2 fell silent" in status.outcome.error["message"]
        assert status.outcome.error["data"]["instance"] == "m.x-2"

    def test_a_dead_job_says_how_its_last_instance_died(self, store: JobStore) -> None:
        job_id = submit(store)
        for number in range(MAX_ATTEMPTS):
            claim(store)
            cause = Cause(
                instance=INSTANCE, reason=f"death {number}", signal="SIGSEGV", tail=("100% {instance}", "bye")
            )
            store.reap(INSTANCE, cause)

        status = store.status(job_id)
        assert status is not None
        assert status.outcome is not None
        assert status.outcome.error is not None
        error = errors.PacktrainError.from_wire(status.outcome.error)
        assert isinstance(error, errors.JobDead)
        assert f"{INSTANCE} death 2; last words: bye; it is not tried again" in error.message
        assert error.data == {
            "attempts": MAX_ATTEMPTS,
            "instance": INSTANCE,
            "cause": "death 2; last words: bye",
            "exit_code": None,
            "signal": "SIGSEGV",
            "tail": ["100% {instance}", "bye"],
        }

    def test_a_long_tail_is_cut_to_its_last_lines(self, store: JobStore) -> None:
        job_id = submit(store)
        claim(store)

        store.reap(INSTANCE, Cause(reason="x", tail=tuple(f"{n} " + "y" * 400 for n in range(100))))

        status = store.status(job_id)
        assert status is not None
        assert status.cause is not None
        assert sum(map(len, status.cause.tail)) == MAX_TAIL_CHARS
        assert status.cause.tail[-1].startswith("99 ")

    def test_a_job_that_lost_two_instances_runs_alone(self, store: JobStore) -> None:
        suspect, other = submit(store), submit(store)
        for _ in range(SUSPECT_ATTEMPTS):
            claim(store, "first")
            store.reap(InstanceId("first"))
        # An instance that holds a lease neither gets the suspect nor anything past it.
        neighbour = submit(store, job_id="neighbour")
        assert claim(store, "second")[0] == suspect
        assert store.claim(ROUTES, InstanceId("second"), NODE, lease_ms=LEASE_MS) is None
        assert claim(store, "third")[0] == other
        store.reap(InstanceId("second"))
        assert state(store, suspect) is JobState.DEAD

        assert claim(store, "third")[0] == neighbour

    def test_a_suspect_is_waited_for_until_the_instance_is_empty(self, store: JobStore) -> None:
        suspect = submit(store)
        for _ in range(SUSPECT_ATTEMPTS):
            claim(store, "first")
            store.reap(InstanceId("first"))
        store.cancel(suspect)
        other, epoch = submit(store), claim(store)[1]
        suspect = submit(store)
        for _ in range(SUSPECT_ATTEMPTS):
            claim(store, "first")
            store.reap(InstanceId("first"))

        assert store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS) is None
        store.finish(other, epoch, DONE)
        assert claim(store)[0] == suspect

    def test_reaping_a_gone_instance_takes_only_its_jobs(self, store: JobStore) -> None:
        mine, other = submit(store), submit(store)
        claim(store, "gone")
        claim(store, "alive")

        reaped = store.reap(InstanceId("gone"))

        assert [r.job_id for r in reaped] == [mine]
        assert state(store, other) is JobState.RUNNING

    def test_a_claim_tells_the_trace_and_how_long_the_job_waited_since_it_was_put_back(
        self, store: JobStore, lapse: Lapse
    ) -> None:
        job_id, trace = JobId("a" * 32), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        store.submit(job_id, spec(), max_waiting=10, traceparent=trace)
        lapse(60)
        first = store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS)
        assert first
        lapse(60)
        store.release(job_id, first.epoch)
        lapse(20)
        second = store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS)
        assert second

        status = store.status(job_id)
        assert status
        assert first.traceparent == second.traceparent == status.traceparent == trace
        assert 60 <= first.waited_ms == first.queued_ms
        assert 20 <= second.waited_ms <= second.queued_ms - 120

    def test_a_released_job_waits_again_without_an_attempt(self, store: JobStore) -> None:
        job_id = submit(store)
        _, epoch = claim(store)

        assert store.release(job_id, epoch)

        status = store.status(job_id)
        assert status is not None
        assert (status.state, status.attempts) == (JobState.QUEUED, 0)
        assert claim(store)[0] == job_id

    def test_cancelling_a_waiting_job_ends_it_at_once(self, store: JobStore) -> None:
        job_id = submit(store)

        assert store.cancel(job_id) is JobState.CANCELLED
        assert store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS) is None
        assert store.events({job_id: "0"})[-1].end is JobState.CANCELLED

    def test_cancelling_a_running_job_tells_its_instance(self, store: JobStore) -> None:
        job_id = submit(store)
        _, epoch = claim(store)

        assert store.cancel(job_id) is JobState.RUNNING
        assert store.emit([(job_id, epoch, Chunk(0, "x", (1,)))]) == [EmitReply.CANCEL]
        assert store.renew([(job_id, epoch)], lease_ms=LEASE_MS) == {job_id: "cancel"}

    def test_a_cancelled_job_does_not_run_again_after_its_instance_died(self, store: JobStore) -> None:
        job_id = submit(store)
        claim(store)
        store.cancel(job_id)

        store.reap(INSTANCE)

        assert state(store, job_id) is JobState.CANCELLED

    def test_a_cancelled_job_does_not_run_again_after_a_drain(self, store: JobStore) -> None:
        job_id = submit(store)
        _, epoch = claim(store)
        store.cancel(job_id)

        store.release(job_id, epoch)

        assert state(store, job_id) is JobState.CANCELLED

    def test_cancelling_an_ended_job_changes_nothing(self, store: JobStore) -> None:
        job_id, epoch = submit(store), claim(store)[1]
        store.finish(job_id, epoch, DONE)

        assert store.cancel(job_id) is JobState.SUCCEEDED
        assert state(store, job_id) is JobState.SUCCEEDED

    def test_a_job_that_is_forgotten_before_it_begins_leaves_its_id_free(self, store: JobStore) -> None:
        job_id = submit(store, spec("first", expires_in_ms=60_000), job_id="mine")

        assert store.cancel(job_id, forget=True) is JobState.CANCELLED
        assert store.status(job_id) is None
        assert store.events({job_id: "0"}) == []
        assert store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS) is None

        submit(store, spec("another"), job_id="mine")
        assert claim(store)[0] == job_id
        assert store.events({job_id: "0"}) == []

    def test_a_job_that_has_begun_is_not_forgotten(self, store: JobStore) -> None:
        running, released = submit(store), submit(store)
        epochs = dict([claim(store), claim(store)])
        store.release(released, epochs[released])

        assert store.cancel(running, forget=True) is JobState.RUNNING
        assert store.cancel(released, forget=True) is JobState.CANCELLED
        assert (state(store, running), state(store, released)) == (JobState.RUNNING, JobState.CANCELLED)

    def test_cancelling_an_unknown_job_says_so(self, store: JobStore) -> None:
        assert store.cancel(JobId("nosuch")) is None

    def test_a_waiting_job_past_its_deadline_expires(self, store: JobStore, lapse: Lapse) -> None:
        job_id = submit(store, spec(expires_in_ms=50))
        lapse(60)

        reaped = store.reap()

        assert [(r.job_id, r.state) for r in reaped] == [(job_id, JobState.EXPIRED)]
        assert store.waiting() == {}

    def test_a_claim_skips_a_job_past_its_deadline(self, store: JobStore, lapse: Lapse) -> None:
        late = submit(store, spec(expires_in_ms=50))
        good = submit(store)
        lapse(60)

        assert claim(store)[0] == good
        assert state(store, late) is JobState.EXPIRED

    def test_a_job_may_run_so_long_over_all_attempts(self, store: JobStore, lapse: Lapse) -> None:
        job_id = submit(store, spec(max_run_ms=300))
        lapse(310)  # waiting does not count
        first = store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS)
        lapse(30)
        store.reap(INSTANCE)
        second = store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS)
        lapse(280)
        assert store.reap() == []  # its instance ends it
        store.reap(INSTANCE)
        store.reap()

        assert first is not None
        assert first.run_left_ms == 300
        assert second is not None
        assert second.run_left_ms is not None
        assert second.run_left_ms <= 270
        assert state(store, job_id) is JobState.EXPIRED
        status = store.status(job_id)
        assert status is not None
        assert status.outcome is not None
        assert status.outcome.error is not None
        assert "max_run" in status.outcome.error["message"]

    def test_a_claim_skips_a_job_that_may_run_no_longer(self, store: JobStore, lapse: Lapse) -> None:
        late = submit(store, spec(max_run_ms=40, expires_in_ms=LEASE_MS))
        store.release(*claim(store))
        good = submit(store)
        lapse(50)

        assert claim(store)[0] == good
        status = store.status(late)
        assert status is not None
        assert status.outcome is not None
        assert status.outcome.error is not None
        assert "max_run" in status.outcome.error["message"]

    def test_of_two_deadlines_the_one_that_passed_is_named(self, store: JobStore, lapse: Lapse) -> None:
        job_id = submit(store, spec(max_run_ms=LEASE_MS, expires_in_ms=40))
        store.release(*claim(store))
        lapse(50)
        store.reap()

        status = store.status(job_id)
        assert status is not None
        assert status.outcome is not None
        assert status.outcome.error is not None
        assert "expires_in" in status.outcome.error["message"]

    def test_rejecting_a_model_fails_its_waiting_jobs_with_the_cause(self, store: JobStore) -> None:
        job_id = submit(store)

        failed = store.reject(ROUTE, errors.ModelLoadFailed("the disk is full; make room"))

        status = store.status(job_id)
        assert failed == 1
        assert status is not None
        assert status.outcome is not None
        assert status.outcome.error is not None
        assert status.outcome.error["message"] == "the disk is full; make room"

    def test_status_of_an_unknown_job_is_none(self, store: JobStore) -> None:
        assert store.status(JobId("nosuch")) is None


class TestMemoryJobs(JobStoreContract):
    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def store(self, clock: FakeClock) -> JobStore:
        return MemoryJobs(clock, {MODEL: MODEL, "little": MODEL})

    @pytest.fixture
    def lapse(self, clock: FakeClock) -> Lapse:
        return clock.advance


class TestRedisJobs(JobStoreContract):
    @pytest.fixture
    def store(self, redis: Redis) -> JobStore:
        RedisRegistry(redis).put_models([model_info(), model_info("little", alias_of=MODEL)])
        return RedisJobs(redis)

    @pytest.fixture
    def lapse(self) -> Lapse:
        return lambda milliseconds: time.sleep(milliseconds / 1000)  # the server's clock is the real one

    def test_scripts_survive_a_forgotten_script_cache(self, store: JobStore, redis: Redis) -> None:
        job_id = submit(store)
        redis.script_flush()
        _, epoch = claim(store)
        redis.script_flush()

        assert store.emit([(job_id, epoch, Chunk(0, "a", (1,)))]) == [EmitReply.OK]

    def test_a_job_whose_stream_expired_while_it_waited_begins_anew(self, store: JobStore, redis: Redis) -> None:
        job_id, epoch = submit(store), claim(store)[1]
        store.emit([(job_id, epoch, Chunk(0, "abc", (1, 2, 3)))])
        store.release(job_id, epoch)
        redis.delete(keys.out(job_id))

        _, epoch = claim(store)
        store.emit([(job_id, epoch, Chunk(0, "a", (1,)))])

        assert [event.text for event in store.events({job_id: "0"})] == ["a"]
        assert redis.ttl(keys.out(job_id)) > 0

    def test_a_job_from_before_there_were_routes_waits_on_its_models_own(self, store: JobStore, redis: Redis) -> None:
        moved, cancelled, late = submit(store), submit(store), submit(store, spec(expires_in_ms=50))
        for job_id in (moved, cancelled, late):
            redis.hdel(keys.job(job_id), "route")
        time.sleep(0.06)
        store.cancel(cancelled)
        claim(store)

        assert {(r.job_id, r.route) for r in store.reap(INSTANCE)} == {(moved, ROUTE), (late, ROUTE)}
        assert store.waiting() == {ROUTE: 1}
        assert claim(store)[0] == moved

    def test_a_bell_is_taken_away_only_while_more_wait_than_jobs_are_ready(self, store: JobStore, redis: Redis) -> None:
        redis.lpush(keys.model_queue(ROUTE), "last", "middle", "first")  # heard from the other end
        submit(store, spec())
        submit(store, spec(lane="bulk"))

        assert [store.unring(ROUTE), store.unring(ROUTE)] == [True, False]
        assert redis.lrange(keys.model_queue(ROUTE), 0, -1) == ["first", "middle"]

    def test_a_claim_says_which_routes_have_more_jobs_than_bells(self, store: JobStore, redis: Redis) -> None:
        for number in range(6):
            submit(store, spec(deterministic=number % 2 == 0))
        redis.rpush(keys.model_queue(ROUTE), "bell", "bell", "bell")

        unrung = []
        for _ in range(4):
            taken = store.claim((DETERMINISTIC, ROUTE), INSTANCE, NODE, lease_ms=LEASE_MS)
            assert taken is not None
            unrung.append(taken.unrung)
            redis.lpop(keys.model_queue(ROUTE))

        assert unrung == [(DETERMINISTIC,), (DETERMINISTIC,), (DETERMINISTIC, ROUTE), (DETERMINISTIC, ROUTE)]
        redis.delete(keys.model_queue(ROUTE))

    def test_a_claim_reads_two_records_at_most_however_many_it_chooses_from(
        self, store: JobStore, redis: Redis
    ) -> None:
        common = "x" * 600
        submit(store, spec("other " * 100))
        held = [submit(store, spec(f"{common} {number}")) for number in range(CLAIM_LOOK)]
        redis.config_resetstat()
        taken = store.claim(ROUTES, INSTANCE, NODE, lease_ms=LEASE_MS, prefixes=prefix_hashes(spec(common)))

        assert taken is not None
        assert taken.job_id == held[0]
        stats = cast(dict[str, dict[str, int]], redis.info("commandstats"))
        # Two records, and the prefixes of all that it looks at.
        assert stats["cmdstat_hmget"]["calls"] == 3

    def test_nothing_but_the_record_and_stream_is_left_of_an_ended_job(self, store: JobStore, redis: Redis) -> None:
        job_id, _ = begun(store, "class-a")
        store.begin_anew({DETERMINISTIC: {("", "class-b")}})
        assert strict_claim(store, "class-b") == job_id
        store.emit([(job_id, 2, Chunk(0, "he", (1,)))])
        store.release(job_id, 2)
        assert strict_claim(store, "class-b") == job_id
        store.finish(job_id, 3, DONE)
        assert strict_claim(store, "class-b") is None

        left = {str(key) for key in redis.scan_iter("pt:*")} - keys.PERMANENT
        models = {keys.model(MODEL), keys.model(ModelId("little"))}
        assert left == {
            keys.job(job_id),
            keys.out(job_id),
            keys.rate(DETERMINISTIC),
            keys.FAIR_PREFIX + "tiny:i",
            keys.FIRSTS,  # numbers only
            keys.ENDS,  # figures, until they are counted
            keys.tally(MODEL, "interactive"),
            *models,
        }
        assert redis.zrange(keys.FAIR_PREFIX + "tiny:i", 0, -1) == ["", "default"]  # the clock, and who is ahead of it

    def test_who_is_no_longer_ahead_of_the_clock_leaves_no_trace(self, store: JobStore, redis: Redis) -> None:
        for number in range(5):
            submit(store, spec(user=f"u{number}", params={"max_tokens": 1}))
        for _ in range(5):
            claim(store)
        submit(store, spec(user="later", params={"max_tokens": 1000}))
        claim(store)
        submit(store, spec(user="later"))
        claim(store)

        assert redis.zrange(keys.FAIR_PREFIX + "tiny:i", 0, -1) == ["", "later"]

    def test_jobs_from_before_there_were_tags_come_before_those_that_have_one(
        self, store: JobStore, redis: Redis
    ) -> None:
        old = [submit(store) for _ in range(3)]
        for order, job_id in enumerate(old, 7_000_001):
            redis.hset(keys.job(job_id), "order", order)
            redis.zadd(keys.ready(ROUTE, "interactive"), {job_id: order})
        redis.set(keys.ORDER, 7_000_003)
        redis.delete(keys.FAIR_PREFIX + "tiny:i", keys.QUEUED_PREFIX + "tiny:i")
        new = submit(store)

        assert [claim(store)[0] for _ in range(3)] == old
        store.reap(INSTANCE)
        assert [claim(store)[0] for _ in range(4)] == [*old, new]

    def test_a_count_whose_job_expired_in_the_queue_begins_anew(self, store: JobStore, redis: Redis) -> None:
        gone, there = submit(store), submit(store)
        redis.delete(keys.job(gone))

        assert claim(store)[0] == there
        assert redis.exists(keys.QUEUED_PREFIX + "tiny:i") == 0


Action = tuple[str, int, int]
_NUM_JOBS = 24  # more than a claim looks at together
_ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, _NUM_JOBS - 1), st.integers(0, 143)),
        st.tuples(st.just("submit many"), st.integers(0, _NUM_JOBS - 1), st.integers(0, 143)),
        st.tuples(st.sampled_from(["claim", "claim interactive"]), st.integers(0, 5), st.integers(0, 2)),
        st.tuples(
            st.sampled_from(["emit", "finish", "release", "cancel", "gone", "stale", "strand", "anew", "reject"]),
            st.integers(0, _NUM_JOBS - 1),
            st.integers(0, 2),
        ),
    ),
    max_size=40,
)
_BEGINNINGS = ("", "one beginning of many a prompt. " * 20, "another, much longer beginning of a prompt. " * 40)
_FLEET = (  # instance, node, what it serves, in which numerics class
    (InstanceId("i0"), NodeId("n1"), ROUTES, "fast"),
    (InstanceId("i1"), NodeId("n1"), (DETERMINISTIC, ROUTE), "strict"),
    (InstanceId("i2"), NodeId("n2"), (DETERMINISTIC, ROUTE), "strict too"),
)


def _spec(kind: int) -> JobSpec:
    kind, beginning = divmod(kind, 3)
    kind, user = divmod(kind, 3)
    kind, meant_for = divmod(kind, 4)
    is_deterministic, is_bulk = divmod(kind, 2)
    return spec(
        _BEGINNINGS[beginning] + "the rest",
        user=f"u{user}",
        params={"max_tokens": (10, 100, 300)[user]},
        meant_for=(None, None, "i1", "n2")[meant_for],
        deterministic=bool(is_deterministic),
        lane="bulk" if is_bulk else "interactive",
    )


def _play(store: JobStore, actions: list[Action]) -> list[object]:
    """Play actions on a store; everything it answers, and every job's record at the end, without times."""
    held: dict[JobId, int] = {}
    stale: dict[JobId, int] = {}
    seen: list[object] = []
    for name, number, worker in actions:
        job_id = JobId(f"j{number}")
        instance, node, routes, numerics_class = _FLEET[worker % 3]
        epoch = held.get(job_id, 0)
        match name:
            case "submit" | "submit many":
                for other in range(number, _NUM_JOBS if name == "submit many" else number + 1):
                    try:
                        seen.append(store.submit(JobId(f"j{other}"), _spec(worker), max_waiting=100))
                    except errors.IdempotencyConflict as error:
                        seen.append(error.code)
            case "claim" | "claim interactive":
                prefixes = [*prefix_hashes(spec(_BEGINNINGS[number // 2]))][: 2 if number % 2 else None]
                taken = store.claim(
                    routes, instance, node, lease_ms=LEASE_MS, numerics_class=numerics_class, prefixes=prefixes,
                    bulk=name == "claim",
                )  # fmt: skip
                seen.append(taken and (taken.job_id, taken.epoch, taken.attempts, taken.route))
                if taken:
                    stale[taken.job_id] = held.get(taken.job_id, 0)
                    held[taken.job_id] = taken.epoch
            case "emit":
                seen.append(store.emit([(job_id, epoch, Chunk(0, "x", (1,)))]))
            case "finish":
                seen.append(store.finish(job_id, epoch, DONE))
            case "release":
                seen.append(store.release(job_id, epoch))
            case "cancel":
                seen.append(store.cancel(job_id))
            case "gone":
                seen.append(sorted((r.job_id, r.state) for r in store.reap(instance)))
            case "reject":
                seen.append(store.reject(routes[0], errors.ModelLoadFailed("it is broken")))
            case "strand":
                seen.append(store.strand({ROUTE: {"i1"}, DETERMINISTIC: {f"n{worker}"}} if worker else {ROUTE: set()}))
            case "anew":
                seen.append(
                    sorted(r.job_id for r in store.begin_anew({route: {("", numerics_class)} for route in routes}))
                )
            case "stale":
                old = stale.get(job_id, 0)
                seen.append((store.emit([(job_id, old, Chunk(5, "y", (2,)))]), store.finish(job_id, old, DONE)))
    seen.append(store.waiting())
    for number in range(_NUM_JOBS):
        status = store.status(JobId(f"j{number}"))
        seen.append(status and (status.state, status.epoch, status.attempts, status.cancel_requested, status.cause))
        seen.append([(e.text, e.end) for e in store.events({JobId(f"j{number}"): "0"})])
    return seen


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=_ACTIONS)
def test_the_twin_and_the_server_agree_on_any_sequence_of_steps(redis: Redis, actions: list[Action]) -> None:
    redis.flushdb()
    RedisRegistry(redis).put_models([model_info()])
    clock: Callable[[], int] = FakeClock()

    on_server = _play(RedisJobs(redis), actions)
    in_memory = _play(MemoryJobs(clock, {MODEL: MODEL}), actions)

    assert on_server == in_memory
