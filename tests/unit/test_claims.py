"""The order of claims without a server, beside that of the job store's twin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.claims import Line
from packtrain.broker.fairness import cost_of
from packtrain.broker.ids import JobId
from packtrain.broker.memory_jobs import MemoryJobs
from tests.support.factories import INSTANCE, MODEL, NODE, ROUTES, spec

pytestmark = pytest.mark.unit

SUBMIT = st.tuples(st.sampled_from("xyz"), st.sampled_from(["interactive", "bulk"]), st.integers(1, 40))
CLAIM = st.booleans()  # whether a bulk job will do


@given(steps=st.lists(SUBMIT | CLAIM, max_size=40))
def test_a_line_gives_jobs_out_in_the_order_of_the_job_store(steps: list[tuple[str, str, int] | bool]) -> None:
    store, line = MemoryJobs(lambda: 0, {MODEL: MODEL}), Line[JobId]()
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            user, lane, most = step
            job = spec(user=user, lane=lane, params={"max_tokens": most})
            job_id = JobId(f"{number:04}")
            store.submit(job_id, job, max_waiting=100)
            line.enter(job_id, job.lane, user, cost_of(job))
        else:
            claim, taken = store.claim(ROUTES, INSTANCE, NODE, lease_ms=1000, bulk=step), line.take(bulk=step)
            assert (claim and claim.job_id) == (taken and taken[1])
    assert len(line) == sum(store.waiting().values())


def test_a_job_that_is_put_back_is_next_again() -> None:
    line = Line[str]()
    line.enter("first", "bulk", "x", 100)
    line.enter("second", "bulk", "x", 100)
    tag, job = line.take(bulk=True) or (0.0, "")
    line.put_back(job, "bulk", tag)

    assert (line.has("bulk"), line.has("interactive"), line.take(bulk=False)) == (True, False, None)
    assert [line.take(bulk=True), (line.take(bulk=True) or (0, ""))[1]] == [(tag, "first"), "second"]


def test_who_loses_his_jobs_unserved_owes_nothing() -> None:
    line = Line[str]()
    line.enter("long", "bulk", "x", 1000)

    assert list(line.clear()) == ["long"]
    assert line.enter("next", "bulk", "x", 10) < 1
