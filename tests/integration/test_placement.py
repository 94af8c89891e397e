"""Placement in a fleet of two nodes with scripted models: real agents, real instances, the coordinator in between."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from packtrain.client import InstanceBeat
from packtrain.client.cli.main import app
from tests.support.fleets import Fleet, eventually, scripted_fleet
from tests.support.nodes import beat_of, scripted_node

pytestmark = pytest.mark.integration

#: One of the models that take turns fits into each node, and a small one beside it.
BUDGET = 400 * 2**20
TURNS: dict[str, Any] = {"n_slots": 2, "required_mib": 300, "step_ms": 2}
COMMON: dict[str, dict[str, Any]] = {
    "a": TURNS,
    "b": TURNS,
    "c": TURNS,
    "everywhere": {"n_slots": 2, "required_mib": 1},
    "slow": {"n_slots": 1, "required_mib": 1, "step_ms": 50},
}
N1 = {**COMMON, "picky": {"n_slots": 2}, "sized": {"n_slots": 3}}
N2 = {**COMMON, "picky": {"n_slots": 2, "fails": "not on this machine"}, "sized": {"n_slots": 5}}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with (
        scripted_fleet(
            tmp_path_factory.mktemp("n1"),
            N1,
            PACKTRAIN_MEMORY=str(BUDGET),
            PACKTRAIN_MAX_WAIT_S="20",
            PACKTRAIN_MIN_RESIDENCY_S="1",
        ) as running,  # fmt: skip
        scripted_node(running.url, tmp_path_factory.mktemp("n2"), "n2", N2, PACKTRAIN_MEMORY=str(BUDGET + 2**20)),
    ):
        beat_of(running.client, "n2")
        yield running


def packtrain(fleet: Fleet, *arguments: str) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(app, arguments, env={"PACKTRAIN_URL": fleet.running.url})


def up(fleet: Fleet, model: str) -> list[InstanceBeat]:
    return [i for i in fleet.client.instances() if i.model == model and i.state.value == "READY"]


def decisions(fleet: Fleet, verb: str, models: Sequence[str]) -> list[dict[str, Any]]:
    lines = packtrain(fleet, "journal", "-n", "1000", "--json").stdout.splitlines()
    found = [decision for line in lines for decision in json.loads(line)["decisions"]]
    return [d for d in found if d["verb"] == verb and d["model"] in models]


def test_a_load_that_fails_on_one_node_is_made_on_the_other(fleet: Fleet) -> None:
    # n2 has a little more memory, so it is tried first.
    assert fleet.client.generate("picky", "hello", timeout=60).node == "n1"
    eventually(lambda: all(i.served_ms for i in up(fleet, "picky")), "it to be told that it has served one")
    assert [d["node"] for d in decisions(fleet, "load", ["picky"])] == ["n2", "n1"]


def test_replicas_that_an_operator_asks_for_are_one_on_each_node_with_its_own_slots(fleet: Fleet) -> None:
    fleet.client.load("sized", replicas=2)
    both = eventually(lambda: found if len(found := up(fleet, "sized")) == 2 else None, "two replicas", 60)
    fleet.client.unload("sized")

    assert {i.node: i.n_slots for i in both} == {"n1": 3, "n2": 5}
    assert [i.served_ms for i in both] == [0, 0], "what a load computes to warm up is no job's"


def test_a_cold_burst_loads_its_model_once(fleet: Fleet) -> None:
    jobs = [fleet.client.submit("everywhere", f"number {n}") for n in range(100)]

    assert [job.result(timeout=60).text for job in jobs] == [f"number {n}"[::-1] for n in range(100)]
    # On a slow machine even this is a backlog that outlasts a load, once it is measured.
    loads = [d for d in decisions(fleet, "load", ["everywhere"]) if "slots at work" not in d["reason"]]
    assert len(loads) == 1


def test_more_models_than_fit_take_turns_and_all_are_served(fleet: Fleet) -> None:
    jobs = [fleet.client.submit(name, f"{name} {n}") for n in range(20) for name in "abc"]
    results = [job.result(timeout=100) for job in jobs]

    assert [r.text for r in results] == [f"{name} {n}"[::-1] for n in range(20) for name in "abc"]
    loads = Counter(d["model"] for d in decisions(fleet, "load", "abc"))
    assert sum(loads.values()) <= 6, "60 jobs by turns, two places: each model is loaded once or twice, not 20 times"


def test_a_backlog_gets_a_second_replica_on_the_other_node(fleet: Fleet) -> None:
    jobs = [fleet.client.submit("slow", "x" * 20, max_tokens=20) for _ in range(60)]
    both = eventually(lambda: found if len(found := up(fleet, "slow")) == 2 else None, "a second replica", 60)
    for job in jobs:
        job.cancel()

    assert {i.node for i in both} == {"n1", "n2"}
    assert max(i.job_s for i in both) > 0.5, "20 tokens of 50 ms each"


def test_the_journal_is_planned_again_with_the_same_result(fleet: Fleet, tmp_path: Path) -> None:
    said = packtrain(fleet, "replay")
    assert said.exit_code == 0, said.output
    assert "plans are the same, 0 are not" in said.stdout

    kept = tmp_path / "journal"
    kept.write_text(packtrain(fleet, "journal", "-n", "1000", "--json", "--snapshots").stdout)
    assert json.loads(packtrain(fleet, "replay", str(kept), "--json").stdout)["different"] == 0
    text = packtrain(fleet, "journal", "-n", "1000").stdout
    assert "load picky on n1" in text
    assert "beside n2 (failed too often, or just now" in text
    assert "makes room for" in text
