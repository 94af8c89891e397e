"""Nodes while they run: other terms, drains, quarantine, sleep, and a consumer that hangs. Real processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from packtrain.client import InstanceBeat, InstanceState, InvalidParameter, Job, NodeBeat, UnknownNode
from tests.support.fleets import LEASE_MS, Fleet, eventually, scripted_fleet, until_first_text
from tests.support.nodes import beat_of, scripted_node

pytestmark = pytest.mark.integration

MIB = 1024 * 1024
PROMPT = "abcdefghi !long"
ANSWER = (PROMPT[::-1] * 40)[:100]
MODELS: dict[str, dict[str, Any]] = {
    "a": {"required_mib": 300, "n_slots": 4, "step_ms": 20},
    "b": {"required_mib": 300, "n_slots": 4},
    **{f"bad{i}": {"fails": "the disk is full"} for i in range(3)},
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with scripted_fleet(
        tmp_path_factory.mktemp("home"), MODELS, PACKTRAIN_MEMORY="800000000", PACKTRAIN_CORES="2"
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def as_started(fleet: Fleet) -> Iterator[None]:
    yield

    def is_as_started(beat: NodeBeat) -> bool:
        return not beat.draining and not beat.quarantine and (beat.memory_budget, beat.cores) == (800_000_000, 2)

    if not is_as_started(beat_of(fleet.client, "n1")):
        fleet.client.resume_node("n1")
        fleet.client.set_node("n1", memory=0, cores=0)
        until_beat(fleet, is_as_started)


def until_beat(fleet: Fleet, is_so: Any, node: str = "n1") -> NodeBeat:
    def look() -> NodeBeat | None:
        return next((b for b in fleet.client.nodes() if b.node == node and is_so(b)), None)

    return eventually(look, f"a beat of {node} that shows it")


def loaded(fleet: Fleet) -> list[InstanceBeat]:
    return [i for i in fleet.client.instances() if not i.state.is_terminal]


def test_budgets_and_labels_are_changed_while_the_node_runs_and_outlive_its_agent(fleet: Fleet) -> None:
    fleet.client.set_node("n1", memory=700_000_000, cores=1, labels={"room": "attic"})
    before = until_beat(fleet, lambda b: (b.memory_budget, b.cores, b.labels) == (700_000_000, 1, {"room": "attic"}))

    fleet.kill(fleet.running.pids["agent"])

    after = until_beat(fleet, lambda beat: beat.pid != before.pid)
    assert (after.memory_budget, after.cores, after.labels) == (700_000_000, 1, {"room": "attic"})


def test_with_less_memory_idle_models_leave_and_busy_ones_end_their_jobs_first(fleet: Fleet) -> None:
    for model in ("b", "a"):
        fleet.client.generate(model, "warm up", max_tokens=3)
    job = fleet.client.submit("a", PROMPT, max_tokens=100)
    until_first_text(job)

    fleet.client.set_node("n1", memory=400 * MIB)
    eventually(lambda: [i.model for i in loaded(fleet)] == ["a"], "the idle model to leave")
    assert not job.status().state.is_terminal
    fleet.client.set_node("n1", memory=100 * MIB)

    left = eventually(lambda: next((i for i in loaded(fleet) if i.state is InstanceState.DRAINING), None), "a drain")
    assert "budget is 100 MiB now" in left.reason
    eventually(lambda: not loaded(fleet), "the busy one to leave")
    fleet.client.set_node("n1", memory=0)
    assert job.result(timeout=60).text == ANSWER
    assert job.status().attempts == 0


def test_a_drained_node_takes_nothing_until_it_is_resumed(fleet: Fleet) -> None:
    fleet.client.generate("b", "warm up")

    fleet.client.drain_node("n1")
    eventually(lambda: not loaded(fleet), "all to leave")
    job = fleet.client.submit("b", "later")
    assert until_beat(fleet, lambda beat: beat.draining).instances == ()
    fleet.client.resume_node("n1")

    assert job.result(timeout=60).text == "retal"


def test_nonsense_for_a_node_is_refused(fleet: Fleet) -> None:
    with pytest.raises(UnknownNode, match="those that are: n1"):
        fleet.client.drain_node("n7")
    with pytest.raises(InvalidParameter, match="less than 64 MiB"):
        fleet.client.set_node("n1", memory=12)
    with pytest.raises(InvalidParameter, match="like room=attic"):
        fleet.client.set_node("n1", labels={"Room": "attic"})


def test_a_node_on_which_models_keep_failing_says_so_and_a_resume_forgives_it(fleet: Fleet) -> None:
    fleet.client.generate("b", "warm up")
    jobs = [fleet.client.submit(f"bad{i}", "x") for i in range(3)]

    beat = until_beat(fleet, lambda beat: beat.quarantine)

    assert "3 models (bad0, bad1, bad2)" in beat.quarantine
    assert "the disk is full" in beat.quarantine
    assert fleet.client.generate("b", "goes on").text == "no seog"
    for job in jobs:
        job.cancel()
    fleet.client.resume_node("n1")
    until_beat(fleet, lambda beat: not beat.quarantine)


def test_a_laptop_that_slept_takes_part_again_by_itself(fleet: Fleet, tmp_path: Path) -> None:
    slow = {"step_ms": 30, "n_slots": 4}
    with scripted_node(fleet.url, tmp_path, "laptop", {"nap": slow}, PACKTRAIN_STALL_S="5") as laptop:
        beat_of(fleet.client, "laptop")
        jobs = [fleet.client.submit("nap", PROMPT, max_tokens=100) for _ in range(3)]
        for job in jobs:
            until_first_text(job)
        before = fleet.instance("nap")

        laptop.signal_all(signal.SIGSTOP)
        eventually(lambda: [b.node for b in fleet.client.nodes()] == ["n1"], "the laptop to vanish")
        eventually(lambda: all(j.status().attempts for j in jobs), "its leases to lapse", LEASE_MS / 1000 + 10)
        laptop.signal_all(signal.SIGCONT)

        assert_each_is_answered_once(jobs)
        beat_of(fleet.client, "laptop")
        after = fleet.instance("nap")
        assert (after.instance, after.pid) == (before.instance, before.pid)  # nobody was blamed for the sleep
        assert "Awake again" in laptop.log.read_text()


def assert_each_is_answered_once(jobs: list[Job]) -> None:
    for job in jobs:
        assert job.result(timeout=60).text == ANSWER
        assert "".join(delta.text for delta in job.deltas()) == ANSWER


def test_an_agent_that_hears_no_commands_says_so_and_begins_anew(fleet: Fleet, tmp_path: Path) -> None:
    agent = (sys.executable, "-m", "tests.support.deaf_agent")
    with scripted_node(fleet.url, tmp_path, "deaf", {"d": {}}, agent, PACKTRAIN_STALL_S="4.5") as node:
        beat_of(fleet.client, "deaf")
        eventually(lambda: "Taking commands" in node.log.read_text(), "the consumer")

        os.kill(node.process.pid, signal.SIGUSR2)

        beat = until_beat(fleet, lambda beat: beat.quarantine, "deaf")
        assert "takes no commands" in beat.quarantine
        eventually(lambda: "its agent begins anew" in node.log.read_text(), "the restart")
        until_beat(fleet, lambda beat: not beat.quarantine, "deaf")
        assert fleet.client.generate("d", "hello", timeout=60).text == "olleh"
        assert psutil.Process(node.process.pid).cmdline()[-1] == "packtrain.workers.agent_main"
