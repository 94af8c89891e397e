"""The fleet of two hosts that all these tests look at, built once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from packtrain.client import Packtrain
from tests.compose import images
from tests.compose.engine import Engine, NoEngine, own_engine, running_engine
from tests.compose.projects import Container, Project, compose_command, compose_program
from tests.conftest import ROOT
from tests.support.demo_model import demo_model_folder
from tests.support.fleets import eventually

#: Of the two containers that run models; the engine's own limits, which the agents must find.
HEAD_MEMORY, ATTIC_MEMORY = 2 * 2**30, 3 * 2**30
#: For all parts together, on a busy machine, seconds.
HEALTHY_S = 180


@dataclass(frozen=True, slots=True)
class TwoHosts:
    """The fleet."""

    engine: Engine
    head: Project
    attic: Project
    secrets: dict[str, str]  # every secret, by name
    url: str  # of the broker, as another host sees it
    gateway: str

    @property
    def containers(self) -> dict[str, Container]:
        """All that run or ended, by service; the node of the second host as `attic`."""
        return {**self.head.containers(), "attic": self.attic.containers()["node"]}

    def until_healthy(self) -> dict[str, Container]:
        """Wait until every part says so."""
        deadline = time.monotonic() + HEALTHY_S
        while True:
            found = self.containers
            ill = {name: c for name, c in found.items() if not is_over(c) and c.health != "healthy"}
            if not ill:
                return found
            if time.monotonic() > deadline:
                said = [f"{name}: {c.health}: {self.logs(c)[-800:]}" for name, c in ill.items()]
                raise AssertionError("not healthy: " + "\n".join(said))
            time.sleep(1)

    def logs(self, container: Container) -> str:
        """What it has written."""
        done = self.engine.run("logs", container.id)
        return done.stdout + done.stderr


def is_over(container: Container) -> bool:
    """True for one that does its work once, and did it."""
    state = container.facts["State"]
    return bool(state["Status"] == "exited" and state["ExitCode"] == 0)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """With all images. Steps are told, for they take minutes the first time."""
    folder = images.cache()
    with ExitStack() as stack:
        try:
            found = running_engine()
            tell("preparing root file systems, wheels and the model")
            images.prepare(folder)
            demo_model_folder()
            if found is None:
                compose_program(folder)  # while there is a network
                found = stack.enter_context(own_engine(folder / "engine"))
        except NoEngine as reason:
            pytest.fail(str(reason), pytrace=False)
        tell("building the image")
        images.load(found, folder)
        yield found


@pytest.fixture(scope="session")
def fleet(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    """Up and healthy; the second host joined by a token."""
    folder = tmp_path_factory.mktemp("hosts")
    compose = compose_command(images.cache(), engine)
    address = engine.host_address
    common = {"PACKTRAIN_IMAGE": images.IMAGE, "BROKER_IMAGE": images.BROKER, "PACKTRAIN_ADDRESS": address}
    head = Project(
        engine, compose, ("docker-compose.yml", "deploy/compose.split.yml"), "packtrain-test-head",
        {**common, "SECRETS": str(folder / "secrets"), "PACKTRAIN_MODELS_FOLDER": str(folder / "models"),
         "PACKTRAIN_HTTP_ADDRESS": address, "COMPOSE_PROFILES": "node", "NODE_MEMORY": str(HEAD_MEMORY),
         "NODE_CPUS": "1", "PACKTRAIN_NODE": "head"},
    )  # fmt: skip
    attic = Project(
        engine, compose, ("deploy/compose.node.yml", "deploy/compose.split.yml"), "packtrain-test-attic",
        {**common, "SECRETS": str(folder / "attic"), "PACKTRAIN_MODELS_FOLDER": str(folder / "none"),
         "NODE_MEMORY": str(ATTIC_MEMORY), "NODE_CPUS": "1", "PACKTRAIN_NODE": "attic", "FILES_PORT": "6492",
         "SPLIT_PORT": "6500", "SPLIT_LAST_PORT": "6515"},
    )  # fmt: skip
    for name in ("models", "none", "attic"):
        (folder / name).mkdir()
    shutil.copy(demo_model_folder() / "smollm2.gguf", folder / "models")
    secrets = _secrets(folder / "secrets")
    for project in (attic, head):
        project.down()  # of a run that was killed
    try:
        tell("starting the head")
        head.up()
        token = eventually(lambda: _invited(head), "an invitation", 60)
        (folder / "attic" / "join").write_text(token)
        (folder / "attic" / "join").chmod(0o444)
        tell("starting the second host")
        attic.up()
        two = TwoHosts(
            engine, head, attic, {**secrets, "token": token}, f"redis://:{secrets['password']}@{address}:6390/0",
            f"http://{address}:8080",
        )  # fmt: skip
        two.until_healthy()
        yield two
    finally:
        if os.environ.get("PACKTRAIN_KEEP_LOGS"):
            for project in (head, attic):
                print(project.run("logs", "--no-color", "--timestamps", check=False).stdout)  # noqa: T201
        attic.down()
        head.down()


@pytest.fixture
def client(fleet: TwoHosts) -> Iterator[Packtrain]:
    """By the broker, from outside of all containers."""
    with Packtrain(fleet.url) as client:
        yield client


def _secrets(folder: Path) -> dict[str, str]:
    subprocess.run(["sh", "deploy/init-secrets.sh", str(folder)], cwd=ROOT, check=True, capture_output=True)
    files = [file for file in folder.rglob("*") if file.is_file() and file.stat().st_size]
    return {file.relative_to(folder).as_posix(): file.read_text().strip() for file in files}


def _invited(head: Project) -> str | None:
    done = head.run("exec", "--no-TTY", "pairing", "packtrain", "invite", "--json", check=False)
    return None if done.returncode else str(json.loads(done.stdout)["token"])


_begun = time.monotonic()


def tell(what: str) -> None:
    """Print a step or a figure, with the time since the start."""
    print(f"\n[{time.monotonic() - _begun:5.0f} s] {what}", flush=True)  # noqa: T201
