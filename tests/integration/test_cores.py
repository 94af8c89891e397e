"""Cores are dealt to real instance processes while they work."""

from __future__ import annotations

from pathlib import Path

import pytest

from packtrain.broker.beats import InstanceBeat
from tests.support.fleets import Fleet, eventually, scripted_fleet, until_first_text

pytestmark = pytest.mark.integration

SLOW = {"n_slots": 2, "n_ctx": 2048, "step_ms": 10}


def test_two_instances_at_work_share_the_cores_and_one_alone_has_them_all(tmp_path: Path) -> None:
    with scripted_fleet(tmp_path, {"a": SLOW, "b": SLOW}, PACKTRAIN_CORES="4") as fleet:
        for model in ("a", "b"):
            fleet.client.generate(model, "warm up")
        eventually(lambda: threads(fleet) == {"a": 4, "b": 4}, "both to be ready for all cores")

        jobs = [fleet.client.submit(model, "abc !long", max_tokens=1900) for model in ("a", "b")]
        for job in jobs:
            until_first_text(job)
        eventually(lambda: threads(fleet) == {"a": 2, "b": 2}, "each to have half of the cores")
        jobs[1].cancel()

        eventually(lambda: threads(fleet)["a"] == 4, "the one at work to have them all")
        jobs[0].cancel()


def threads(fleet: Fleet) -> dict[str, int]:
    beats: list[InstanceBeat] = fleet.client.instances()
    return {beat.model: beat.threads for beat in beats}
