"""Fair queueing and rates, as sums."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.fairness import DEFAULT_OUTPUT, FairTags, cost_of
from packtrain.broker.rates import MAX_RETRY_S, MIN_RETRY_S, Rate, retry_after_s
from tests.support.factories import spec

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({}, 100 + DEFAULT_OUTPUT),
        ({"params": {"max_tokens": 7}}, 107),
        ({"params": {"max_tokens": 0, "prompt_logprobs": 0}}, 100),
        ({"kind": "embed"}, 100),
        ({"kind": "count"}, 100),
    ],
)
def test_a_job_costs_its_prompt_and_what_it_may_produce(fields: dict[str, Any], cost: int) -> None:
    assert cost_of(spec("x" * 400, **fields)) == cost


def test_no_job_is_free() -> None:
    assert cost_of(spec("x", kind="embed")) == 1


@given(
    jobs=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500)), min_size=1, max_size=60),
    start=st.integers(0, 30),
)
def test_users_with_jobs_waiting_are_served_the_same_tokens_but_for_one_job_each(
    jobs: list[tuple[str, int]], start: int
) -> None:
    tags = FairTags()
    waiting = [(tags.start(user, cost), number, user, cost) for number, (user, cost) in enumerate(jobs)]
    served: dict[str, int] = dict.fromkeys("abc", 0)
    largest = max(cost for _, cost in jobs)
    before = dict(served)
    for turn, (tag, _, user, cost) in enumerate(sorted(waiting)):
        tags.served(tag)
        if turn == start:
            before = dict(served)
        served[user] += cost
        left = {user for _, _, user, _ in sorted(waiting)[turn + 1 :]}
        if turn >= start and len(left) > 1:  # since then these had always something waiting
            got = [served[user] - before[user] for user in left]
            assert max(got) - min(got) <= 2 * largest


def test_a_user_who_comes_again_starts_at_the_clock() -> None:
    tags = FairTags()
    for _ in range(3):
        tags.start("busy", 100)
    tags.served(200.0)

    assert tags.start("new", 100) == pytest.approx(200, abs=0.01)
    assert tags.start("busy", 100) == pytest.approx(300, abs=0.01)


def test_gaps_of_jobs_that_end_together_are_those_of_the_whole_burst() -> None:
    rate = Rate()
    for burst in range(4):
        for _ in range(16):
            rate = rate.with_end(started_ms=1000 + burst * 10_000, now_ms=2600 + burst * 10_000)

    assert rate.gap_ms == pytest.approx(100, rel=0.5)
    assert rate.run_ms == 1600


@pytest.mark.parametrize(
    ("waiting", "gap_ms", "expected"),
    [(3, 10, MIN_RETRY_S), (1000, 100, 10), (1_000_000, 1000, MAX_RETRY_S), (100, None, 10)],
)
def test_a_full_queue_is_tried_again_when_a_tenth_of_it_is_served(
    waiting: int, gap_ms: float | None, expected: float
) -> None:
    assert retry_after_s(waiting, gap_ms) == expected
