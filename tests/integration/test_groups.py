"""A model over three agents that are ordered by hand: what each does when another part of its group lives or ends.

A real llama.cpp on each, a tiny model, tunnels at loopback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gguf
import psutil
import pytest

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.server import BrokerServer
from packtrain.broker.states import InstanceState
from packtrain.client import Packtrain, Result
from packtrain.workers.shards.groups import NUM_PORTS
from tests.support.agents import Agents, agents
from tests.support.fleets import eventually, until_first_text
from tests.support.tiny_model import write_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform != "linux", reason="a split needs Linux")]

LAYERS = {"near": 2, "far": 3, "off": 1}
N_LAYER = sum(LAYERS.values())
STOPPED, FAILED = InstanceState.STOPPED, InstanceState.FAILED
READY, HOLDING, STARTING = InstanceState.READY, InstanceState.HOLDING, InstanceState.STARTING
OFF_PORT = 20_000 + os.getpid() % 10_000
#: From the death of any part until all others have let go, seconds: two looks of half a second, on a busy machine.
BOUND_S = 10


@pytest.fixture(scope="module")
def fleet(broker: BrokerServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    with agents(broker.url, tmp_path_factory.mktemp("groups")) as running:
        path = running.models("near") / "m.gguf"
        write_tiny_model(path, n_layer=N_LAYER, kind=gguf.GGMLQuantizationType.Q8_0)
        (running.home("far") / "packtrain.toml").parent.mkdir(parents=True)
        (running.home("far") / "packtrain.toml").write_text("split = true\n")
        running.start("near", PACKTRAIN_SPLIT="1", PACKTRAIN_CORES="1")
        running.start("far", PACKTRAIN_CORES="1")
        running.start("off", PACKTRAIN_SPLIT="1", PACKTRAIN_CORES="1", PACKTRAIN_SPLIT_PORT=str(OFF_PORT))
        yield running


@pytest.fixture(scope="module")
def client(fleet: Agents) -> Iterator[Packtrain]:
    with Packtrain(fleet.url) as made:
        yield made


@dataclass
class Group:
    """One that is up."""

    fleet: Agents
    names: list[str]  # the head first
    processes: list[psutil.Process]  # of the head, of its shards, then all ends of tunnels

    def until(self, number: int, state: InstanceState, *, reason: str = "") -> InstanceBeat:
        return self.fleet.until(self.names[number], state, reason=reason, timeout_s=BOUND_S)

    def is_gone(self) -> bool:
        """Whether no process of it is left."""
        return not any(process.is_running() for process in self.processes)


def group_of(fleet: Agents) -> Group:
    names = fleet.load_split("m", LAYERS, n_layer=N_LAYER)
    beats = [fleet.until(names[0], READY, timeout_s=60), *(fleet.until(name, HOLDING) for name in names[1:])]
    members = [psutil.Process(beat.pid) for beat in beats]
    agents_ = [psutil.Process(process.pid) for process in fleet.processes.values()]
    ends = [
        child for agent in agents_ for child in agent.children() if "packtrain.workers.tunnel_main" in child.cmdline()
    ]
    assert len(ends) == 2 * (len(names) - 1)
    return Group(fleet, names, [*members, *ends])


def test_a_group_answers_as_one_node_does_and_an_unload_is_confirmed_by_all(fleet: Agents, client: Packtrain) -> None:
    def answers() -> list[Result]:
        jobs = [client.submit("m", f"say {n}", max_tokens=24, ignore_eos=True, seed=n, logprobs=2) for n in range(3)]
        return [job.result(60) for job in jobs]

    group = group_of(fleet)
    together = answers()
    port = int(group.until(2, HOLDING).address.rpartition(":")[2])
    assert OFF_PORT <= port < OFF_PORT + NUM_PORTS
    fleet.unload(group.names[0], "near")

    assert group.until(0, STOPPED).reason == "a test"
    for number in (1, 2):
        assert group.until(number, STOPPED, reason="its head on near is STOPPED").resident_bytes == 0
    assert group.is_gone()
    whole = fleet.load("m", "near", numerics="deterministic")
    fleet.until(whole, READY)
    alone = answers()
    fleet.unload(whole, "near")
    assert [(a.text, a.logprobs) for a in together] == [(a.text, a.logprobs) for a in alone]
    assert [a.receipt for a in together] == [a.receipt for a in alone]


KILLS: dict[str, Callable[[Group], psutil.Process]] = {
    "the head": lambda group: group.processes[0],
    "a shard": lambda group: group.processes[2],
    "an end of a tunnel": lambda group: group.processes[3],
    "the other end": lambda group: group.processes[-1],
}


def test_whatever_leaves_or_dies_all_let_go_and_the_jobs_go_on_in_the_next_group(
    fleet: Agents, client: Packtrain
) -> None:
    group = group_of(fleet)
    jobs = [client.submit("m", "before you leave", max_tokens=300, ignore_eos=True)]
    until_first_text(jobs[0])
    client.drain_node("off")

    head = group.until(0, STOPPED)
    assert "its shard on off must leave: the node drains" in head.reason
    assert "the node drains" in group.until(2, STOPPED).reason
    group.until(1, STOPPED)
    assert jobs[0].status().attempts == 0  # it was given back, or done
    client.resume_node("off")
    eventually(lambda: not fleet.beat("off").draining, "off to take part again")

    for what, process_of in KILLS.items():
        group = group_of(fleet)
        jobs.append(client.submit("m", f"go on after {what}", max_tokens=300, ignore_eos=True))
        until_first_text(jobs[-1])
        process_of(group).kill()

        ended = [fleet.until(name, STOPPED, FAILED, timeout_s=BOUND_S) for name in group.names]
        assert ended[0].state is FAILED, what
        assert [beat.resident_bytes for beat in ended] == [0, 0, 0], what
        eventually(group.is_gone, f"all processes to end after {what} was killed", BOUND_S)

    group = group_of(fleet)
    assert [job.result(60).usage.completion_tokens for job in jobs] == [300] * len(jobs)
    fleet.unload(group.names[0], "near")
    eventually(group.is_gone, "all processes of the last group to end", BOUND_S)


def test_a_group_without_one_of_its_nodes_fails_as_a_whole_and_names_it(fleet: Agents) -> None:
    fleet.processes["off"].send_signal(signal.SIGSTOP)  # it hears nothing
    try:
        names = fleet.load_split("m", LAYERS, n_layer=N_LAYER)
        fleet.until(names[0], STARTING, reason="waits for its shard on off")
        fleet.unload(names[0], "near")
        assert fleet.until(names[0], STOPPED, timeout_s=BOUND_S).reason == "a test"
        fleet.until(names[1], STOPPED, timeout_s=BOUND_S)
    finally:
        fleet.processes["off"].send_signal(signal.SIGCONT)
    fleet.until(names[2], STOPPED, timeout_s=BOUND_S)  # it hears its order late, and that its head is gone
