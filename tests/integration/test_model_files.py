"""Model files that one node fetches from another: real agents with homes of their own, on one broker."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from packtrain.broker.server import BrokerServer
from packtrain.broker.states import InstanceState
from packtrain.client import Packtrain
from tests.support.agents import Agents, agents
from tests.support.fleets import eventually
from tests.support.pictures import png
from tests.support.tiny_model import write_tiny_model
from tests.support.tiny_projectors import write_tiny_projector

pytestmark = pytest.mark.integration

READY, FETCHING, FAILED = InstanceState.READY, InstanceState.FETCHING, InstanceState.FAILED


@pytest.fixture
def fleet(broker: BrokerServer, redis: Redis, tmp_path: Path) -> Iterator[Agents]:
    with agents(broker.url, tmp_path) as running:
        yield running


def test_a_model_with_no_room_where_its_file_is_runs_on_a_node_that_fetches_it_and_its_projector(fleet: Agents) -> None:
    source = write_tiny_model(fleet.models("n1") / "tiny.gguf")
    eyes = write_tiny_projector(fleet.models("n1") / "mmproj-f16.gguf", "mlp")
    fleet.start("n1", PACKTRAIN_MEMORY=str(2**20))
    fleet.start("n2")
    fleet.start_coordinator()

    with Packtrain(fleet.url) as client:
        result = client.generate("tiny", "hello", images=png(64, 64), max_tokens=4, ignore_eos=True, timeout=60)

    assert (result.node, result.usage.completion_tokens) == ("n2", 4)
    assert (fleet.models("n2") / "tiny.gguf").read_bytes() == source.read_bytes()
    assert (fleet.models("n2") / "tiny-mmproj.gguf").read_bytes() == eyes.read_bytes()
    assert result.receipt is not None
    assert result.receipt.projector_sha256 == hashlib.sha256(eyes.read_bytes()).hexdigest()
    assert fleet.beat("n2").models == ("tiny",)


def test_a_transfer_goes_on_after_either_end_was_killed(fleet: Agents) -> None:
    source = fleet.write_scripted("n1", "echo", pad=6_000_000)
    fleet.start("n1", PACKTRAIN_SCRIPTED="1", PACKTRAIN_FILES_RATE="300000")  # 20 s in all
    fleet.start("n2", PACKTRAIN_SCRIPTED="1")

    instance = fleet.load("echo", "n2", fetch_from="n1")
    fleet.until(instance, FETCHING, reason=" % of 5.7 MiB from n1")
    eventually(lambda: _part_size(fleet) > 200_000, "some bytes")
    fleet.kill("n2")
    came = _part_size(fleet)
    fleet.start("n2", PACKTRAIN_SCRIPTED="1")
    instances = [fleet.load("echo", "n2", fetch_from="n1") for _ in range(2)]
    eventually(lambda: _part_size(fleet) > came, "more bytes")
    fleet.kill("n1")
    for instance in instances:
        fleet.until(instance, FETCHING, reason="n1 does not answer")
    fleet.start("n1", PACKTRAIN_SCRIPTED="1")
    for instance in instances:
        fleet.until(instance, READY)

    assert (fleet.models("n2") / "echo.scripted.json").read_bytes() == source.read_bytes()
    begun = [int(offset) for offset in re.findall(r"from byte (\d+)", (fleet.folder / "n1.log").read_text())]
    assert len(begun) == 3  # two instances want it, it comes once
    assert begun[0] == 0 < came <= begun[1] < begun[2]


def _part_size(fleet: Agents) -> int:
    return sum(path.stat().st_size for path in fleet.models("n2").glob("*.part-*"))


def test_a_fetch_that_cannot_be_ends_with_its_cause_and_one_that_is_unloaded_with_none(fleet: Agents) -> None:
    fleet.write_scripted("n1", "echo", pad=1_000_000)
    fleet.start("n1", PACKTRAIN_SCRIPTED="1", PACKTRAIN_FILES_RATE="100000")
    fleet.start("n2", PACKTRAIN_SCRIPTED="1", PACKTRAIN_FETCH_STALL_S="1")

    of_nobody = fleet.load("lost", "n2", fetch_from="n3")
    of_n1 = fleet.load("other", "n2", fetch_from="n1")
    unwanted = fleet.load("echo", "n2", fetch_from="n1")
    fleet.until(unwanted, FETCHING)
    fleet.unload(unwanted, "n2")

    assert "from n3: no byte came for 1 s (n3 is gone)" in fleet.until(of_nobody, FAILED).reason
    assert "from n1: n1 has no file for /models/other/0" in fleet.until(of_n1, FAILED).reason
    fleet.until(unwanted, InstanceState.STOPPED)
    assert fleet.beat("n2").instances == ()
    assert fleet.beat("n2").disk_free > 0
