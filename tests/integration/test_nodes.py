"""Nodes while they run: other terms, drains, quarantine, sleep, and a consumer that hangs. Real processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from packtrain.client import InstanceBeat, InstanceState, InvalidParameter, Job, JobState, NodeBeat, UnknownNode
from tests.support.fleets import Fleet, eventually, scripted_fleet, until_first_text
from tests.support.nodes import Node, beat_of, scripted_node

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
    job = fleet.client.submit("a", PROMPT, max_tokens=480)
    until_first_text(job)

    fleet.client.set_node("n1", memory=400 * MIB)
    eventually(lambda: [i.model for i in loaded(fleet)] == ["a"], "the idle model to leave")
    assert job.status().state is JobState.RUNNING
    fleet.client.set_node("n1", memory=100 * MIB)

    left = eventually(lambda: next((i for i in loaded(fleet) if i.state is InstanceState.DRAINING), None), "a drain")
    assert "budget is 100 MiB now" in left.reason
    assert job.status().state is JobState.RUNNING
    job.cancel()
    eventually(lambda: not loaded(fleet), "the busy one to leave")


def test_a_drained_node_takes_nothing_until_it_is_resumed(fleet: Fleet) -> None:
    fleet.client.generate("b", "warm up")

    fleet.client.drain_node("n1")
    eventually(lambda: not loaded(fleet), "all to leave")
    job = fleet.client.submit("b", "later")
    until_beat(fleet, lambda beat: beat.draining and not beat.instances)
    assert not job.status().state.is_terminal
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
    for instance in loaded(fleet):
        fleet.client.unload(instance.model)
    eventually(lambda: not loaded(fleet), "nothing to run here, which would show that the node is well")
    jobs = [fleet.client.submit(f"bad{i}", "x") for i in range(3)]

    beat = until_beat(fleet, lambda beat: beat.quarantine)

    assert "bad0, bad1" in beat.quarantine
    assert "the disk is full" in beat.quarantine
    for job in jobs:
        job.cancel()
    fleet.client.resume_node("n1")
    until_beat(fleet, lambda beat: not beat.quarantine)
    assert fleet.client.generate("b", "goes on").text == "no seog"


@dataclass(frozen=True)
class Trouble:
    """Two further nodes at the same time, since both take their time: one sleeps, with jobs; one hears no commands."""

    laptop: Node
    jobs: list[Job]
    instance: InstanceBeat
    deaf: Node


@pytest.fixture(scope="module")
def trouble(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trouble]:
    agent = (sys.executable, "-m", "tests.support.deaf_agent")
    slow = {"step_ms": 30, "n_slots": 4}
    homes = [tmp_path_factory.mktemp(name) for name in ("laptop", "deaf")]
    with (
        scripted_node(fleet.url, homes[0], "laptop", {"nap": slow}, PACKTRAIN_STALL_S="5") as laptop,
        scripted_node(fleet.url, homes[1], "deaf", {"d": {}}, agent, PACKTRAIN_STALL_S="4.5") as deaf,
    ):
        beat_of(fleet.client, "deaf")
        eventually(lambda: "Taking commands" in deaf.log.read_text(), "the consumer")
        beat_of(fleet.client, "laptop")
        jobs = [fleet.client.submit("nap", PROMPT, max_tokens=100) for _ in range(3)]
        for job in jobs:
            until_first_text(job)
        instance = fleet.instance("nap")
        laptop.signal_all(signal.SIGSTOP)
        os.kill(deaf.process.pid, signal.SIGUSR2)
        yield Trouble(laptop, jobs, instance, deaf)


def test_an_agent_that_hears_no_commands_says_so_and_begins_anew(fleet: Fleet, trouble: Trouble) -> None:
    beat = until_beat(fleet, lambda beat: beat.quarantine, "deaf")

    assert "takes no commands" in beat.quarantine
    eventually(lambda: "its agent begins anew" in trouble.deaf.log.read_text(), "the restart")
    until_beat(fleet, lambda beat: not beat.quarantine, "deaf")
    assert fleet.client.generate("d", "hello", timeout=60).text == "olleh"
    assert psutil.Process(trouble.deaf.process.pid).cmdline()[-1] == "packtrain.workers.agent_main"


def test_a_laptop_that_slept_takes_part_again_by_itself(fleet: Fleet, trouble: Trouble) -> None:
    eventually(lambda: "laptop" not in [b.node for b in fleet.client.nodes()], "the laptop to vanish")
    eventually(lambda: all(j.status().attempts for j in trouble.jobs), "its leases to lapse")

    trouble.laptop.signal_all(signal.SIGCONT)

    for job in trouble.jobs:
        assert job.result(timeout=60).text == ANSWER
        assert "".join(delta.text for delta in job.deltas()) == ANSWER
    beat_of(fleet.client, "laptop")
    after = fleet.instance("nap")
    assert (after.instance, after.pid) == (trouble.instance.instance, trouble.instance.pid)  # not blamed for the sleep
    assert "Awake again" in trouble.laptop.log.read_text()
