"""How long a job holds a slot, from jobs that come and go."""

from __future__ import annotations

import pytest

from packtrain.broker.rates import NEWEST_RUN
from packtrain.workers.job_times import JobTimes

pytestmark = pytest.mark.unit


def test_nothing_is_known_before_the_first_job() -> None:
    assert JobTimes().seconds(100) == 0


def test_before_the_first_job_has_ended_it_is_how_long_the_oldest_has_run() -> None:
    times = JobTimes()
    times.begin(10)
    times.begin(14)

    assert times.seconds(30) == 20


def test_jobs_that_ended_are_smoothed_and_the_newest_counts_a_tenth() -> None:
    times = JobTimes()
    first, second = times.begin(0), times.begin(0)
    times.end(first, 10)
    times.end(second, 20)
    times.begin(20)

    assert times.seconds(1000) == pytest.approx(10 + NEWEST_RUN * 10)


def test_a_job_that_was_given_back_says_nothing() -> None:
    times = JobTimes()
    times.end(times.begin(0), 99, counts=False)

    assert times.seconds(100) == 0
