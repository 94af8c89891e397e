"""`packtrain nodes` on a real broker, its agents played by hand."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from redis import Redis
from typer.testing import CliRunner

from packtrain.broker.beats import DeviceMemory
from packtrain.broker.errors import InvalidParameter, UnknownNode
from packtrain.broker.node_wishes import NodeWish
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.server import BrokerServer
from packtrain.client.cli.main import app
from tests.support.factories import NODE, node_beat

pytestmark = pytest.mark.contract

GIB = 1024**3


@pytest.fixture
def registry(redis: Redis) -> RedisRegistry:
    registry = RedisRegistry(redis)
    registry.put_node(node_beat())
    return registry


@pytest.fixture
def packtrain(broker: BrokerServer) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        result = CliRunner(env={"PACKTRAIN_URL": broker.url, "COLUMNS": "250"}).invoke(app, ["nodes", *arguments])
        if result.exception:
            raise result.exception
        return result.stdout

    return run


def test_what_is_set_is_wanted_from_then_on(registry: RedisRegistry, packtrain: Callable[..., str]) -> None:
    packtrain("set", NODE, "--memory", "12GB", "--cores", "6", "--label", "room=attic", "--label", "gpu=yes")
    said = packtrain("set", NODE, "--memory", "start", "--no-label", "gpu")

    assert registry.node_wish(NODE) == NodeWish(cores=6, labels={"room": "attic", "gpu": None})
    assert said == "n1: 6 cores, no gpu, room=attic\n"


def test_drain_and_resume_say_what_is_wanted_now(registry: RedisRegistry, packtrain: Callable[..., str]) -> None:
    assert packtrain("drain", NODE) == "n1: draining\n"
    resumed = json.loads(packtrain("resume", NODE, "--json"))

    assert resumed["draining"] is False
    assert registry.node_wish(NODE).resumed_ms == resumed["resumed_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to set"),
        (["--memory", "much"], "not a size"),
        (["--memory", "0"], "nodes drain"),
        (["--memory", "12"], "less than 64 MiB"),
        (["--cores", "0"], "1 or more"),
        (["--cores", "many"], "no number of cores"),
        (["--label", "attic"], "like room=attic"),
        (["--no-label", "Attic"], "like room=attic"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nonsense_is_refused_with_an_example(
    registry: RedisRegistry, packtrain: Callable[..., str], arguments: list[str], says: str
) -> None:
    with pytest.raises(InvalidParameter, match=says):
        packtrain("set", NODE, *arguments)

    assert registry.node_wish(NODE) == NodeWish()


@pytest.mark.usefixtures("registry")
def test_a_node_that_nobody_knows_is_refused(packtrain: Callable[..., str]) -> None:
    with pytest.raises(UnknownNode, match="those that are: n1"):
        packtrain("drain", "n7")
    with pytest.raises(InvalidParameter, match="is no node's id"):
        packtrain("drain", "N 7")


def test_a_node_that_sleeps_may_be_changed_once_it_was_before(
    registry: RedisRegistry, packtrain: Callable[..., str]
) -> None:
    packtrain("drain", NODE)
    registry.drop_node(NODE)

    packtrain("resume", NODE)

    assert not registry.node_wish(NODE).draining


def test_the_list_shows_labels_gpus_and_why_a_node_takes_nothing(
    registry: RedisRegistry, packtrain: Callable[..., str]
) -> None:
    gpu = DeviceMemory(kind="gpu", name="CUDA0", total=24 * GIB, free=20 * GIB)
    registry.put_node(node_beat("n2", labels={"room": "attic"}, devices=(gpu,), quarantine="the disk is full"))
    registry.put_node(node_beat("n3", draining=True))

    rows = {line.split()[0]: line for line in packtrain().splitlines()}

    assert "up" in rows["n1"].split()
    assert {"room=attic", "quarantine"} <= set(rows["n2"].split())
    assert "20.0 GiB of 24.0 GiB" in rows["n2"]
    assert rows["n2"].endswith("the disk is full")
    assert "draining" in rows["n3"].split()
