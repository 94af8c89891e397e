"""A fleet on paper beside a real one with the same jobs: the same loads, and the same order of service."""

from __future__ import annotations

from pathlib import Path

import pytest

from packtrain.broker.simulation import Simulation, TraceLine
from tests.support.fleets import scripted_fleet
from tests.support.paper_fleets import model, node, paper_fleet

pytestmark = pytest.mark.integration

#: Model, user and lane of each job, in the order they come. One place, one slot.
JOBS = [
    ("a", "x", "bulk"), ("a", "x", "bulk"), ("a", "y", "bulk"), ("a", "x", "bulk"), ("a", "z", "interactive"),
    ("b", "x", "bulk"), ("c", "x", "bulk"), ("b", "y", "bulk"), ("b", "x", "bulk"), ("c", "y", "interactive"),
]  # fmt: skip


def test_a_real_fleet_loads_and_serves_in_the_order_that_the_simulation_says(tmp_path: Path) -> None:
    script = {"n_slots": 1, "required_mib": 300, "load_ms": 500, "step_ms": 5}
    memory = str(500 * 2**20)
    with scripted_fleet(
        tmp_path, dict.fromkeys("abc", script), PACKTRAIN_MEMORY=memory, PACKTRAIN_MIN_RESIDENCY_S="1"
    ) as fleet:
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
