"""What scripts see of commands that change the fleet: JSON on stdout, one value, whatever else is said on stderr."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

PROGRAM = "from packtrain.client.cli.main import main; main()"


@dataclass
class Shell:
    """A command line whose fleet runs from one home."""

    environment: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@dataclass
class UpShell(Shell):
    """And what `up --json` said first."""

    up: subprocess.Popen[str]
    said: dict[str, Any]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpShell]:
    home = tmp_path_factory.mktemp("home")
    (home / "models").mkdir()
    (home / "models" / "m.scripted.json").write_text('{"n_slots": 2}')
    (home / "models" / "large.scripted.json").write_text('{"required_mib": 600}')
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PACKTRAIN_")},
        "PACKTRAIN_HOME": str(home),
        "PACKTRAIN_SCRIPTED": "1",
        "PACKTRAIN_MODELS": str(home / "models"),
        "PACKTRAIN_MEMORY": str(1000 * 2**20),
    }
    arguments = ["up", "--port", "0", "--node", "n1", "--drain", "1", "--http-port", "0", "--json"]
    with open(home / "stderr", "w") as errors:
        up = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert up.stdout is not None
    try:
        yield UpShell(environment, up, json.loads(up.stdout.readline()))
    finally:
        up.kill()
        up.wait()
        up.stdout.close()


def test_up_says_where_the_fleet_is_once_it_is_ready_and_no_secret(shell: UpShell) -> None:
    home = Path(shell.environment["PACKTRAIN_HOME"])
    url = json.loads(Path(shell.said["fleet_file"]).read_text())["url"]

    assert (shell.said["node"], shell.said["models"], shell.said["home"]) == ("n1", 2, str(home))
    assert set(shell.said["pids"]) == {"broker", "gateway", "coordinator", "agent"}
    assert shell.said["url"].startswith("redis://:***@")
    assert url not in json.dumps(shell.said)
    assert shell.json("nodes")[0]["node"] == "n1"


def test_what_is_not_there_is_said_in_words_and_as_an_empty_list(shell: UpShell) -> None:
    assert shell.json("jobs") == []
    assert shell.run("jobs").stdout == "no jobs yet; submit one with `packtrain run MODEL PROMPT`\n"


def test_load_and_unload_print_the_instances_as_ps_does(shell: UpShell) -> None:
    (loaded,) = shell.json("load", "m")
    (shown,) = shell.json("ps")
    again = shell.run("load", "m").stdout
    (left,) = shell.json("unload", "m")

    assert (loaded["model"], loaded["state"], loaded["node"]) == ("m", "READY", "n1")
    assert shown.keys() == loaded.keys()
    assert shown["instance"] == loaded["instance"] == left["instance"]
    assert loaded["instance"] in again
    assert left["state"] == "STOPPED"
    assert shell.json("unload", "m") == []
    assert shell.run("unload", "m").stdout == "m was not loaded\n"


@pytest.mark.parametrize("way", ["broker", "http"])
def test_a_load_that_has_to_wait_says_why(shell: UpShell, way: str) -> None:
    command = [sys.executable, "-c", PROGRAM, "load", "large", "--replicas", "2"]
    environment = shell.environment | ({"PACKTRAIN_URL": shell.said["http"]} if way == "http" else {})
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as waits:
        assert waits.stderr is not None
        said = waits.stderr.readline()
        waits.kill()
    shell.run("unload", "large")

    assert re.match(r"loading large: needs 600 MiB, n1 has \d+ MiB free and nothing idle to unload", said)


def test_explain_says_where_a_job_is_in_words_and_as_json(shell: UpShell) -> None:
    job_id = shell.json("run", "m", "hello", "--lane", "bulk", "--user", "ann", "--max-run", "60")["job_id"]

    found = shell.json("explain", job_id)
    said = shell.run("explain", job_id)

    assert (found["state"], found["model"], found["position"]) == ("SUCCEEDED", "m", None)
    assert (found["lane"], found["user"]) == ("bulk", "ann")
    assert "SUCCEEDED since" in said.stdout
    assert "it ended as SUCCEEDED" in said.stdout


def test_an_unknown_model_is_an_error_on_stderr_alone(shell: UpShell) -> None:
    done = shell.run("load", "nosuch", "--json")

    assert (done.returncode, done.stdout) == (2, "")
    assert "nosuch" in done.stderr


def test_down_says_what_it_stopped(shell: UpShell) -> None:
    home = shell.environment["PACKTRAIN_HOME"]

    assert shell.json("down") == {"home": home, "stopped": True}
    assert shell.up.wait(20) == 0
    assert shell.up.stdout is not None
    assert shell.up.stdout.read() == ""
    assert shell.json("down") == {"home": home, "stopped": False}
