"""When an agent ends an instance that misses its deadline."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import pytest

from packtrain.broker.states import InstanceState
from packtrain.workers.supervision import (
    DRAINING_MARGIN_S,
    EXIT_THREAD_DIED,
    STARTING_S,
    WARMING_S,
    Limits,
    Observed,
    is_out_of_memory,
    verdict,
    why_ended,
)
from tests.support.factories import INSTANCE

pytestmark = pytest.mark.unit

LIMITS = Limits(load_s=600, drain_s=30, stall_s=60)
WELL = Observed(
    state=InstanceState.READY,
    state_age_s=100_000,
    report_age_s=1,
    is_busy=True,
    step_age_s=1,
    hub_age_s=1,
    broker_reachable_s=1000,
)
DEADLINES = [
    (InstanceState.STARTING, STARTING_S, "did not start"),
    (InstanceState.LOADING, LIMITS.load_s, "PACKTRAIN_LOAD_TIMEOUT_S"),
    (InstanceState.WARMING, WARMING_S, "first token"),
    (InstanceState.DRAINING, LIMITS.drain_s + DRAINING_MARGIN_S, "draining"),
]


@pytest.mark.parametrize(("state", "limit_s", "reason"), DEADLINES)
def test_an_instance_past_the_deadline_of_its_state_must_end(state: InstanceState, limit_s: float, reason: str) -> None:
    seen = replace(WELL, state=state, state_age_s=limit_s + 1)

    assert reason in (verdict(seen, LIMITS) or "")


@pytest.mark.parametrize(("state", "limit_s", "reason"), DEADLINES)
def test_an_instance_within_the_deadline_of_its_state_goes_on(
    state: InstanceState, limit_s: float, reason: str
) -> None:
    assert verdict(replace(WELL, state=state, state_age_s=limit_s), LIMITS) is None


def test_a_ready_instance_may_live_for_ever() -> None:
    assert verdict(WELL, LIMITS) is None


def test_a_ready_instance_that_reports_no_more_must_end() -> None:
    assert "has not reported for 61 s" in (verdict(replace(WELL, report_age_s=61), LIMITS) or "")


def test_a_busy_engine_without_a_sign_of_life_must_end() -> None:
    assert "no sign of life of its engine for 61 s" in (verdict(replace(WELL, step_age_s=61), LIMITS) or "")


def test_an_idle_engine_may_sleep() -> None:
    assert verdict(replace(WELL, is_busy=False, step_age_s=100_000), LIMITS) is None


def test_a_consumer_loop_that_stands_still_must_end() -> None:
    assert "consumer loop" in (verdict(replace(WELL, hub_age_s=61), LIMITS) or "")


def test_a_consumer_loop_may_stand_still_while_the_broker_is_away() -> None:
    assert verdict(replace(WELL, hub_age_s=100_000, broker_reachable_s=0), LIMITS) is None


@pytest.mark.parametrize("state", [InstanceState.STARTING, InstanceState.LOADING, InstanceState.WARMING])
def test_silence_before_ready_is_judged_only_by_the_deadline_of_the_state(state: InstanceState) -> None:
    seen = replace(WELL, state=state, state_age_s=1, report_age_s=1000, step_age_s=1000, hub_age_s=1000)

    assert verdict(seen, LIMITS) is None


@pytest.mark.parametrize(
    "state", [InstanceState.REQUESTED, InstanceState.STOPPED, InstanceState.FAILED, InstanceState.LOST]
)
def test_an_instance_without_a_process_is_not_judged(state: InstanceState) -> None:
    seen = replace(WELL, state=state, report_age_s=1e6, step_age_s=1e6, hub_age_s=1e6)

    assert verdict(seen, LIMITS) is None


def test_a_signal_is_named_with_what_it_mostly_means_and_the_last_words() -> None:
    cause = why_ended(INSTANCE, -signal.SIGABRT, tail=("loading", "ggml.c:1: GGML_ASSERT(x) failed", " "))

    assert (cause.instance, cause.signal, cause.exit_code) == (INSTANCE, "SIGABRT", None)
    assert str(cause) == (
        "was killed by SIGABRT (a check inside llama.cpp failed); last words: ggml.c:1: GGML_ASSERT(x) failed"
    )


@pytest.mark.parametrize(
    ("code", "facts", "says"),
    [
        (-9, {"kill_reason": "has not reported for 61 s"}, "was killed by its agent, for it has not reported for 61 s"),
        (-9, {}, "was killed by SIGKILL (by hand, or by the kernel because memory ran out)"),
        (-50, {}, "was killed by signal 50"),
        (EXIT_THREAD_DIED, {}, "ended since a thread of it died"),
        (1, {}, "exited with code 1"),
        (3, {"said": "llama.cpp cannot load x", "tail": ("noise",)}, "llama.cpp cannot load x"),
    ],
)
def test_every_end_has_its_own_words(code: int, facts: dict[str, Any], says: str) -> None:
    assert str(why_ended(INSTANCE, code, **facts)) == says


@pytest.mark.parametrize(
    ("code", "said", "kill_reason", "expected"),
    [
        (-signal.SIGKILL, "", "", True),
        (-signal.SIGKILL, "", "was not loaded within 600 s", False),
        (-signal.SIGSEGV, "", "", False),
        (3, "llama.cpp cannot make a context: failed to allocate CPU buffer of size 12", "", True),
        (3, "llama.cpp cannot load x.gguf: the file is cut short", "", False),
    ],
)
def test_an_end_for_want_of_memory_is_told_from_others(code: int, said: str, kill_reason: str, expected: bool) -> None:
    cause = why_ended(INSTANCE, code, said=said, kill_reason=kill_reason)

    assert is_out_of_memory(cause, kill_reason) is expected
