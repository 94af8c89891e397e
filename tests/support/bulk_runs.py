"""Bulk runs for tests: files of rows for scripted models, the command as a process, and a run with random kills."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from packtrain.broker.states import InstanceState
from tests.support.fault_table import until_on_file
from tests.support.fleets import eventually
from tests.support.host_fleet import HostFleet

PROGRAM = "from packtrain.client.cli.main import main; main()"
#: What one process after the other is killed in a run.
KINDS = ("command", "instance", "agent", "coordinator", "broker")


def row(number: int, model: str, *, text: str = "", **body: Any) -> dict[str, Any]:
    """A row of a chat in OpenAI's form; its answer is its text backwards."""
    messages = [{"role": "user", "content": text or f"row {number}"}]
    return {
        "custom_id": f"row-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": model, "messages": messages, **body},
    }


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    """A bulk file."""
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of answers; none, if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def content(line: dict[str, Any]) -> str:
    """The text of the answer in a line."""
    return str(line["response"]["body"]["choices"][0]["message"]["content"])


@dataclass
class BulkCommand:
    """`packtrain bulk run`, as a process that is started again whenever it was killed."""

    url: str
    source: Path
    out: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[str] | None = None
    errors: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start it."""
        command = [sys.executable, "-c", PROGRAM, "bulk", "run", str(self.source), "-o", str(self.out), *self.options]
        env = {**os.environ, "PACKTRAIN_URL": self.url}
        with open(self.out.with_suffix(".log"), "a") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, text=True)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it."""
        assert self.process
        self.process.send_signal(number)
        self.process.wait(30)

    def wait(self, timeout_s: float) -> int:
        """Its exit code."""
        assert self.process
        return self.process.wait(timeout_s)

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self.out.with_suffix(".log").read_text()

    def ended(self) -> int:
        """Rows that are through, as its ledger knows."""
        path = self.out.with_name(self.out.name + ".packtrain") / "ledger.sqlite"
        if not path.exists():
            return 0
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as ledger, suppress(sqlite3.OperationalError):
            return int(ledger.execute("SELECT COUNT(*) FROM rows WHERE state > 0").fetchone()[0])
        return 0  # it has no tables yet

    def until_ended(self, rows: int, timeout_s: float = 120) -> None:
        """Wait until so many are through."""
        eventually(lambda: self.ended() >= rows, f"{rows} rows of {self.out.name}", timeout_s)


def run_with_kills(fleet: HostFleet, command: BulkCommand, rows: int, random: Random, *, timeout_s: float) -> list[str]:
    """Run a file while each kind of process is killed once, at random moments in random order; which, and when."""
    kinds = random.sample(KINDS, len(KINDS))
    moments = sorted(random.sample(range(rows // 20, rows * 9 // 10), len(kinds)))
    killers: dict[str, Callable[[], None]] = {
        "command": lambda: _kill_command(command),
        "instance": lambda: _kill_instance(fleet, random),
        "agent": lambda: _kill_agent(fleet, random),
        "coordinator": lambda: _kill_coordinator(fleet),
        "broker": lambda: _kill_broker(fleet),
    }
    command.start()
    said = []
    for kind, moment in zip(kinds, moments, strict=True):
        command.until_ended(moment, timeout_s)
        killers[kind]()
        said.append(f"{kind} after {moment} rows")
    assert command.wait(timeout_s) == 0, command.log
    return said


def _kill_command(command: BulkCommand) -> None:
    command.kill()
    command.start()


def _kill_instance(fleet: HostFleet, random: Random) -> None:
    ready = [i for i in fleet.instances(state=InstanceState.READY) if i.pid]
    with suppress(ProcessLookupError):
        if ready:
            os.kill(random.choice(ready).pid, signal.SIGKILL)


def _kill_agent(fleet: HostFleet, random: Random) -> None:
    node = fleet.nodes[random.choice(sorted(fleet.nodes))]
    assert node.agent
    node.agent.kill()
    node.agent.wait()
    node.start()


def _kill_coordinator(fleet: HostFleet) -> None:
    process = fleet.coordinators.pop()
    process.kill()
    process.wait()
    fleet.start_coordinator()


def _kill_broker(fleet: HostFleet) -> None:
    assert fleet.broker
    until_on_file(fleet.redis)
    fleet.broker.kill()
    fleet.broker.wait()
    time.sleep(1)
    fleet.start_broker()


def numbered(count: int, models: Sequence[str], **body: Any) -> Iterator[dict[str, Any]]:
    """Rows for several models by turns."""
    return (row(number, models[number % len(models)], **body) for number in range(count))
