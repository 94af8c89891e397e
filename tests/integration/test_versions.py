"""Processes of a real fleet say what they speak; one that cannot be among them is refused, and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from typer.testing import CliRunner

from packtrain.broker import keys
from packtrain.broker.compatibility import ProcessBeat
from packtrain.broker.connection import connect
from packtrain.broker.errors import SetupError
from packtrain.broker.processes import Presence, Processes, speaks
from packtrain.broker.server import BrokerServer
from packtrain.broker.versions import Spoken, installed_version
from packtrain.client import Packtrain
from packtrain.client.cli.main import app
from tests.support.fleets import Fleet, eventually, scripted_fleet

pytestmark = pytest.mark.integration

#: Composition roots that look who is there, with what stands before their errors.
ROOTS = {
    "agent": ("packtrain.workers.agent_main", "packtrain node"),
    "coordinator": ("packtrain.broker.coordinator_main", "packtrain coordinator"),
    "gateway": ("packtrain.client.gateway.gateway_main", "packtrain serve"),
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with scripted_fleet(tmp_path_factory.mktemp("home"), {"echo": {}}, http_port=0) as running:
        running.client.load("echo")
        running.instance("echo")
        yield running


@pytest.fixture
def inside(fleet: Fleet) -> Iterator[Redis]:
    client = connect(fleet.url, name="test")
    yield client
    client.close()


def check(url: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["upgrade-check", "--json"], env={"PACKTRAIN_URL": url})
    return done.exit_code, json.loads(done.stdout)


def stranger(**fields: Any) -> ProcessBeat:
    """A process of a version far ahead, on a machine elsewhere."""
    told = speaks().model_dump() | {"version": "9.1.0", **fields}
    return ProcessBeat(kind="coordinator", id="far-1-abc", node="far", **told)


def test_every_process_says_what_it_speaks(fleet: Fleet, inside: Redis) -> None:
    told = eventually(
        lambda: found if len(found := Processes(inside).told()) == 4 else None, "a sign of each of four processes"
    )

    assert {beat.kind for beat in told} == {"agent", "coordinator", "gateway", "instance"}
    assert {beat.version for beat in told} == {installed_version()}
    assert {beat.node for beat in told} == {"n1"}
    assert next(beat.id for beat in told if beat.kind == "coordinator") == inside.get(keys.LEADER)
    assert next(beat.id for beat in told if beat.kind == "instance") == fleet.instance("echo").instance
    code, said = check(fleet.url)
    assert (code, said["state"], said["safe"], said["schema_found"]) == (0, "current", True, keys.SCHEMA_VERSION)
    assert len(said["processes"]) == 4
    assert "***" in said["broker"]


def test_people_are_told_in_a_table(fleet: Fleet) -> None:
    done = CliRunner().invoke(app, ["upgrade-check"], env={"PACKTRAIN_URL": fleet.url, "COLUMNS": "150"})

    assert done.exit_code == 0
    assert "coordinator" in done.stdout
    assert "there is nothing to do" in done.stdout


def test_processes_of_0_1_are_seen_though_they_say_nothing(inside: Redis, fleet: Fleet) -> None:
    hidden = Processes(inside)
    told = hidden.told()
    gateway = connect(fleet.url, name="gateway")
    gateway.ping()

    class Silent(Processes):  # as if none of them had said anything
        def told(self) -> list[ProcessBeat]:
            return []

    found = Silent(inside).all()
    gateway.close()

    assert {beat.kind for beat in found} == {"agent", "coordinator", "gateway", "instance"}
    assert next(beat.node for beat in found if beat.kind == "coordinator") == "n1"
    assert [beat.version for beat in found if beat.kind in ("coordinator", "gateway")] == ["0.1.0", "0.1.0"]
    assert [beat for beat in hidden.all() if beat.kind != "gateway"] == [b for b in told if b.kind != "gateway"]


def test_processes_that_cannot_be_among_the_others_are_refused_and_harm_nothing(
    fleet: Fleet, inside: Redis, tmp_path: Path
) -> None:
    processes = Processes(inside)
    far = stranger(messages={"command": Spoken(writes=3, reads_from=3, reads_to=3).model_dump()})
    processes.put(far)
    late = {"PACKTRAIN_URL": fleet.url, "PACKTRAIN_HOME": str(tmp_path), "PACKTRAIN_NODE": "late",
            "PACKTRAIN_SCRIPTED": "1", "PACKTRAIN_HTTP_PORT": "0"}  # fmt: skip
    started = {
        kind: subprocess.Popen(
            [sys.executable, "-m", module], env={**os.environ, **late}, stderr=subprocess.PIPE, text=True
        )
        for kind, (module, _) in ROOTS.items()
    }

    def have_ended() -> bool:
        processes.put(far)  # or it would lapse while they start, and nobody be refused
        time.sleep(0.2)
        return all(process.poll() is not None for process in started.values())

    try:
        eventually(have_ended, "the end of all three", 90)
        said = {kind: process.communicate()[1] for kind, process in started.items()}
        processes.put(far)
        code, judged = check(fleet.url)
    finally:
        processes.drop(far.id)
        for process in started.values():
            process.kill()

    for kind, (_, name) in ROOTS.items():
        assert started[kind].returncode == 1, kind
        assert f"{name}: this {kind} of Packtrain {installed_version()} cannot join the fleet" in said[kind]
        assert "coordinator far-1-abc (9.1.0), it writes 'command' messages of version 3" in said[kind]
        assert "`packtrain upgrade-check` says what to do" in said[kind]
    assert (code, judged["state"], judged["safe"]) == (1, "blocked", False)
    assert "late" not in {beat.node for beat in processes.all()} | {beat.node for beat in fleet.client.nodes()}
    assert fleet.client.generate("echo", "abc").text == "cba"


def test_a_process_that_ended_is_forgotten(inside: Redis, fleet: Fleet) -> None:
    presence = Presence(fleet.url, "gateway", "n1")
    presence.begin()

    def there() -> bool:
        return presence.beat.id in {beat.id for beat in Processes(inside).told()}

    eventually(there, "its sign")

    presence.end()

    assert not there()
    assert 0 < int(inside.pttl(keys.PROCESSES)) <= keys.PROCESSES_TTL_MS


def test_a_client_of_another_schema_is_refused_before_it_writes(broker: BrokerServer, redis: Redis) -> None:
    redis.set(keys.SCHEMA, "2")
    with (
        Packtrain(broker.url) as client,
        pytest.raises(SetupError, match="holds schema '2', this Packtrain speaks '1'"),
    ):
        client.submit("m", "x")

    assert set(redis.scan_iter("pt:*")) == {keys.SCHEMA}
    assert check(broker.url)[0] == 1


def test_a_broker_that_is_away_is_something_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "packtrain.client.cli.main", "upgrade-check"],
        env={**os.environ, "PACKTRAIN_URL": "redis://127.0.0.1:1/0"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 4
    assert "no broker answers" in done.stderr
