"""What supervisors ask: is this part well? On a real broker."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from redis import Redis
from typer.testing import CliRunner

from packtrain.broker import health, keys
from packtrain.broker.errors import BrokerUnavailable, InvalidParameter, SetupError
from packtrain.broker.health import check, role_of
from packtrain.broker.ids import NodeId
from packtrain.broker.server import BrokerServer
from packtrain.broker.settings import Settings, load_settings
from packtrain.client.cli.main import app

pytestmark = pytest.mark.contract


@pytest.fixture
def settings(broker: BrokerServer, redis: Redis) -> Settings:
    return load_settings(url=broker.url, node="laptop")


@pytest.mark.parametrize(
    ("role", "key", "says"),
    [
        ("coordinator", keys.LEADER, "no coordinator leads"),
        ("node", keys.node(NodeId("laptop")), "node laptop does not report"),
        ("pairing", keys.PAIRING, "no pairing service"),
    ],
)
def test_a_part_is_well_while_it_reports(redis: Redis, settings: Settings, role: str, key: str, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        check(role, settings)

    redis.set(key, "1", px=10_000)
    assert check(role, settings) == f"{role}: well"


def test_a_broker_is_well_when_it_answers(settings: Settings) -> None:
    assert check("broker", settings) == "broker: well"
    with pytest.raises(BrokerUnavailable):
        check("broker", load_settings(url="redis://127.0.0.1:1/0"))


@pytest.fixture
def page() -> Iterator[tuple[str, list[int]]]:
    """A URL, and the status it answers with."""
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/readyz", status
        server.shutdown()


def test_a_part_with_a_page_is_well_when_that_answers(settings: Settings, page: tuple[str, list[int]]) -> None:
    url, status = page

    assert check("gateway", settings, page=url) == "gateway: well"
    status[0] = 503
    with pytest.raises(SetupError, match="gateway answers 503"):
        check("gateway", settings, page=url)
    with pytest.raises(SetupError, match="flower does not answer"):
        check("flower", settings, page="http://127.0.0.1:1/healthcheck")


def test_within_a_container_the_first_process_tells_the_part(
    tmp_path: Path,
    broker: BrokerServer,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cmdline = tmp_path / "cmdline"
    cmdline.write_bytes(b"\0".join((b"tini", b"--", b"packtrain", b"node", b"")))
    monkeypatch.setattr(health, "FIRST_PROCESS", cmdline)
    monkeypatch.setenv("PACKTRAIN_URL", broker.url)
    monkeypatch.setenv("PACKTRAIN_NODE", "laptop")

    assert health.main([]) == 1
    assert "node laptop does not report" in capsys.readouterr().err
    redis.set(keys.node(NodeId("laptop")), "1", px=10_000)
    assert health.main([]) == 0


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (["tini", "--", "packtrain", "serve", "--host", "0.0.0.0"], "gateway"),
        (["/usr/bin/docker-init", "--", "/opt/packtrain/bin/packtrain", "flower"], "flower"),
        (["sh"], ""),
    ],
)
def test_the_command_names_the_part(command: list[str], role: str) -> None:
    assert role_of(command) == role


def test_a_part_that_there_is_not_is_refused(settings: Settings) -> None:
    with pytest.raises(InvalidParameter, match=r"'agent' is no part.*node"):
        check("agent", settings)


def test_the_command_line_tells_by_its_exit_code(broker: BrokerServer, redis: Redis) -> None:
    run = CliRunner(env={"PACKTRAIN_URL": broker.url})

    assert run.invoke(app, ["health", "broker", "--json"]).stdout == '{"role": "broker", "is_well": true}\n'
    assert run.invoke(app, ["health", "coordinator"]).exit_code == 1


def test_the_probe_loads_no_celery() -> None:
    """It runs every few seconds beside each part."""
    loaded = "import packtrain.broker.health, sys; print('celery' in sys.modules or 'kombu' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "False\n"
