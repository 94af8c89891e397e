"""`packtrain top` and `packtrain logs` on a live fleet, by its broker and through a gateway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from packtrain.client.gateway.page_facts import Facts
from tests.support.fleets import Fleet, eventually, scripted_fleet
from tests.support.gateways import Gateway, gateway

pytestmark = pytest.mark.integration


@dataclass
class Terminal:
    fleet: Fleet
    door: Gateway
    home: Path

    def env(self, url: str) -> dict[str, str]:
        return os.environ | {"PACKTRAIN_HOME": str(self.home), "PACKTRAIN_URL": url, "COLUMNS": "150"}

    def run(self, *arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "packtrain.client.cli.main", *arguments]
        return subprocess.run(command, env=self.env(url or self.fleet.url), capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    home = tmp_path_factory.mktemp("home")
    with scripted_fleet(home, {"echo": {}}) as fleet, gateway(fleet.url, home) as door:
        assert fleet.client.generate("echo", "abc").text == "cba"
        yield Terminal(fleet, door, home)


@pytest.mark.parametrize("way", ["redis", "http"])
def test_one_look_as_json_and_as_text(terminal: Terminal, way: str) -> None:
    url = terminal.door.url if way == "http" else terminal.fleet.url
    facts = Facts.model_validate_json(terminal.run("top", "--json", url=url).stdout)
    text = terminal.run("top", "--once", url=url).stdout

    assert [node.node for node in facts.nodes] == ["n1"]
    assert [job.tokens for job in facts.jobs] == [3]
    assert "n1" in text
    assert "succeeded" in text


def test_at_a_terminal_it_watches_until_it_is_interrupted(terminal: Terminal) -> None:
    master, slave = os.openpty()
    command = [sys.executable, "-m", "packtrain.client.cli.main", "top", "--every", "0.2"]
    env = terminal.env(terminal.fleet.url) | {"TERM": "xterm-256color"}
    errors = terminal.home / "top.err"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(command, env=env, stdin=slave, stdout=slave, stderr=stderr)
    os.close(slave)
    os.set_blocking(master, False)
    seen = bytearray()

    def looks() -> int:
        with suppress(OSError):  # nothing new
            seen.extend(os.read(master, 65536))
        return seen.count(b"tokens/s") >= 3

    try:
        eventually(looks, "three looks")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert errors.read_bytes() == b""
    finally:
        process.kill()
        os.close(master)


def test_logs_are_shown_followed_and_narrowed(terminal: Terminal) -> None:
    instance = terminal.fleet.instance("echo").instance
    all_of_it = terminal.run("logs").stdout.splitlines()
    narrowed = [json.loads(line) for line in terminal.run("logs", instance, "--json", "-n", "5").stdout.splitlines()]
    unknown = terminal.run("logs", "nobody")

    assert {line.split()[0] for line in all_of_it} == {"agent", "broker", "coordinator"}
    assert narrowed
    assert all(instance in line["text"] and line["process"] == "agent" for line in narrowed)
    assert (unknown.returncode, "is no process that logs here" in unknown.stderr) == (2, True)


def test_followed_logs_go_on_in_the_file_that_replaces_a_full_one(terminal: Terminal, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "agent.log"
    log.parent.mkdir()
    log.write_text("10:00:00 first\n")
    command = [sys.executable, "-m", "packtrain.client.cli.main", "logs", "-f", "--home", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert process.stdout.readline().endswith("first\n")
            with log.open("a") as file:
                file.write("10:00:01 second\n")
            log.rename(log.with_name("agent.log.1"))
            log.write_text("10:00:02 third\n")

            assert process.stdout.readline().endswith("second\n")
            assert process.stdout.readline().endswith("third\n")
        finally:
            process.kill()


def test_without_logs_it_says_where_they_are_written(terminal: Terminal, tmp_path: Path) -> None:
    found = terminal.run("logs", "--home", str(tmp_path))

    assert found.returncode == 1
    assert "there are no logs in" in found.stderr
