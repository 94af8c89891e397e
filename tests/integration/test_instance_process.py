"""An instance process as its agent holds it, at its worst."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from packtrain.workers.instance_messages import InstanceConfig
from packtrain.workers.instance_process import InstanceProcess

pytestmark = pytest.mark.integration


def test_orders_to_a_frozen_instance_never_block_and_its_end_is_explained(tmp_path: Path) -> None:
    config = InstanceConfig(
        instance="m-1", model="m", path="nowhere", backend="scripted", worker_name="m.0@n1",
        n_slots=1, n_ctx=64, n_threads=1, report_fd=-1,
    )  # fmt: skip
    process = InstanceProcess(
        config, on_line=lambda _: None, on_report=lambda: None, pid_file=tmp_path / "run" / "m-1.json"
    )
    os.kill(process.pid, signal.SIGSTOP)

    heard = [process.set_threads(1 + number % 2) for number in range(10_000)]  # a pipe holds some 4,000 of them
    process.kill()
    cause = process.reap()

    assert heard[0] is True
    assert heard[-1] is False
    assert not process.set_threads(1)
    assert (cause.instance, cause.signal) == ("m-1", "SIGKILL")
    assert not (tmp_path / "run" / "m-1.json").exists()
