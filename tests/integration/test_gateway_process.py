"""The gateway as a process: beside a fleet, as `packtrain up` runs it, and alone, as `packtrain serve` does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from packtrain.broker.errors import SetupError
from packtrain.broker.server import BrokerServer
from packtrain.client.cli import fleet_commands, gateway_page
from packtrain.client.cli.gateway_page import prepare_gateway
from packtrain.client.cli.home import fleet_file
from packtrain.client.cli.main import app
from packtrain.client.cli.up import UpOptions, running_fleet
from packtrain.client.cli.up_page import facts, page
from tests.support.fleets import scripted_fleet

pytestmark = pytest.mark.integration


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


@contextmanager
def served(*arguments: str, url: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`packtrain serve`, and the line it says first."""
    process = subprocess.Popen(
        [sys.executable, "-m", "packtrain.client.cli.main", "serve", "--json", *arguments],
        env={**os.environ, "PACKTRAIN_URL": url, **env},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_gateway_that_is_told_to_end_as_it_begins_ends(broker: BrokerServer, number: signal.Signals) -> None:
    with served("--port", "0", url=broker.url) as (process, _):
        process.send_signal(number)

        assert process.wait(30) == 0


def test_a_fleet_with_a_gateway_says_where_it_is_and_answers_there(tmp_path: Path) -> None:
    with scripted_fleet(tmp_path, {"m1": {}}, http_port=0) as fleet:
        assert fleet.running.gateway is not None
        url = fleet.running.gateway.url
        body = json.dumps({"model": "m1", "prompt": "abc"}).encode()
        with urllib.request.urlopen(f"{url}/v1/completions", body, timeout=30) as answer:
            text = json.load(answer)["choices"][0]["text"]
        announced = json.loads(fleet_file(fleet.running.home).read_text())
        said = page(fleet.running, with_password=False)

        assert text == "cba"
        assert get(f"{url}/health") == {"status": "ok"}
        assert announced["http_url"] == url
        assert facts(fleet.running)["http"] == url
        assert f"{url}/v1" in said
        assert "gateway" in fleet.running.pids


def test_a_gateway_alone_says_its_url_and_ends_well_at_a_signal(broker: BrokerServer) -> None:
    with served("--port", "0", url=broker.url) as (process, line):
        said = json.loads(line)

        assert get(f"{said['url']}/livez") == {"status": "ok"}
        assert said["openai_base_url"] == f"{said['url']}/v1"

        process.send_signal(signal.SIGTERM)

        assert process.wait(20) == 0


def test_a_fleet_does_not_open_http_to_others_without_an_api_key(tmp_path: Path) -> None:
    options = UpOptions(home=tmp_path, port=0, http_port=0, http_host="0.0.0.0", quiet=True, drain_s=1)

    with pytest.raises(SetupError, match="packtrain keys create"), running_fleet(options):
        pass


def test_without_the_extra_up_says_so_and_goes_on_and_serve_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[UpOptions] = []

    def run_up(options: UpOptions, *_: object, **__: object) -> int:
        started.append(options)
        return 0

    monkeypatch.setattr(gateway_page, "find_spec", lambda name: None)
    monkeypatch.setattr(fleet_commands, "run_up", run_up)

    up = CliRunner().invoke(app, ["up"])
    served = CliRunner().invoke(app, ["serve"])

    assert up.output.count("[gateway] extra") == 1
    assert started[0].http_port is None
    assert isinstance(served.exception, SetupError)
    assert "[gateway] extra" in str(served.exception)


def test_a_port_that_is_taken_is_named_with_the_option_that_chooses_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(SetupError, match=rf"port {port} .*--http-port"):
            prepare_gateway("127.0.0.1", port)
