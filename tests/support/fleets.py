"""Whole fleets for tests: real broker, real coordinator, agent and instances, as `packtrain up` runs them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from redis.exceptions import RedisError

from packtrain.broker.access import Role
from packtrain.broker.beats import InstanceBeat
from packtrain.broker.connection import connect
from packtrain.broker.ids import NodeId
from packtrain.broker.states import InstanceState
from packtrain.client import Job, Packtrain
from packtrain.client.cli.up import RunningFleet, UpOptions, running_fleet

LEASE_MS = 2000
#: At its start a process looks for gateways of 0.1 in the list of connections, and does without where it may not.
MAY_ASK_IN_VAIN = {"client|list"}

T = TypeVar("T")


@dataclass
class Fleet:
    """A running fleet with a client, and what tests do to it."""

    running: RunningFleet
    client: Packtrain

    @property
    def url(self) -> str:
        return self.running.url

    def instance(self, model: str) -> InstanceBeat:
        """The READY instance of a model; waits for it."""

        def ready() -> InstanceBeat | None:
            found = [i for i in self.client.instances() if i.model == model and i.state is InstanceState.READY]
            alive = [i for i in found if psutil.pid_exists(i.pid)]
            return alive[0] if alive else None

        return eventually(ready, f"a READY instance of {model}")

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Signal one of our own processes."""
        os.kill(pid, number)


@contextmanager
def scripted_fleet(
    home: Path,
    models: dict[str, dict[str, Any]],
    *,
    flower: bool = False,
    http_port: int | None = None,
    broker_url: str = "",
    **env: str,
) -> Iterator[Fleet]:
    """A fleet that offers scripted models, each by what its file says."""
    folder = home / "models"
    folder.mkdir(parents=True, exist_ok=True)
    for name, script in models.items():
        (folder / f"{name}.scripted.json").write_text(json.dumps(script))
    env = {"PACKTRAIN_SCRIPTED": "1", **env}
    with fleet(home, flower=flower, http_port=http_port, broker_url=broker_url, **env) as running:
        yield running


@contextmanager
def fleet(
    home: Path,
    *models: Path,
    flower: bool = False,
    http_port: int | None = None,
    broker_url: str = "",
    **env: str,
) -> Iterator[Fleet]:
    """A fleet as `packtrain up` runs it, with short leases; its broker must have refused its parts nothing.

    Args:
        broker_url: Of a broker that runs already, as `up --broker` takes it; empty: the fleet's own.
    """
    options = UpOptions(
        home=home,
        broker_url=broker_url,
        port=0,
        node=NodeId("n1"),
        models=models,
        drain_s=5,
        flower=flower,
        flower_port=0,
        http_port=http_port,
        quiet=True,
        env={"PACKTRAIN_LEASE_MS": str(LEASE_MS), **env},
    )
    with running_fleet(options) as running, Packtrain(running.url) as client:
        yield Fleet(running, client)
        assert not (refused := own_refusals(running.url)), f"broker/access.py lets parts do too little: {refused}"


def own_refusals(url: str) -> set[tuple[str, str]]:
    """What parts of a fleet were refused by its broker: who, and which command, key or channel."""
    own = {role.value for role in (Role.COORDINATOR, Role.GATEWAY, Role.NODE, Role.FLOWER)}
    with suppress(RedisError), connect(url, name="test", retries=0) as admin:  # one that a test has killed says nothing
        refused = {(e["username"], e["object"]) for e in admin.acl_log() if e["username"] in own}
        return {each for each in refused if each[1] not in MAY_ASK_IN_VAIN}
    return set()


def eventually(look: Callable[[], T | None], what: str, timeout_s: float = 30) -> T:
    """The first value of `look` that is true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s in vain for {what}")


def until_first_text(job: Job) -> None:
    """Wait until a job has produced something."""
    eventually(lambda: job.status().first_token_ms, f"the first token of {job.id}")
