"""How a node stands: terms, who must leave it, quarantine, waking, and whether commands reach it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.errors import SetupError
from packtrain.broker.ids import InstanceId
from packtrain.broker.node_wishes import NodeWish
from packtrain.broker.outcome import Cause
from packtrain.broker.settings import Settings, load_settings
from packtrain.broker.states import InstanceState
from packtrain.workers import quarantine
from packtrain.workers.celery_worker import HubBeat
from packtrain.workers.consumer_watch import DEAF_PER_STALL, ConsumerWatch
from packtrain.workers.node_standing import NodeStanding
from packtrain.workers.node_terms import NodeTerms, terms_of
from packtrain.workers.over_budget import Holder, leaving
from packtrain.workers.quarantine import Failure, Quarantine, may_be_the_node
from packtrain.workers.supervision import EXIT_LOAD_FAILED, Observed, verdict
from packtrain.workers.waking import SETTLE_S, SLEPT_S, Wakefulness
from tests.support.factories import MIB, instance_beat
from tests.unit.test_supervision import LIMITS, WELL

pytestmark = pytest.mark.unit

GIB = 1024 * MIB


def terms(wish: NodeWish | None = None, **settings: Any) -> NodeTerms:
    return terms_of(Settings(node="n1", **settings), wish or NodeWish(), total_memory=10 * GIB, all_cores=8)


def test_without_a_word_a_node_gives_four_fifths_of_its_memory_and_all_cores() -> None:
    assert terms() == NodeTerms(8 * GIB, 8, {}, False)


def test_what_was_set_live_goes_before_what_the_node_was_started_with() -> None:
    wish = NodeWish(memory=2 * GIB, cores=3, labels={"room": "attic", "gpu": None})

    found = terms(wish, memory=4 * GIB, cores=6, labels={"gpu": "yes", "os": "linux"})

    assert found == NodeTerms(2 * GIB, 3, {"os": "linux", "room": "attic"}, False)


def test_a_budget_of_the_start_that_does_not_count_is_named_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    standing(NodeWish(memory=2 * GIB, cores=3))

    assert "packtrain nodes set n1 --memory start" in caplog.text
    assert "--cores" not in caplog.text  # it was started with none


def test_labels_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKTRAIN_LABELS", "gpu=yes, room=attic")
    assert load_settings().labels == {"gpu": "yes", "room": "attic"}

    monkeypatch.setenv("PACKTRAIN_LABELS", "gpu")
    with pytest.raises(SetupError, match=r"PACKTRAIN_LABELS.*room=attic"):
        load_settings()


def test_nobody_can_be_given_more_than_there_is() -> None:
    found = terms(NodeWish(memory=99 * GIB, cores=99))

    assert (found.memory, found.cores) == (10 * GIB, 8)


def standing(wish: NodeWish | None = None) -> NodeStanding:
    return NodeStanding(Settings(node="n1", memory=GIB), wish or NodeWish(), total_memory=10 * GIB, all_cores=8)


def test_a_draining_node_lets_all_go() -> None:
    node = standing()
    assert node.must_leave([instance_beat()]) == []

    assert node.follow(NodeWish(draining=True), now_ms=1)

    ((instance, reason),) = node.must_leave([instance_beat()])
    assert instance == "tiny-1"
    assert "packtrain nodes drain" in reason


def test_with_less_memory_idle_instances_leave_and_the_busy_one_stays() -> None:
    node = standing(NodeWish(memory=256 * MIB))
    beats = [
        instance_beat("busy", reserved_bytes=100 * MIB, slots_used=2, last_used_ms=9),
        instance_beat("loads", reserved_bytes=100 * MIB, state=InstanceState.LOADING),
        instance_beat("fresh", reserved_bytes=50 * MIB, resident_bytes=50 * MIB, last_used_ms=8),
        instance_beat("old", reserved_bytes=50 * MIB, resident_bytes=50 * MIB, last_used_ms=1),
    ]

    assert [name for name, _ in node.must_leave(beats)] == ["old"]
    assert "256 MiB" in node.must_leave(beats)[0][1]


holders = st.lists(
    st.builds(
        Holder,
        instance=st.uuids().map(lambda u: InstanceId(str(u))),
        reserved_bytes=st.integers(0, 100),
        resident_bytes=st.integers(0, 120),
        slots_used=st.integers(0, 3),
        last_used_ms=st.integers(0, 9),
    ),
    max_size=8,
)


@given(holders=holders, budget=st.integers(0, 400))
def test_what_stays_keeps_to_the_budget_and_no_busy_one_leaves_before_an_idle_one(
    holders: list[Holder], budget: int
) -> None:
    gone = leaving(holders, budget)

    staying = [h for h in holders if h.instance not in gone]
    left = [h for h in holders if h.instance in gone]
    assert sum(h.reserved_bytes for h in staying) <= budget
    if any(h.slots_used for h in left):
        assert all(h.slots_used for h in staying)
    if left:  # the last of them was needed
        last = next(h for h in left if h.instance == gone[-1])
        assert sum(max(h.reserved_bytes, h.resident_bytes) for h in [*staying, last]) > budget


def fail(node: Quarantine, *models: str, at_ms: int = 0) -> Quarantine:
    for step, model in enumerate(models):
        node.failed(Failure(at_ms + step, model, "cannot be loaded"))
    return node


@pytest.mark.parametrize("models", ["a" * 50, "aaaaab", "abcdef", "baa"])
def test_one_bad_model_puts_no_node_into_quarantine(models: str) -> None:
    assert fail(Quarantine(), *models).reason(100) == ""


def test_different_models_that_keep_failing_put_the_node_into_quarantine() -> None:
    reason = fail(Quarantine(), "a", "b", "c", "b", "a").reason(100)

    assert reason == "5 failures of 3 models (a, b, c) within 10 min, the last of a: cannot be loaded"


def test_failures_of_another_day_do_not_count() -> None:
    node = fail(Quarantine(), "a", "b", "a")

    assert fail(node, "b", at_ms=quarantine.WINDOW_MS + 10).reason(quarantine.WINDOW_MS + 20) == ""


def test_a_model_that_runs_well_is_forgiven() -> None:
    node = fail(Quarantine(), "a", "b", "a")
    node.settled("a")

    assert fail(node, "b").reason(100) == ""


REFUSED = Cause(reason="is no model", exit_code=EXIT_LOAD_FAILED)
CRASHED = Cause(reason="a check failed", signal="SIGABRT")
STARVED = Cause(reason="memory ran out", signal="SIGKILL")


@pytest.mark.parametrize(
    ("cause", "was_serving", "kill_reason", "others_run", "counts"),
    [
        (REFUSED, False, "", True, False),  # a broken file beside a model that runs
        (REFUSED, False, "", False, True),  # nothing runs here
        (CRASHED, False, "", True, True),  # no job can do that to one that loads
        (CRASHED, True, "", False, False),  # a job that crashes its instance
        (STARVED, True, "", True, True),
        (STARVED, True, "has not reported for 61 s", True, False),  # a job that hangs it
        (STARVED, False, "was not loaded within 600 s", True, True),
    ],
)
def test_neither_broken_models_nor_evil_jobs_put_a_node_into_quarantine(
    cause: Cause, was_serving: bool, kill_reason: str, others_run: bool, counts: bool
) -> None:
    found = may_be_the_node(cause, was_serving=was_serving, kill_reason=kill_reason, others_run=others_run)

    assert found is counts


def test_other_model_files_end_a_quarantine_by_models_that_could_not_be_loaded() -> None:
    refused = Quarantine()
    for model in "abab":
        refused.failed(Failure(1, model, "no GGUF", is_refusal=True))
    died = fail(Quarantine(), *"abab")
    assert refused.reason(2)

    refused.other_files()
    died.other_files()

    assert refused.reason(2) == ""
    assert died.reason(2) != ""


def test_an_instance_that_failed_is_judged_by_what_it_was_and_who_runs_beside_it() -> None:
    beside, alone = standing(), standing()
    for model in "abab":
        was = instance_beat(model, model=model, state=InstanceState.LOADING)
        beside.failed(was, REFUSED, kill_reason="", others=[was, instance_beat("good")], now_ms=1)
        alone.failed(was, REFUSED, kill_reason="", others=[was], now_ms=1)

    assert beside.quarantine.reason(2) == ""
    assert "is no model" in alone.quarantine.reason(2)


def test_a_quarantine_ends_by_itself_and_counts_anew() -> None:
    node = fail(Quarantine(), *"abab")

    assert node.reason(quarantine.LASTS_MS) != ""
    assert node.reason(quarantine.LASTS_MS + 10) == ""
    assert fail(node, "a", "b", at_ms=quarantine.LASTS_MS + 20).reason(quarantine.LASTS_MS + 30) == ""


def test_a_resume_ends_the_quarantine_before_it_and_none_after_it() -> None:
    node = fail(Quarantine(), *"abab", at_ms=100)
    node.resume(before_ms=50)
    assert node.reason(200) != ""

    node.resume(before_ms=150)
    assert node.reason(200) == ""
    fail(node, *"abab", at_ms=300)
    node.resume(before_ms=150)  # the same wish is read at every beat

    assert node.reason(400) != ""


class Clocks:
    """Both clocks of a machine, moved by hand."""

    def __init__(self) -> None:
        self.mono = self.wall = 1000.0

    def make(self) -> Wakefulness:
        return Wakefulness(monotonic=lambda: self.mono, wall=lambda: self.wall)


def test_a_stopped_process_knows_that_it_slept_and_for_how_long() -> None:
    clocks = Clocks()
    waking = clocks.make()
    clocks.mono += 300
    clocks.wall += 300

    assert waking.take_slept_s() == 300
    assert waking.take_slept_s() is None
    assert waking.look() == 0


def test_a_suspended_machine_slept_though_its_monotonic_clock_stood_still() -> None:
    clocks = Clocks()
    waking = clocks.make()
    clocks.mono += 0.5
    clocks.wall += 8 * 3600

    assert waking.take_slept_s() == 0.5
    clocks.mono += 3
    assert waking.look() == 3


def test_who_looks_all_the_time_has_not_slept() -> None:
    clocks = Clocks()
    waking = clocks.make()
    for _ in range(100):
        clocks.mono += SLEPT_S * 0.9
        clocks.wall += SLEPT_S * 0.9
        assert waking.look() == math.inf


def test_a_wall_clock_that_is_set_back_means_nothing() -> None:
    clocks = Clocks()
    waking = clocks.make()
    clocks.wall -= 7200

    assert waking.take_slept_s() is None


def test_right_after_waking_nobody_is_judged() -> None:
    silent = replace(WELL, report_age_s=1000, step_age_s=1000, hub_age_s=1000)

    def judged(seen: Observed) -> str | None:
        return verdict(seen, LIMITS)

    assert judged(replace(silent, awake_s=SETTLE_S - 1)) is None
    assert judged(replace(silent, awake_s=SETTLE_S + 1)) is not None


DEAF_S, ECHO_S = 20, 10  # of a stall of 60 s


class Watched:
    """A watch with its agent played by hand."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.hub_age_s = 0.0
        self.watch = ConsumerWatch(self.sent.append, lambda: self.hub_age_s, stall_s=60)

    def look(self, now_s: float, broker_reachable_s: float = 1000) -> str:
        return self.watch.look(now_s, broker_reachable_s=broker_reachable_s)


