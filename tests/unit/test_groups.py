"""What a node does for groups, without a process: while the broker is away, and with two shards of one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as Away

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.ids import InstanceId
from packtrain.broker.orders import NodeCommand, ShardOrder
from packtrain.broker.registry import MemoryRegistry
from packtrain.workers.shards import groups as module
from packtrain.workers.shards.groups import GroupNews, Groups
from packtrain.workers.shards.held import Place
from packtrain.workers.shards.membership import GONE_S
from packtrain.workers.tunnel.certificate import Identity
from tests.support.factories import instance_beat

pytestmark = pytest.mark.unit


class Broker(MemoryRegistry):
    """One that can be away."""

    def __init__(self) -> None:
        super().__init__(lambda: 0)
        self.is_away = False

    def instances_named(self, names: Sequence[InstanceId]) -> list[InstanceBeat]:
        if self.is_away:
            raise Away("refused")
        return super().instances_named(names)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def groups(broker: Broker, tmp_path: Path) -> Groups:
    identity = Identity("", tmp_path / "pem", tmp_path / "key")
    return Groups(
        broker, identity, listen="127.0.0.1", first_port=0, reached=lambda: "127.0.0.1", caches=tmp_path, drain_s=5
    )


def order(name: str, verb: str, **more: Any) -> NodeCommand:
    return NodeCommand.model_validate({"id": name, "term": 1, "verb": verb, "instance": name, "model": "m", **more})


def test_who_was_missing_before_the_broker_went_away_is_counted_anew_when_it_is_back(
    groups: Groups, broker: Broker
) -> None:
    shards = (ShardOrder(instance="s", node="attic", layers=2, certificate=""),)
    groups.gather(instance_beat("h"), order("h", "load", shards=shards), 0.0)

    def look(now: float) -> GroupNews:
        return groups.poll(now)

    assert not look(1).ended
    broker.is_away = True
    assert not look(2 + GONE_S).ended
    assert not look(3 + 2 * GONE_S).ended
    broker.is_away = False
    assert not look(4 + 2 * GONE_S).ended
    (beat,) = look(4 + 3.1 * GONE_S).ended
    assert beat.reason == "nothing is known of its shard on attic any more"


def test_two_shards_of_one_model_do_not_write_into_one_cache(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path | None] = []

    def held(_beat: InstanceBeat, _command: NodeCommand, place: Place) -> Any:
        made.append(place.cache)
        return SimpleNamespace(cache=place.cache, port=place.port)

    monkeypatch.setattr(module, "HeldShard", held)
    for name, key, free in (("a", "m", 10), ("b", "m", 10), ("c", "other", 10), ("d", "full", 1), ("e", "", 10)):
        command = order(name, "shard", cache_key=key, reserved_bytes=2**20)
        groups.hold(instance_beat(name), command, n_threads=1, disk_free=free * 2**20)

    assert [cache is not None for cache in made] == [True, False, True, False, False]
    assert made[0] != made[2]
