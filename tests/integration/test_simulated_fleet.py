"""A fleet on paper beside a real one with the same jobs: the same loads, and the same order of service."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from packtrain.broker.simulation import Simulation, TraceLine
from packtrain.client.cli.main import app
from tests.support.fleets import Fleet, scripted_fleet
from tests.support.paper_fleets import model, node, paper_fleet

pytestmark = pytest.mark.integration

#: Model, user and lane of each job, in the order they come. One place, one slot.
JOBS = [
    ("a", "x", "bulk"), ("a", "x", "bulk"), ("a", "y", "bulk"), ("a", "x", "bulk"), ("a", "z", "interactive"),
    ("b", "x", "bulk"), ("c", "x", "bulk"), ("b", "y", "bulk"), ("b", "x", "bulk"), ("c", "y", "interactive"),
]  # fmt: skip


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    script = {"n_slots": 1, "required_mib": 300, "load_ms": 500, "step_ms": 5}
    env = {"PACKTRAIN_MEMORY": str(500 * 2**20), "PACKTRAIN_MIN_RESIDENCY_S": "1"}
    with scripted_fleet(
        tmp_path_factory.mktemp("home"), dict.fromkeys("abc", script), flower=False, http_port=None, **env
    ) as running:
        yield running


def test_a_real_fleet_loads_and_serves_in_the_order_that_the_simulation_says(fleet: Fleet) -> None:
    jobs = [
        fleet.client.submit(name, f"job {n}", user=user, lane=lane, max_tokens=5, stream=False)
        for n, (name, user, lane) in enumerate(JOBS)
    ]
    for job in jobs:
        job.result(60)
    begun = sorted((job.status().started_ms or 0, n) for n, job in enumerate(jobs))
    loads = sorted((i.requested_ms, i.model) for i in fleet.client.instances())

    served: list[int] = []
    models = dict.fromkeys("abc", model(3, load=2, decode={"alone": 200}, prefill=5000))
    paper = paper_fleet(models=models, nodes=[node("n1", 5)], min_residency=1)
    trace = [
        TraceLine.model_validate(
            {"at": 0, "model": m, "user": u, "lane": lane, "prompt": 1, "output": 5, "max_tokens": 5}
        )
        for m, u, lane in JOBS
    ]
    simulation = Simulation(paper, 1, trace, on_begin=lambda job: served.append(job.number - 1))
    simulation.run()

    assert [JOBS[n] for _, n in begun] == [JOBS[n] for n in served]
    assert [n for _, n in begun] == served
    assert [name for _, name in loads] == [name for _, verb, name, _ in simulation.history if verb == "load"]


def test_a_plan_of_the_live_fleet_says_what_takes_turns_and_what_was_measured(fleet: Fleet) -> None:
    fleet.client.generate("a", "hello", max_tokens=2)
    fleet.instance("a")

    done = CliRunner().invoke(app, ["plan", "--json"], env={"PACKTRAIN_URL": fleet.url})

    found = {one["model"]: one for one in json.loads(done.stdout)["models"]}
    assert {name: (one["fate"], one["required_bytes"] // 2**20) for name, one in found.items()} == dict.fromkeys(
        "abc", ("takes turns", 300)
    )
    assert found["b"]["swaps_with"] == ["a"]
    assert found["a"]["places"][0]["pace"]["load_s"] > 0
    assert found["b"]["places"][0]["pace"] == {
        "load_s": None, "alone": None, "full": None, "jobs_at_once": None, "source": "unknown",
    }  # fmt: skip
