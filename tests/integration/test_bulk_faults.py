"""A bulk file over two nodes and two models while processes are killed: each row once, the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from packtrain.broker import keys
from tests.support.bulk_runs import BulkCommand, content, numbered, read_rows, run_with_kills, write_rows
from tests.support.host_fleet import HostFleet, host_fleet

SCRIPT: dict[str, Any] = {"n_slots": 8, "n_ctx": 512, "step_ms": 2}
SEED = 5


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostFleet]:
    models = {"one": SCRIPT, "two": SCRIPT}
    with host_fleet(tmp_path_factory.mktemp("fleet"), models, "n1", "n2") as running:
        yield running


def check_kills(fleet: HostFleet, folder: Path, rows: int, random: Random, *, timeout_s: float) -> None:
    source = write_rows(folder / "in.jsonl", list(numbered(rows, ["one", "two"], deterministic=True)))
    calm = BulkCommand(fleet.outer_url, source, folder / "calm.jsonl", ("--ordered", "--user", "calm"))
    calm.start()
    assert calm.wait(timeout_s) == 0, calm.log
    disturbed = BulkCommand(fleet.outer_url, source, folder / "disturbed.jsonl", ("--ordered", "--user", "disturbed"))

    said = run_with_kills(fleet, disturbed, rows, random, timeout_s=timeout_s)

    lines = read_rows(disturbed.out)
    assert [line["custom_id"] for line in lines] == [f"row-{number}" for number in range(rows)], said
    assert [content(line) for line in lines] == [f"row {number}"[::-1] for number in range(rows)]
    assert disturbed.out.read_bytes() == calm.out.read_bytes(), said
    users = [fleet.redis.hget(key, "user") for key in fleet.redis.scan_iter(f"{keys.JOB_PREFIX}*", count=1000)]
    assert users.count("disturbed") == rows  # no row was a second job, whatever happened to its first


@pytest.mark.integration
def test_a_file_is_whole_and_the_same_after_each_kind_of_process_was_killed(fleet: HostFleet, tmp_path: Path) -> None:
    check_kills(fleet, tmp_path, 300, Random(SEED), timeout_s=100)


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_ten_thousand_rows_over_two_nodes_and_two_models_with_five_random_kills(
    fleet: HostFleet, tmp_path: Path
) -> None:
    check_kills(fleet, tmp_path, 10_000, Random(SEED), timeout_s=800)
