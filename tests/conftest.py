"""Fixtures that more than one folder of tests needs: a real broker, and the law that no key is immortal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis import Redis

from packtrain.broker import keys
from packtrain.broker.connection import connect
from packtrain.broker.server import BrokerServer
from tests.support.fault_table import pytest_addoption, pytest_terminal_summary  # noqa: F401  (hooks)

# A busy machine is no defect: hypothesis would fail what took 200 ms once, or what was slow to make.
settings.register_profile("packtrain", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("packtrain")


#: The markers of the tests that the Makefile's targets run, by the folder that they run them in.
RUN_IN = {
    "unit": {"unit"},
    "contract": {"contract"},
    "integration": {"integration", "faults"},
    "e2e": {"e2e"},
    "clients": {"clients"},
    "faults": {"integration", "faults", "chaos"},
    "compose": {"compose"},
    "upgrade": {"upgrade"},
}


IS_STRAY = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)  # before -m leaves any out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that no target would run is run where it lies, and fails."""
    for item in items:
        run = RUN_IN.get(item.path.relative_to(ROOT / "tests").parts[0], set())
        if run and not run & {marker.name for marker in item.iter_markers()}:
            item.stash[IS_STRAY] = True
            item.add_marker(min(run))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let strays fail."""
    if item.stash.get(IS_STRAY, False):
        pytest.fail("it belongs to no tier, so no target would run it; mark it with that of its folder", pytrace=False)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerServer]:
    """A real Redis or Valkey server for one file of tests (0.15 s): what another file left, nobody meets here."""
    server = BrokerServer(tmp_path_factory.mktemp("broker"), port=0)
    server.prepare()
    process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
    try:
        server.wait_ready(20)
        yield server
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def redis(broker: BrokerServer) -> Iterator[Redis]:
    """A client on an empty database; afterwards every key must have a TTL or be one of the permanent ones."""
    client = connect(broker.url, name="test")
    client.flushdb()
    yield client
    immortal = immortal_keys(client)
    client.close()
    assert immortal <= keys.PERMANENT


def immortal_keys(client: Redis) -> set[str]:
    """Keys of ours without a TTL, but for those that live only while jobs wait or run."""
    transient = {keys.WAITING, keys.LEASES, keys.DEADLINES}
    found = {str(key) for key in client.scan_iter("pt:*") if client.ttl(key) == -1}
    return {key for key in found if key not in transient and not key.startswith(keys.READY_PREFIX)}


def python(*arguments: str) -> list[str]:
    """The argument list that runs our own interpreter."""
    return [sys.executable, *arguments]


ROOT = Path(__file__).parent.parent
