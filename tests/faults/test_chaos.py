"""Random faults under load: two short rounds in `make test`, as many as are asked for in `make chaos`."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from tests.support.chaos import Round
from tests.support.host_fleet import HostFleet, host_fleet

MODELS: dict[str, dict[str, Any]] = {"steady": {"n_slots": 8, "n_ctx": 512, "step_ms": 30}}


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostFleet]:
    with host_fleet(tmp_path_factory.mktemp("fleet"), MODELS, "n1", "n2") as running:
        running.start_coordinator(running.laptop)
        running.client.generate("steady", "warm up")
        yield running


@pytest.mark.integration
def test_two_rounds_of_random_faults_lose_nothing_and_double_nothing(fleet: HostFleet) -> None:
    random = Random(1)
    for number in range(2):
        Round(fleet, f"1.{number}", random, longest_s=3).run()


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_many_rounds_of_random_faults_lose_nothing_and_double_nothing(
    fleet: HostFleet, pytestconfig: pytest.Config
) -> None:
    given = pytestconfig.getoption("--chaos-seed")
    seed = secrets.randbelow(1_000_000) if given is None else given
    random = Random(seed)
    for number in range(pytestconfig.getoption("--chaos-rounds")):
        Round(fleet, f"{seed}.{number}", random, longest_s=15).run()
