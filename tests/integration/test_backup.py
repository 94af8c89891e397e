"""A backup as docs/operations.md shows it, of a fleet that runs: what it holds, and that a fleet starts from it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from packtrain.broker.api_keys import ApiKeys
from packtrain.broker.connection import connect
from packtrain.broker.states import JobState
from tests.support.doc_blocks import blocks
from tests.support.fleets import eventually, scripted_fleet

pytestmark = pytest.mark.integration

MODELS = {"m": {"n_slots": 1}, "slow": {"n_slots": 1, "n_ctx": 4096, "step_ms": 50}}


def test_a_copy_of_a_running_home_is_a_fleet_with_its_jobs_results_and_keys(tmp_path: Path) -> None:
    home, restored = tmp_path / "home", tmp_path / "restored"
    tar, unpack = (
        c for block in blocks("sh") for c in block.commands if block.page == "docs/operations.md" and "tar" in c
    )
    with scripted_fleet(home, MODELS) as fleet:
        done = fleet.client.submit("m", "abc", raw=True)
        assert done.result().text == "cba"
        runs = fleet.client.submit("slow", "!long x", raw=True)
        waits = fleet.client.submit("slow", "xyz", raw=True)
        eventually(lambda: runs.status().state is JobState.RUNNING, "a job that runs")
        with connect(fleet.url, name="test") as redis:
            ApiKeys(redis).create("anna")
        (home / "files").mkdir(exist_ok=True)
        (home / "files" / "upload").write_text("rows")
        shell(tar, tmp_path, PACKTRAIN_HOME=str(home))
        runs.cancel()
        waits.cancel()
    shutil.rmtree(home)

    shell(unpack, tmp_path)
    with scripted_fleet(restored, MODELS) as fleet:
        there = fleet.client

        assert there.job(done.id).result().text == "cba"
        there.job(runs.id).cancel()
        assert there.job(waits.id).result(60).text == "zyx"
        with connect(fleet.url, name="test") as redis:
            assert [key.name for key in ApiKeys(redis).all()] == ["anna"]
        assert (restored / "files" / "upload").read_text() == "rows"


def shell(command: str, folder: Path, **env: str) -> None:
    """Run a command of the page."""
    subprocess.run(["bash", "-euc", command], cwd=folder, env={**os.environ, **env}, check=True)
