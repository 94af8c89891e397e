"""Why a job is where it is: one sentence for each case, from what the broker knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.errors import JobFailed
from packtrain.broker.explain import Explanation, explain, look
from packtrain.broker.ids import JobId
from packtrain.broker.jobs import Place, ended
from packtrain.broker.memory_jobs import MemoryJobs
from packtrain.broker.outcome import JobStatus
from packtrain.broker.rates import Rate
from packtrain.broker.registry import MemoryRegistry
from packtrain.broker.states import InstanceState, JobState
from tests.support.clock import FakeClock
from tests.support.factories import DETERMINISTIC, MODEL, ROUTE, instance_beat, spec

pytestmark = pytest.mark.unit

NOW_MS = 100_000
FULL = instance_beat(n_slots=4, slots_used=4)
RATE = Rate(jobs=50, gap_ms=250, run_ms=1000, last_ms=NOW_MS)


def record(state: JobState = JobState.QUEUED, **fields: Any) -> JobStatus:
    """A job that was submitted ten seconds ago."""
    return JobStatus(
        **{"id": "job", "state": state, "model": MODEL, "route": ROUTE, "submitted_ms": NOW_MS - 10_000, **fields}
    )


def place(**fields: Any) -> Place:
    """A job that waits alone."""
    alone = {"ahead": 0, "waiting": 1, "interactive_ahead": 0, "users": 1, "own_waiting": 1, "first": "job"}
    return Place(**{**alone, "first_attempts": 0, **fields})


def why(
    status: JobStatus | None = None,
    where: Place | None = None,
    *,
    rate: Rate | None = RATE,
    instances: Sequence[InstanceBeat] = (FULL,),
    waits: dict[Any, str] | None = None,
) -> Explanation:
    return explain(status or record(), where or place(), rate, instances, waits, NOW_MS)


def test_a_job_in_a_long_row_hears_its_place_its_users_turn_and_when_it_may_begin() -> None:
    found = why(where=place(ahead=11, waiting=40, users=2, own_waiting=9))

    assert (
        found.reason == "4 of 4 slots are at work; 11 jobs are ahead of it; 2 users take turns, its own has 9 waiting"
    )
    assert (found.position, found.ahead, found.waiting) == (12, 11, 40)
    assert (found.jobs_per_s, found.eta_s) == (4, 3)


def test_interactive_jobs_stand_before_a_bulk_one() -> None:
    found = why(record(lane="bulk"), place(ahead=1, waiting=2, interactive_ahead=3))

    assert "4 jobs are ahead of it, 3 of them interactive" in found.reason
    assert (found.position, found.ahead, found.eta_s) == (2, 4, 1.25)


def test_the_next_job_begins_at_once_where_a_slot_is_free() -> None:
    found = why(instances=[instance_beat(n_slots=4, slots_used=3)], rate=None)

    assert found.reason == "it is next, and a slot is free"
    assert found.eta_s == 0


def test_a_bulk_job_does_not_count_on_slots_that_are_left_to_interactive_ones() -> None:
    busy = instance_beat(n_slots=4, reserved_slots=1, slots_used=3)

    assert why(record(lane="bulk"), instances=[busy]).reason == (
        "3 of 4 slots are at work, 1 are left to interactive jobs; it is next"
    )
    assert why(instances=[busy]).eta_s == 0


def test_without_a_measured_rate_nothing_is_guessed() -> None:
    found = why(where=place(ahead=3, waiting=4), rate=None)

    assert (found.jobs_per_s, found.eta_s) == (None, None)


def test_a_model_that_is_not_loaded_waits_for_what_the_planner_says() -> None:
    found = why(instances=[], waits={ROUTE: "needs 900 MiB, n1 has 100 MiB free"})

    assert found.reason == "tiny is not loaded: needs 900 MiB, n1 has 100 MiB free"
    assert found.eta_s is None
    assert "about to be planned" in why(instances=[], waits={}).reason
    assert "no coordinator has planned lately" in why(instances=[], waits=None).reason


def test_ended_instances_and_those_that_cannot_serve_the_route_do_not_count() -> None:
    strict = record(route=DETERMINISTIC)

    assert "is not loaded" in why(strict, waits={}).reason
    assert "is not loaded" in why(instances=[instance_beat(state=InstanceState.FAILED)], waits={}).reason
    assert "is not loaded" in why(instances=[instance_beat(model="other")], waits={}).reason


def test_a_model_on_its_way_says_where_and_since_when() -> None:
    loading = instance_beat(state=InstanceState.LOADING, requested_ms=NOW_MS - 7_000)

    assert why(instances=[loading]).reason == "tiny is loading on n1, 7 s after it was asked for"

    fetching = loading.model_copy(update={"state": InstanceState.FETCHING, "reason": "fetching 45 % of 98 MiB from n2"})
    said = "tiny is fetching on n1 (fetching 45 % of 98 MiB from n2), 7 s after it was asked for"
    assert why(instances=[fetching]).reason == said


def test_a_job_meant_for_somebody_who_is_not_there_says_so() -> None:
    assert "only n9 may run it" in why(record(meant_for="n9")).reason
    assert "only" not in why(record(meant_for="n1")).reason
    assert "only" not in why(record(meant_for="tiny-1")).reason


def test_a_suspect_waits_for_an_idle_instance_and_others_wait_for_it() -> None:
    assert "runs alone, on an instance that has nothing else to do" in why(record(attempts=2)).reason
    behind = why(where=place(ahead=1, waiting=2, first="bad", first_attempts=2))
    assert "job bad at the head of the lane has lost 2 instances" in behind.reason


def test_a_running_job_says_where_since_when_and_how_far_it_is() -> None:
    running = record(
        JobState.RUNNING, started_ms=NOW_MS - 1500, node="n1", instance="tiny-1", tokens=34, attempts=1,
        cancel_requested=True,
    )  # fmt: skip
    found = explain(running, None, None, (), None, NOW_MS)

    assert found.reason == ("it runs on n1 (tiny-1) for 1.5 s, attempt 2, 34 tokens so far; it is being cancelled")
    assert (found.since_ms, found.position, found.tokens) == (NOW_MS - 1500, None, 34)


def test_an_ended_job_says_how() -> None:
    outcome = ended(JobState.FAILED, JobFailed("the disk is full; make room"))
    failed = record(JobState.FAILED, finished_ms=NOW_MS - 2_000, outcome=outcome)
    found = explain(failed, None, None, (), None, NOW_MS)

    assert found.reason == "it ended as FAILED, 8.0 s after it was submitted: the disk is full; make room"


def test_a_job_is_looked_up_with_all_that_tells_about_it() -> None:
    clock = FakeClock(NOW_MS)
    store, registry = MemoryJobs(clock, {MODEL: MODEL}), MemoryRegistry(clock)
    for number in range(3):
        store.submit(JobId(f"j{number}"), spec(), max_waiting=10)
    registry.put_waits({ROUTE: "needs more memory"})

    found = look(store, registry, JobId("j2"))

    assert found is not None
    assert (found.position, found.waiting, found.reason) == (3, 3, "tiny is not loaded: needs more memory")
    assert look(store, registry, JobId("nosuch")) is None
