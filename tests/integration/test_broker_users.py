"""A fleet whose parts have users of their own in the broker: it runs whole, and each is refused what is not its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from typer.testing import CliRunner

from packtrain.broker.access import user_of
from packtrain.broker.connection import connect
from packtrain.broker.errors import JobCancelled, SetupError
from packtrain.broker.ids import NodeId
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.settings import Settings
from packtrain.broker.states import JobState
from packtrain.broker.users import machines
from packtrain.client import Packtrain
from packtrain.client.cli.join_commands import join_fleet
from packtrain.client.cli.main import app
from packtrain.client.cli.up import RunningFleet, UpOptions, running_fleet
from tests.support.fleets import eventually, own_refusals, until_first_text

pytestmark = pytest.mark.integration

OTHER = NodeId("other")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    home = tmp_path_factory.mktemp("head")
    offer(home, "echo")
    options = UpOptions(
        home=home, port=0, join_port=0, http_port=0, listen="127.0.0.1", node=NodeId("head"), drain_s=1, quiet=True,
        env={"PACKTRAIN_SCRIPTED": "1", "PACKTRAIN_LEASE_MS": "2000"},
    )  # fmt: skip
    with running_fleet(options) as running:
        yield running


@pytest.fixture
def admin(fleet: RunningFleet) -> Iterator[Redis]:
    with connect(fleet.url, name="test") as client:
        yield client


def offer(home: Path, model: str) -> None:
    (home / "models").mkdir(parents=True)
    (home / "models" / f"{model}.scripted.json").write_text(json.dumps({"n_slots": 2, "step_ms": 5}))


def url_of(fleet: RunningFleet, user: str) -> str:
    return packtrain(fleet, "broker", "url", user).strip()


def packtrain(fleet: RunningFleet, *arguments: str) -> str:
    done = CliRunner(env={"PACKTRAIN_HOME": str(fleet.home)}).invoke(app, [*arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_each_part_has_its_own_user(fleet: RunningFleet, admin: Redis) -> None:
    users = {client["name"].split(".")[0]: client["user"] for client in admin.client_list()}

    assert users["coordinator"] == "coordinator"
    assert users["gateway"] == "gateway"
    assert users["agent"] == "node"
    assert users["pairing"] == "default"  # it makes users, so it is an admin


def test_a_client_asks_and_follows_and_cancels(fleet: RunningFleet) -> None:
    with Packtrain(url_of(fleet, "client")) as client:
        assert client.generate("echo", "hello", timeout=20).text == "olleh"
        job = client.submit("echo", "!long", max_tokens=400)
        until_first_text(job)
        assert client.explain(job.id).state is JobState.RUNNING
        job.cancel()
        with pytest.raises(JobCancelled):
            job.result(timeout=10)
        waiting = [client.submit("echo", "!long", max_tokens=400) for _ in range(4)]
        for job in reversed(waiting):  # the last ones before they begin
            job.cancel()
        assert [model.id for model in client.models()] == ["echo"]
        assert [node.node for node in client.nodes()] == ["head"]
        assert len(client.jobs(10)) == 6


def test_a_client_is_told_what_it_may_not_do(fleet: RunningFleet) -> None:
    with Packtrain(url_of(fleet, "client")) as client:
        with pytest.raises(SetupError, match=r"user at redis://client:\*\*\*@.* may not do that"):
            client.drain_node("head")
        with pytest.raises(SetupError, match="do it on the head"):
            client.load("echo")


def test_a_reader_sees_the_fleet_and_no_job(fleet: RunningFleet) -> None:
    with Packtrain(fleet.url) as all_may, connect(url_of(fleet, "reader"), name="reader", retries=0) as redis:
        job = all_may.submit("echo", "a secret of mine")
        job.result(timeout=20)
        assert [beat.node for beat in RedisRegistry(redis).nodes()] == ["head"]
        assert RedisJobs(redis).waiting() == {}
        with pytest.raises(Exception, match="permissions to access"):
            RedisJobs(redis).status(job.id)


def test_a_machine_joins_with_a_password_of_its_own_and_is_thrown_out_alone(
    fleet: RunningFleet, admin: Redis, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, node=OTHER)
    token = json.loads(packtrain(fleet, "invite", "--json"))["token"]
    url = join_fleet(settings, token, None, None)
    assert f"redis://{user_of(OTHER)}:" in url
    assert fleet.url.split(":")[2].split("@")[0] not in url
    offer(tmp_path, "far")
    log = tmp_path / "log"
    env = {**os.environ, "PACKTRAIN_SCRIPTED": "1", "PACKTRAIN_HOME": str(tmp_path), "PACKTRAIN_URL": url,
           "PACKTRAIN_NODE": OTHER, "PACKTRAIN_LEASE_MS": "2000", "PACKTRAIN_DRAIN_S": "1"}  # fmt: skip
    with log.open("wb") as out:
        agent = subprocess.Popen(
            [sys.executable, "-m", "packtrain.workers.agent_main"], env=env, stdout=out, stderr=out,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        with Packtrain(url) as there, Packtrain(fleet.url) as here:
            eventually(lambda: len(there.nodes()) == 2, "the machine that joined")
            result = there.generate("far", "hello", timeout=30)  # commands on that machine work, too
            assert (result.text, result.node) == ("olleh", OTHER)
            assert machines(admin) == [OTHER]
            with pytest.raises(SetupError, match="may not do that"):
                there.drain_node("head")

            packtrain(fleet, "nodes", "revoke", OTHER)

            assert [beat.node for beat in here.nodes()] == ["head"]
            assert not [c for c in admin.client_list() if c["user"] == user_of(OTHER)]
            assert [node.node for node in here.nodes()] == ["head"]
            with pytest.raises(SetupError, match=r"refused the password.*join anew"):
                Packtrain(url).nodes()
            assert here.generate("echo", "hello", timeout=20).text == "olleh"
    finally:
        agent.kill()  # asked to end it would try to reach the broker for a while; its instance follows by itself
        agent.wait(20)
    with pytest.raises(SetupError, match="has no password of its own"):
        CliRunner(env={"PACKTRAIN_HOME": str(fleet.home)}).invoke(
            app, ["nodes", "revoke", OTHER], catch_exceptions=False
        )


def test_a_part_was_refused_nothing_in_all_this(fleet: RunningFleet) -> None:
    assert own_refusals(fleet.url) == set()