def test_an_agent_that_hears_itself_is_not_deaf() -> None:
    agent = Watched()
    for second in range(1, 101):
        assert agent.look(second) == ""
        agent.watch.heard(agent.sent[-1])

    assert len(agent.sent) == 100 / ECHO_S


@pytest.mark.parametrize("stall_s", [1, 2, 60, 3600])
def test_a_consumers_loop_shows_two_signs_of_life_before_its_agent_counts_as_deaf(stall_s: float) -> None:
    assert 2 * HubBeat(stall_s).every_s <= stall_s * DEAF_PER_STALL


def test_an_agent_that_hears_itself_no_more_is_deaf() -> None:
    agent = Watched()
    agent.look(1)

    assert agent.look(1 + DEAF_S) == ""
    assert "a message to itself is 21 s on its way" in agent.look(1 + DEAF_S + 1)
    agent.look(DEAF_S + 32)
    assert agent.watch.deaf_s(DEAF_S + 32) == 30


def test_a_message_that_was_lost_is_sent_again_and_the_next_one_proves_as_much() -> None:
    agent = Watched()
    for second in range(1, DEAF_S + 5):
        agent.look(second)
    agent.watch.heard(agent.sent[-1])

    assert len(agent.sent) == 3
    assert agent.look(DEAF_S + 6) == ""
    assert agent.watch.deaf_s(DEAF_S + 6) == 0


