"""Counters of jobs: what an end adds to them, and what is read of them again."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker import deeds
from packtrain.broker.deeds import deeds_of, of_instances, of_unloads
from packtrain.broker.ids import InstanceId, ModelId
from packtrain.broker.outcome import Outcome, Timings, Usage
from packtrain.broker.placement import Unload
from packtrain.broker.states import InstanceState, JobState
from packtrain.broker.tally import GAPS_MS, HISTOGRAMS, LOADS_MS, Pace, Used, figures_of, tally_of, to_words, used_of
from packtrain.workers.pace import PaceMeter
from tests.support.factories import NODE, ROUTE, instance_beat

pytestmark = pytest.mark.unit

DONE = Outcome(
    state=JobState.SUCCEEDED,
    finish_reason="stop",
    usage=Usage(prompt_tokens=12, completion_tokens=3, reused_tokens=4),
    timings=Timings(queue_ms=20, first_token_ms=80, run_ms=380.5),
)


def test_an_end_counts_tokens_and_where_its_time_went() -> None:
    tally = tally_of({name: str(number) for name, number in figures_of(DONE).items()})

    assert (tally.prompt, tally.output, tally.reused, tally.whys) == (12, 3, 4, {"stop": 1})
    sums = {name: histogram.sum_us for name, histogram in tally.histograms.items()}
    assert sums == {
        "queue": 20_000, "first": 100_000, "prefill": 80_000, "decode": 300_500, "whole": 400_500, "gap": 0,
    }  # fmt: skip
    assert next(bound for bound, total in tally.histograms["first"].cumulative() if total) == "0.1"
    assert tally.histograms["decode"].cumulative()[-1] == ("+Inf", 1)


def test_a_job_that_went_on_has_no_first_token_in_its_last_attempt() -> None:
    figures = figures_of(DONE, Pace(is_resumed=True))

    assert {name.partition(":")[0] for name in figures} == {
        "prompt", "output", "reused", "why", "queue", "decode", "whole",
    }  # fmt: skip


def test_a_job_without_an_answer_counts_no_times_of_one() -> None:
    failed = Outcome(state=JobState.FAILED, timings=Timings(queue_ms=5, run_ms=2))

    assert {name.partition(":")[0] for name in figures_of(failed)} == {"queue", "whole"}


@given(st.lists(st.floats(0, 6), max_size=50))
def test_gaps_are_counted_by_the_least_bound_that_is_no_less(gaps: list[float]) -> None:
    meter, now = PaceMeter(), 100.0
    firsts = [meter.note(now)]
    for gap in gaps:
        now += gap
        firsts.append(meter.note(now))
    figures = figures_of(DONE, meter.pace)
    found = tally_of({name: str(number) for name, number in figures.items()}).histograms["gap"]

    assert firsts == [True] + [False] * len(gaps)
    assert found.count == len(gaps)
    assert found.sum_us == pytest.approx(sum(gaps) * 1e6, abs=2)
    for (bound, total), limit in zip(found.cumulative(), GAPS_MS, strict=False):
        assert float(bound) == limit / 1000
        assert (
            sum(gap < limit / 1000 - 1e-9 for gap in gaps) <= total <= sum(gap <= limit / 1000 + 1e-9 for gap in gaps)
        )


def test_figures_are_words_of_which_none_is_zero() -> None:
    assert to_words({"prompt": 3, "queue:10": 1}) == "prompt 3 queue:10 1"
    assert 0 not in figures_of(Outcome(state=JobState.FAILED)).values()


def test_fields_that_another_version_counts_are_left_out() -> None:
    tally = tally_of({"end:SUCCEEDED": "2", "end:VANISHED": "1", "queue:17": "4", "later": "1"})

    assert tally.ends == {JobState.SUCCEEDED: 2}
    assert tally.histograms["queue"].count == 0


def test_who_used_what_is_read_by_name_and_model() -> None:
    fields = {"anna m1 jobs": "2", "anna m1 prompt": "9", "anna m2 jobs": "1", "(other) m1 jobs": "5"}

    assert used_of(fields) == [
        Used("(other)", "m1", jobs=5), Used("anna", "m1", jobs=2, prompt=9), Used("anna", "m2", jobs=1),
    ]  # fmt: skip


def counted(found: list[deeds.Deed]) -> deeds.Deeds:
    total: Counter[str] = Counter()
    for deed in found:
        total.update(deed.figures)
    return deeds_of({name: str(number) for name, number in total.items()})


@pytest.mark.parametrize(
    ("state", "ready_ms", "what"),
    [
        (InstanceState.READY, 5000, {deeds.LOADED}),
        (InstanceState.LOADING, 0, set()),
        (InstanceState.FAILED, 0, {deeds.LOAD_FAILED}),
        (InstanceState.FAILED, 5000, {deeds.LOADED, deeds.CRASHED}),
        (InstanceState.STOPPED, 5000, {deeds.LOADED, deeds.UNLOADED}),
        (InstanceState.LOST, 5000, {deeds.LOADED, deeds.LOST}),
    ],
)
def test_a_record_tells_how_far_an_instance_came(state: InstanceState, ready_ms: int, what: set[str]) -> None:
    found = counted(of_instances([instance_beat(state=state, requested_ms=1000, ready_ms=ready_ms)]))

    assert found.instances == {(each, "tiny", NODE): 1 for each in what}
    assert [(model, load.sum_us) for model, load in found.loads.items()] == ([("tiny", 4e6)] if ready_ms else [])


@pytest.mark.parametrize(
    ("cost", "slots_used", "waiting", "what"),
    [
        (None, 0, (), set()),
        (1.5, 0, (), {deeds.EVICTED}),
        (1.5, 2, (), {deeds.EVICTED, deeds.SWAPPED}),
        (1.5, 0, (ROUTE,), {deeds.EVICTED, deeds.SWAPPED}),
    ],
)
def test_who_makes_room_is_evicted_and_swapped_when_it_was_wanted(
    cost: float | None, slots_used: int, waiting: tuple[str, ...], what: set[str]
) -> None:
    beat = instance_beat(slots_used=slots_used)
    unload = Unload(InstanceId(beat.instance), ModelId(beat.model), NODE, "why", cost)

    found = counted(of_unloads([unload], [beat], waiting))  # type: ignore[arg-type]

    assert found.instances == {(each, "tiny", NODE): 1 for each in what}


def test_bounds_rise() -> None:

    for bounds in (*HISTOGRAMS.values(), LOADS_MS):
        assert list(accumulate(bounds, max)) == list(bounds)
