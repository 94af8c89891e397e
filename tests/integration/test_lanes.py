"""Lanes and users on a whole fleet with scripted models: who is served before whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from packtrain.broker.outcome import JobStatus
from packtrain.client import Job, JobState
from tests.support.fleets import Fleet, eventually, scripted_fleet, until_first_text

pytestmark = pytest.mark.integration

MODELS: dict[str, dict[str, Any]] = {
    "shared": {"n_slots": 4, "n_ctx": 16384, "step_ms": 10},
    "lanes": {"n_slots": 4, "reserved_slots": 1, "step_ms": 50},
    "parking": {"n_slots": 4, "n_ctx": 1024, "step_ms": 10},
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with scripted_fleet(tmp_path_factory.mktemp("home"), MODELS) as running:
        yield running


def started(status: JobStatus) -> int:
    assert status.started_ms is not None
    return status.started_ms


def finished(job: Job) -> int:
    job.result(30)
    at = job.status().finished_ms
    assert at is not None
    return at


def test_five_jobs_behind_a_thousand_of_another_user_finish_in_twice_the_time_they_take_alone(fleet: Fleet) -> None:
    slots = 4
    first = [fleet.client.submit("shared", "!long ", max_tokens=16_000) for _ in range(slots)]
    for job in first:  # hold all slots until everybody has submitted, however long that takes
        until_first_text(job)
    many = [
        fleet.client.submit("shared", f"many {number}", user="many", max_tokens=8, stream=False)
        for number in range(1000)
    ]
    few = [
        fleet.client.submit("shared", f"few {number}", user="few", max_tokens=8, stream=False) for number in range(5)
    ]
    for job in first:
        job.cancel()
    for job in few:
        job.result(60)

    begin, end = few[0].status().submitted_ms, max(started(job.status()) for job in few)
    jobs = fleet.client.jobs(1010)
    others = [job for job in jobs if job.user == "many" and job.started_ms and begin <= job.started_ms <= end]
    # Alone they are 5 jobs to serve. Here they took turns with others, of which each slot may have begun one before.
    assert len(others) <= len(few) + slots
    assert sum(job.user == "many" and not (job.started_ms and job.started_ms <= end) for job in jobs) > 900
    for waiting in many:
        waiting.cancel()


def test_an_interactive_job_has_a_slot_while_bulk_jobs_fill_the_others(fleet: Fleet) -> None:
    bulk = [fleet.client.submit("lanes", "b" * 250, lane="bulk") for _ in range(6)]
    for job in bulk[:3]:
        until_first_text(job)
    eventually(lambda: fleet.instance("lanes").slots_used == 3, "three slots at work")

    waits = [job.explain() for job in bulk[3:]]
    assert [found.position for found in waits] == [1, 2, 3]
    assert "3 of 4 slots are at work, 1 are left to interactive jobs" in waits[1].reason
    assert "runs on n1" in bulk[0].explain().reason

    assert [fleet.client.generate("lanes", f"{n}", max_tokens=1).text for n in range(3)] == ["0", "1", "2"]
    assert [job.status().state for job in bulk] == [JobState.RUNNING] * 3 + [JobState.QUEUED] * 3

    for job in bulk[:3]:
        job.cancel()
    for job in bulk[3:]:  # room for them comes back, and the bell that waited with it
        until_first_text(job)
        job.cancel()


def test_interactive_jobs_end_long_before_the_bulk_jobs_that_filled_all_slots_and_these_end_right(fleet: Fleet) -> None:
    lengths = {f"!long bulk job {number} ": 700 if number < 4 else 20 for number in range(6)}
    bulk = [fleet.client.submit("parking", p, lane="bulk", max_tokens=length) for p, length in lengths.items()]
    eventually(lambda: fleet.instance("parking").slots_used == 4, "four slots at work")
    running = [job for job in bulk if job.status().state is JobState.RUNNING]

    talk = [fleet.client.submit("parking", f"hello {n}") for n in range(6)]
    answered = [finished(job) for job in talk]

    assert len(running) == 4
    assert max(answered) < min(finished(job) for job in bulk)
    assert [job.result().text for job in talk] == [f"{n} olleh" for n in range(6)]
    for job, (prompt, length) in zip(bulk, lengths.items(), strict=True):
        whole = (prompt[::-1] * 700)[:length]
        assert (job.result().text, job.status().attempts) == (whole, 0)
        assert "".join(job.stream()) == whole  # as readers had it
    assert min(started(job.status()) for job in bulk if job not in running) >= min(finished(job) for job in running)
