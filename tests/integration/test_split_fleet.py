"""A model that no node holds alone, in a fleet with a coordinator: loaded when a job asks, whole again after a death,
and gone from all its nodes when another needs the room of one.

Three agents with budgets of their own, a real llama.cpp on each, tunnels at loopback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.server import BrokerServer
from packtrain.broker.states import InstanceState
from packtrain.client import ModelTooLarge, Packtrain
from packtrain.client.cli.main import app
from tests.support.agents import Agents, agents
from tests.support.fleets import eventually, until_first_text
from tests.support.tiny_model import write_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform != "linux", reason="a split needs Linux")]

NODES = ("near", "far", "off")
#: 343 MiB on one node, 445 on two, 544 on three, each of which gives a group three quarters of what it has.
N_FF, N_LAYER = 4096, 80
BUDGET = 280 * 1024 * 1024
READY, HOLDING = InstanceState.READY, InstanceState.HOLDING


@pytest.fixture(scope="module")
def fleet(broker: BrokerServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    with agents(broker.url, tmp_path_factory.mktemp("split-fleet")) as running:
        write_tiny_model(running.models("near") / "big.gguf", n_layer=N_LAYER, n_ff=N_FF)
        write_tiny_model(running.models("near") / "huge.gguf", n_layer=16)
        write_tiny_model(running.models("far") / "small.gguf")
        # So many slots need more memory than there is, or than a shard leaves.
        toml = "[models.big]\nslots = 2\ncontext = 512\n[models.huge]\nslots = 256\n"
        (running.home("near") / "packtrain.toml").write_text(toml)
        (running.home("far") / "packtrain.toml").write_text("[models.small]\nslots = 256\n")
        for node in NODES:
            running.start(node, PACKTRAIN_SPLIT="1", PACKTRAIN_CORES="1", PACKTRAIN_MEMORY=str(BUDGET))
        running.start_coordinator(PACKTRAIN_MIN_RESIDENCY_S="1")
        yield running


@pytest.fixture(scope="module")
def client(fleet: Agents) -> Iterator[Packtrain]:
    with Packtrain(fleet.url) as made:
        yield made


def members(client: Packtrain) -> dict[str, InstanceBeat]:
    """What lives of `big`, by node."""
    return {i.node: i for i in client.instances() if i.model == "big" and not i.state.is_terminal}


def whole_group(client: Packtrain) -> dict[str, InstanceBeat]:
    """What lives of it once all parts are up: shards hear half a second later that their head is READY."""

    def look() -> dict[str, InstanceBeat] | None:
        found = members(client)
        states = {node: i.state for node, i in found.items()}
        return found if states == {"near": READY, "far": HOLDING, "off": HOLDING} else None

    return eventually(look, "all parts of the group to be up", 10)


def told(fleet: Agents, *command: str) -> str:
    return CliRunner().invoke(app, command, env={"PACKTRAIN_URL": fleet.url}, catch_exceptions=False).stdout


def test_a_job_has_it_loaded_over_all_and_it_lives_and_dies_as_one(fleet: Agents, client: Packtrain) -> None:
    first = client.submit("big", "who are you", max_tokens=8, ignore_eos=True)
    assert first.result(120).usage.completion_tokens == 8
    found = whole_group(client)

    assert sum(i.layers for i in found.values()) == N_LAYER
    assert len({i.group for i in found.values()}) == 1
    shown = told(fleet, "ps")
    assert shown.count(f"shard of {found['near'].instance}") == 2
    assert "head of a group" in shown
    plan = told(fleet, "plan", "--model", "big")
    assert f"READY as {found['near'].instance}: " in plan

    job = client.submit("big", "go on whatever dies", max_tokens=60, ignore_eos=True)
    until_first_text(job)
    os.kill(found["off"].pid, signal.SIGKILL)
    assert job.result(120).usage.completion_tokens == 60
    assert job.status().attempts == 1
    again = whole_group(client)
    assert again["near"].instance != found["near"].instance


def test_who_needs_the_room_of_a_shard_has_the_whole_group_unloaded(client: Packtrain) -> None:
    eventually(lambda: len(members(client)) == len(NODES), "a group", 60)

    assert client.generate("small", "my turn", max_tokens=1, timeout=60).usage.completion_tokens == 1
    assert not members(client)

    def served() -> list[InstanceBeat]:
        """Where it runs; its agent tells a moment after the first job is done."""
        return [i for i in client.instances() if i.model == "small" and i.state is READY]

    assert [i.node for i in eventually(served, "the small model to be READY", 10)] == ["far"]


def test_what_is_too_large_for_all_together_is_refused_with_what_they_can_give(client: Packtrain) -> None:
    with pytest.raises(ModelTooLarge, match=r"or let several nodes hold it together, of which now: "):
        client.generate("huge", "x", timeout=30)
