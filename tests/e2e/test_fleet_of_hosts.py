"""Three hosts, each with room for two of five models, and a mixed stream of jobs over all five."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import hosts
from tests.support.demo_model import MODEL, demo_model_folder
from tests.support.host_fleet import host_fleet
from tests.support.mixed_load import mixed_stream, run_first_come_first_served, run_on_fleet
from tests.support.quantised import TYPES, quantised

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(hosts.why_not()), reason=hosts.why_not()),
    pytest.mark.timeout(300),
]

MIB = 2**20
#: An instance of the smallest takes 250 MiB, of the largest 300: room for two, and for no three.
BUDGET = 650 * MIB
NUM_JOBS = 30


def test_every_job_of_a_mixed_stream_is_right_and_models_are_loaded_seldom(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    models = [quantised(folder, demo_model_folder() / f"{MODEL}.gguf", name).stem for name in TYPES]
    config = "".join(f"[models.{model}]\nslots = 4\ncontext = 512\n" for model in models)
    stream = mixed_stream(models, NUM_JOBS, seed=1)
    env = {
        "PACKTRAIN_SCRIPTED": "0",
        "PACKTRAIN_MODELS": str(folder),
        "PACKTRAIN_MEMORY": str(BUDGET),
        "PACKTRAIN_CORES": "1",
    }
    with host_fleet(tmp_path, {}, "n1", "n2", "n3", config=config, env=env) as fleet:
        ours = run_on_fleet(fleet, stream, folder, per_s=5)
        budgets = {beat.node: beat.memory_budget for beat in fleet.client.nodes()}
    with host_fleet(tmp_path / "fifo", {}, "n1", "n2", "n3") as fleet:
        theirs = run_first_come_first_served(fleet, stream, folder, holds=2)

    assert ours.wrong == []
    assert budgets == dict.fromkeys(("n1", "n2", "n3"), BUDGET)
    assert ours.samples > 10
    assert all(peak <= BUDGET for peak in ours.peaks.values()), ours
    assert ours.loads <= theirs.loads / 2, (ours, theirs)
    assert theirs.wrong == []
    assert ours.longest_wait_s < 60
