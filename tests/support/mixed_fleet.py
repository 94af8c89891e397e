"""A fleet whose processes are of two versions: each started by the interpreter of its version, replaced one by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx2
from deploy.previous_version import previous_python

from packtrain.broker.server import BrokerServer
from tests.support.fleets import eventually

Version = Literal["old", "new"]

COMMAND = ("-m", "packtrain.client.cli.main")
#: What a client of either version does until the file is there: jobs whose answers it knows, each told as a line.
CLIENT = """
import json, pathlib, sys, time
from packtrain.client import Packtrain, TryLater
url, key, stop, name = sys.argv[1:]
with Packtrain(url, api_key=key) if key else Packtrain(url) as fleet:
    number = 0
    while not pathlib.Path(stop).exists():
        prompt = f"{name} {number}"
        try:
            job = fleet.submit("echo", prompt, idempotency_key=prompt)
            said = "".join(job.stream()) if number % 2 else job.result().text
        except TryLater:  # there is no gateway, or no broker, for a moment
            time.sleep(0.2)
            continue
        print(json.dumps({"id": job.id, "ok": said == prompt[::-1], "said": said}), flush=True)
        number += 1
        time.sleep(0.2)
"""


@dataclass
class Running:
    """One process of the fleet."""

    process: subprocess.Popen[bytes]
    version: Version
    log: Path

    def end(self) -> None:
        """SIGTERM, and wait for its end."""
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def check(self) -> None:
        """Fail with its last words where it ended by itself."""
        assert self.process.poll() is None, f"{self.log.stem} has ended:\n{self.log.read_text()[-2000:]}"


@dataclass
class MixedFleet:
    """Broker, coordinator, gateway and two nodes.

    Args:
        folder: For homes and logs.
        models: Scripted models of both nodes, by name.
    """

    folder: Path
    models: dict[str, dict[str, Any]]
    python: dict[Version, str] = field(default_factory=dict)
    parts: dict[str, Running] = field(default_factory=dict)
    clients: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.python = {"old": str(previous_python()), "new": sys.executable}
        self.server = BrokerServer(self.folder / "broker", 0)
        self.server.prepare()
        self.http_port = _free_port()
        for node in ("n1", "n2"):
            models = self.home(node) / "models"
            models.mkdir(parents=True)
            for name, script in self.models.items():
                (models / f"{name}.scripted.json").write_text(json.dumps(script))

    @property
    def url(self) -> str:
        """Of the broker."""
        return self.server.url

    @property
    def http_url(self) -> str:
        """Of the gateway."""
        return f"http://127.0.0.1:{self.http_port}"

    def home(self, node: str) -> Path:
        """Of a node; the head's is that of n1."""
        return self.folder / node

    def start(self, part: str, version: Version, *, url: str = "") -> None:
        """Start a process: `broker`, `coordinator`, `gateway`, or a node; ready when this returns, but for a node.

        Args:
            url: Of another broker than the fleet's own.
        """
        argv: Sequence[str]
        if part == "broker":
            argv = self.server.command()
        else:
            module = {
                "coordinator": "packtrain.broker.coordinator_main",
                "gateway": "packtrain.client.gateway.gateway_main",
            }.get(part, "packtrain.workers.agent_main")
            argv = (self.python[version], "-m", module)
        log = self.folder / f"{part}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                argv, env=self.env(part if part in ("n1", "n2") else "n1") | ({"PACKTRAIN_URL": url} if url else {}),
                cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        self.parts[part] = Running(process, version, log)
        if part == "broker":
            self.server.wait_ready(20)
        if part == "gateway":
            eventually(lambda: self._answers(part), "a gateway")

    def replace(self, part: str, version: Version) -> None:
        """End a process and start it in another version."""
        self.parts[part].end()
        self.start(part, version)

    def command(self, version: Version, *words: str, code: int = 0, **env: str) -> str:
        """What the command line of a version prints."""
        done = subprocess.run(
            [self.python[version], *COMMAND, *words],
            env={**self.env("n1"), **env}, cwd=self.folder, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{words} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def begin_client(self, name: str, version: Version, url: str, key: str = "") -> None:
        """A client that hands in jobs until `end_clients`."""
        jobs, errors = self.folder / f"{name}.jobs", self.folder / f"{name}.err"
        with jobs.open("w") as out, errors.open("w") as err:
            self.clients[name] = subprocess.Popen(
                [self.python[version], "-c", CLIENT, url, key, str(self.folder / "stop"), name],
                env=os.environ | {"PYTHONSAFEPATH": "1"}, cwd=self.folder, stdout=out, stderr=err, text=True,
            )  # fmt: skip

    def jobs_of(self, name: str) -> list[dict[str, Any]]:
        """What a client has told so far."""
        lines = (self.folder / f"{name}.jobs").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def more_of_each(self, count: int = 2) -> None:
        """Wait until every client had so many more answers."""
        before = {name: len(self.jobs_of(name)) for name in self.clients}
        for name in self.clients:
            wanted = before[name] + count
            eventually(lambda name=name, wanted=wanted: self._has(name, wanted), f"more answers for {name}", 60)  # type: ignore[misc]

    def end_clients(self) -> dict[str, list[dict[str, Any]]]:
        """All that they told; none may have failed."""
        (self.folder / "stop").touch()
        for name, process in self.clients.items():
            assert process.wait(60) == 0, (self.folder / f"{name}.err").read_text()[-2000:]
        return {name: self.jobs_of(name) for name in self.clients}

    def check(self) -> None:
        """Nobody has ended by itself."""
        for part in self.parts.values():
            part.check()

    def stop(self) -> None:
        """End all that still runs, the broker last."""
        for process in self.clients.values():
            process.kill()
            process.wait()
        for name in sorted(self.parts, key=lambda name: name == "broker"):
            if self.parts[name].process.poll() is None:
                self.parts[name].end()

    def env(self, node: str) -> dict[str, str]:
        """What a process of this node is told."""
        ours = {
            "PACKTRAIN_URL": self.url, "PACKTRAIN_HOME": str(self.home(node)), "PACKTRAIN_NODE": node,
            "PACKTRAIN_SCRIPTED": "1", "PACKTRAIN_LEASE_MS": "4000", "PACKTRAIN_DRAIN_S": "1",
            "PACKTRAIN_HTTP_PORT": str(self.http_port), "PYTHONSAFEPATH": "1",
        }  # fmt: skip
        return os.environ | ours

    def _has(self, name: str, count: int) -> bool:
        client = self.clients[name]
        assert client.poll() is None, f"{name} has ended: {(self.folder / f'{name}.err').read_text()[-2000:]}"
        return len(self.jobs_of(name)) >= count

    def _answers(self, part: str) -> bool:
        self.parts[part].check()
        try:
            return httpx2.get(f"{self.http_url}/readyz", timeout=2, trust_env=False).status_code == 200
        except httpx2.HTTPError:
            time.sleep(0.05)
            return False


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
