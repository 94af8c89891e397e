"""A broker without room on its disk or in its memory: what its clients see, and that it recovers by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packtrain.client import BrokerUnavailable, JobState, SetupError
from tests.support.fault_table import inject, start_load
from tests.support.fleets import eventually
from tests.support.host_fleet import HostFleet, host_fleet

pytestmark = pytest.mark.integration

MODELS: dict[str, dict[str, Any]] = {"steady": {"n_slots": 8, "n_ctx": 512, "step_ms": 30}}
DISK_MIB = 4


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostFleet]:
    with host_fleet(tmp_path_factory.mktemp("fleet"), MODELS, "n1", disk_mib=DISK_MIB) as running:
        running.client.generate("steady", "warm up")
        yield running


def test_a_full_disk_under_the_broker_stops_writes_until_there_is_room_again(fleet: HostFleet) -> None:
    load = start_load(fleet.client, fleet.redis)
    assert fleet.broker is not None
    # Its own view of the files: the disk is mounted for the broker alone.
    filler = Path(f"/proc/{fleet.broker.pid}/root{fleet.data}/filler")

    with inject("disk full under the broker, and room again", load, bound_s=5) as fault:
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(b"\0" * DISK_MIB * 2**20)
        eventually(lambda: refusal(fleet), "writes to be refused")
        assert load.jobs[0].status().state in (JobState.QUEUED, JobState.RUNNING)  # reads are served
        filler.unlink()
        fault.is_over(load)

    assert fleet.client.generate("steady", "after", timeout=30).text == "retfa"


def test_a_broker_whose_memory_is_full_refuses_jobs_and_loses_none(fleet: HostFleet) -> None:
    load = start_load(fleet.client, fleet.redis)

    with inject("broker's memory full, and enough again", load, bound_s=5) as fault:
        fleet.redis.config_set("maxmemory", "1mb")
        with pytest.raises(SetupError, match=r"memory of the broker .* is full"):
            fleet.client.submit("steady", "no room")
        stuck = load.progress()
        eventually(lambda: fleet.nodes["n1"].said("used memory > 'maxmemory'"), "beats to be refused, too")
        assert load.progress() == stuck
        fleet.redis.config_set("maxmemory", "512mb")
        fault.is_over(load)

    assert fleet.client.generate("steady", "after", timeout=30).text == "retfa"


def refusal(fleet: HostFleet) -> bool:
    """Whether a job is refused for the full disk."""
    try:
        fleet.client.submit("steady", "no room")
    except BrokerUnavailable as error:
        return "No space left" in str(error)
    return False
