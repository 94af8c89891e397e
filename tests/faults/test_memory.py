"""Memory that runs out under a load: said by a script, and done by the kernel. Run by `make faults`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from packtrain.broker.connection import connect
from packtrain.broker.states import InstanceState
from packtrain.client import ModelLoadFailed
from tests.support.fault_table import inject, start_load
from tests.support.fleets import eventually, scripted_fleet

pytestmark = pytest.mark.faults

TICK_S = 1
STEADY: dict[str, Any] = {"n_slots": 8, "n_ctx": 512, "step_ms": 30}


def test_a_load_that_dies_by_memory_is_given_up_with_the_cause_and_disturbs_nobody(tmp_path: Path) -> None:
    models = {"steady": STEADY, "large": {"dies": signal.SIGKILL}}
    with scripted_fleet(tmp_path, models) as fleet:
        redis = connect(fleet.url, name="test")
        fleet.client.generate("steady", "warm up")
        load = start_load(fleet.client, redis)

        with inject("load dies by memory on every node", load, TICK_S):
            job = fleet.client.submit("large", "too large")
        with pytest.raises(ModelLoadFailed, match=r"killed by SIGKILL .*memory ran out"):
            job.result(timeout=90)

        assert fleet.client.waiting() == {}
        redis.close()


def test_where_memory_runs_out_the_kernel_ends_the_instance_and_neither_agent_nor_broker(tmp_path: Path) -> None:
    models = {"steady": STEADY, "large": {"takes_mib": 4000}}
    with scripted_fleet(tmp_path, models) as fleet, memory_limit(psutil.Process().pid, "1500M") as confine:
        redis = connect(fleet.url, name="test")
        fleet.client.generate("steady", "warm up")
        load = start_load(fleet.client, redis, num_tokens=300)
        before = fleet.running.pids
        for child in psutil.Process().children(recursive=True):
            confine(child.pid)

        with inject("node's memory runs out (the kernel's choice)", load, TICK_S):
            fleet.client.submit("large", "too large", expires_in=30)

        eventually(
            lambda: any(i.model == "large" and i.state is InstanceState.FAILED for i in fleet.client.instances()),
            "the load to fail",
        )
        assert fleet.running.pids == before
        assert {(job.status().epoch, job.status().attempts) for job in load.jobs} == {(1, 0)}
        redis.close()


@contextmanager
def memory_limit(pid: int, size: str) -> Iterator[Callable[[int], None]]:
    """A function that puts a process and its later children under one limit of memory, by the kernel's cgroups."""
    root = Path("/sys/fs/cgroup")
    is_v1 = (root / "memory").is_dir()
    group = (root / "memory" if is_v1 else root) / f"packtrain-test-{pid}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if is_v1 else "memory.max")).write_text(size)
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"no memory limit can be set here: {error}")

    def confine(pid: int) -> None:
        with suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(pid))

    try:
        yield confine
    finally:
        eventually(lambda: _end(group), "the group to be empty")


def _end(group: Path) -> bool:
    """Let go of a group's processes; the kernel takes a moment to see that it is empty."""
    try:
        for process in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(process)
        group.rmdir()
    except OSError:
        return False
    return True