def test_a_message_from_before_a_sleep_is_not_waited_for_and_proves_nothing() -> None:
    agent = Watched()
    agent.look(1)

    for second in range(DEAF_S):
        assert agent.look(5000 + second, broker_reachable_s=second + 1) == ""
    agent.watch.heard(1)

    assert "a message to itself is 21 s" in agent.look(5000 + DEAF_S + 1, broker_reachable_s=DEAF_S + 2)


def test_an_agent_whose_consumer_loop_stands_still_is_deaf() -> None:
    agent = Watched()
    agent.hub_age_s = DEAF_S + 1

    assert "its consumer loop has not turned for 21 s" in agent.look(100)


def test_while_the_broker_is_away_and_right_after_nobody_is_deaf() -> None:
    agent = Watched()
    agent.look(1)
    agent.hub_age_s = 500

    assert agent.look(500, broker_reachable_s=0) == ""
    assert agent.look(501, broker_reachable_s=1) == ""
    assert len(agent.sent) == 2


def test_an_agent_that_slept_while_it_was_deaf_is_not_deaf_for_that_time() -> None:
    agent = Watched()
    agent.look(1)
    assert agent.look(DEAF_S + 2) != ""

    assert agent.look(5000, broker_reachable_s=0.1) == ""  # awake for a tenth of a second

    assert agent.watch.deaf_s(5000) == 0
