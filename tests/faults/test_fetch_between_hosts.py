"""Model files between hosts: a cable that is cut in mid transfer, a source that stands still, one that is gone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.celery_app import Doorbell, make_app
from packtrain.broker.ids import NodeId
from packtrain.broker.orders import NodeCommand
from packtrain.broker.states import InstanceState
from tests.support.fleets import eventually
from tests.support.host_fleet import HostFleet, host_fleet

pytestmark = pytest.mark.faults

ENV = {
    "PACKTRAIN_FILES_ADDRESS": "0.0.0.0:0",
    "PACKTRAIN_FILES_RATE": "300000",  # 10 s for each file
    "PACKTRAIN_FETCH_STALL_S": "40",
}
MODELS = ("cut", "still", "gone")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostFleet]:
    scripts: dict[str, dict[str, dict[str, Any]]] = {"n1": {model: {} for model in MODELS}}
    with host_fleet(tmp_path_factory.mktemp("fleet"), {}, "n1", "n2", scripts=scripts, env=ENV) as running:
        for model in MODELS:
            with _file(running, "n1", model).open("a") as file:
                file.write(" " * 3_000_000)
        yield running


def _file(fleet: HostFleet, node: str, model: str) -> Path:
    return fleet.nodes[node].home / "models" / f"{model}.scripted.json"


def begin(fleet: HostFleet, model: str) -> str:
    """Have n2 load a model of n1; returns when some of it has come."""
    order = NodeCommand(
        id=f"load-{model}", term=fleet.term(), verb="load", instance=f"{model}-1", model=model, n_slots=2, n_ctx=512,
        reserved_bytes=2**20, fetch_from="n1",
    )  # fmt: skip
    eventually(lambda: {"n1", "n2"} == fleet.alive(), "both nodes")
    Doorbell(make_app(fleet.outer_url, name="test")).command(NodeId("n2"), order)
    folder = fleet.nodes["n2"].home / "models"
    eventually(lambda: any(p.stat().st_size > 300_000 for p in folder.glob(f"{model}*.part-*")), "some bytes")
    return order.instance


def until(fleet: HostFleet, instance: str, state: InstanceState, reason: str = "") -> InstanceBeat:
    def look() -> InstanceBeat | None:
        beat = fleet.beat(instance)
        return beat if beat and beat.state is state and reason in beat.reason else None

    return eventually(look, f"{instance} to be {state} {reason}", 90)


def test_a_fetch_goes_on_when_the_cable_of_its_source_is_plugged_in_again(fleet: HostFleet) -> None:
    instance = begin(fleet, "cut")

    fleet.nodes["n1"].host.cut()
    until(fleet, instance, InstanceState.FETCHING, "n1 does not answer")
    fleet.nodes["n1"].host.heal()

    until(fleet, instance, InstanceState.READY)
    assert fleet.client.generate("cut", "abc", timeout=30).text == "cba"
    assert "/models/cut/0 from byte 0 to" in (fleet.nodes["n1"].home / "agent.log").read_text()


def test_a_fetch_goes_on_when_a_source_that_stood_still_moves_again(fleet: HostFleet) -> None:
    instance = begin(fleet, "still")
    agent = fleet.nodes["n1"].agent
    assert agent

    agent.send_signal(signal.SIGSTOP)
    until(fleet, instance, InstanceState.FETCHING, "n1 does not answer")
    agent.send_signal(signal.SIGCONT)

    until(fleet, instance, InstanceState.READY)


def test_a_fetch_whose_source_is_gone_for_good_fails_with_the_cause_and_keeps_what_came(fleet: HostFleet) -> None:
    instance = begin(fleet, "gone")

    fleet.nodes["n1"].host.cut()
    failed = until(fleet, instance, InstanceState.FAILED)

    assert "from n1: no byte came for 40 s (n1 is gone)" in failed.reason
    assert list((fleet.nodes["n2"].home / "models").glob("gone*.part-*"))
    fleet.nodes["n1"].host.heal()
