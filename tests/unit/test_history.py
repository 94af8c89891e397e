"""The history of a fleet: what a sample holds, and how samples become curves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.history import SAMPLE_MS, Sample, TokenMeter, faults_of, percentile, sample, series
from packtrain.broker.states import InstanceState
from tests.support.factories import instance_beat

pytestmark = pytest.mark.unit


def test_tokens_per_second_are_what_was_counted_since_the_last_reading() -> None:
    meter = TokenMeter()

    assert meter.read(0, [instance_beat("a", tokens_out=500)]) is None
    assert meter.read(10_000, [instance_beat("a", tokens_out=700), instance_beat("b", tokens_out=100)]) == 30
    assert meter.read(20_000, [instance_beat("b", tokens_out=100)]) == 0


def test_an_instance_that_counts_anew_takes_nothing_away() -> None:
    meter = TokenMeter()
    meter.read(0, [instance_beat("a", tokens_out=500)])

    assert meter.read(1000, [instance_beat("a", tokens_out=20)]) == 0


@given(st.lists(st.integers(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_the_least_value_that_covers_its_part(values: list[int], part: float) -> None:
    found = percentile(values, part)

    assert found in values
    assert sum(value <= found for value in values) >= part * len(values)
    assert sum(value < found for value in values) < part * len(values)


def test_a_sample_counts_slots_of_living_instances() -> None:
    beats = [instance_beat("a", slots_used=3), instance_beat("b", slots_used=2, state=InstanceState.LOST)]
    found = sample(5, 12.5, beats, (4, 1), [100, 300, 200])

    assert (found.running, found.interactive, found.bulk, found.tokens_per_s) == (3, 4, 1, 12.5)
    assert (found.firsts, found.first_p50_ms, found.first_p95_ms) == (3, 200, 300)


def test_curves_have_means_maxima_and_gaps() -> None:
    samples = [
        Sample(at_ms=0, tokens_per_s=10, interactive=5, bulk=1, running=1, firsts=1, first_p50_ms=100,
               first_p95_ms=100),
        Sample(at_ms=15_000, tokens_per_s=30, interactive=2, bulk=9, running=2, firsts=3, first_p50_ms=500,
               first_p95_ms=900),
        Sample(at_ms=65_000, tokens_per_s=None, interactive=1),
    ]  # fmt: skip
    found = series(samples, since_ms=0, until_ms=90_000, step_ms=30_000)

    assert found.at_ms == (0, 30_000, 60_000)
    assert list(found.tokens_per_s) == [20, None, None]
    assert list(found.interactive) == [5, None, 1]
    assert list(found.bulk) == [9, None, 0]
    assert list(found.running) == [1.5, None, 0]
    assert list(found.first_p50_ms) == [400, None, None]
    assert list(found.first_p95_ms) == [900, None, None]


@given(
    st.lists(st.integers(0, 6_000_000), max_size=50, unique=True),
    st.sampled_from([15_000, 30_000, 300_000]),
    st.integers(900_000, 5_000_000),
)
def test_buckets_cover_the_time_and_hold_each_sample_once(times: list[int], step_ms: int, until_ms: int) -> None:
    since_ms = until_ms - 900_000
    found = series(
        [Sample(at_ms=at, interactive=1) for at in times], since_ms=since_ms, until_ms=until_ms, step_ms=step_ms
    )

    assert found.at_ms[0] <= since_ms < found.at_ms[0] + step_ms
    assert found.at_ms[-1] < until_ms <= found.at_ms[-1] + step_ms
    assert all(
        len(column) == len(found.at_ms) for column in (found.tokens_per_s, found.interactive, found.first_p50_ms)
    )
    for at, most in zip(found.at_ms, found.interactive, strict=True):
        assert (most is not None) == any(at <= time < at + step_ms for time in times)


def test_faults_are_instances_that_ended_by_themselves() -> None:
    beats = [
        instance_beat("a", state=InstanceState.LOST, ended_ms=9, reason="its node fell silent"),
        instance_beat("b", state=InstanceState.FAILED, ended_ms=4, reason="was killed by SIGABRT"),
        instance_beat("c", state=InstanceState.STOPPED, ended_ms=2),
        instance_beat("d"),
    ]

    assert [(fault.instance, fault.state, fault.at_ms) for fault in faults_of(beats, 10)] == [
        ("b", "FAILED", 4),
        ("a", "LOST", 9),
    ]


def test_a_sample_is_small() -> None:
    found = Sample(at_ms=1764432529123, tokens_per_s=1234.56, interactive=12345, bulk=1234567, running=123, firsts=1234,
                   first_p50_ms=12345.0, first_p95_ms=123456.0)  # fmt: skip

    assert len(found.model_dump_json()) < 250
    assert SAMPLE_MS == 15_000
