"""The registry: what nodes, instances and models there are, as their own beats say.

Every fact is a hash with a TTL that its owner renews, so a silent owner vanishes by itself. A sorted set beside each
kind lists who has ever reported; the coordinator prunes it. An instance's facts have one writer at a time: the
coordinator while REQUESTED, the agent of its node from then on.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

from pydantic import BaseModel
from redis import Redis
from redis.exceptions import WatchError

from packtrain.broker import keys
from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.fields import dump_hash, load_hash
from packtrain.broker.ids import InstanceId, ModelId, NodeId, Route
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.node_wishes import NodeChange, NodeWish, changed
from packtrain.broker.offer_book import DIGEST, OfferBook, Offers, to_offers
from packtrain.broker.orders import Desired
from packtrain.broker.pulls import PullStatus, pull_ttl_ms

logger = logging.getLogger(__name__)

_M = TypeVar("_M", bound=BaseModel)


#: Index of each kind, and how to name the facts of a member.
_KINDS: dict[str, Callable[[str], str]] = {
    keys.NODES: lambda member: keys.node(NodeId(member)),
    keys.INSTANCES: lambda member: keys.instance(InstanceId(member)),
    keys.MODELS: lambda member: keys.model(ModelId(member)),
}


class Registry(Protocol):
    """Implemented by `RedisRegistry` and, for tests, `MemoryRegistry`; one contract suite runs on both."""

    def now_ms(self) -> int:
        """The broker's clock, ms since the epoch. All times in beats are on it."""
        ...

    def term(self) -> int:
        """Of the latest leadership; 0: nobody has led yet."""
        ...

    def put_node(self, beat: NodeBeat) -> None:
        """Report a node; lives `keys.NODE_TTL_MS`."""
        ...

    def drop_node(self, node: NodeId) -> None:
        """A node leaves."""
        ...

    def node(self, node: NodeId) -> NodeBeat | None:
        """One node, if it lives."""
        ...

    def nodes(self) -> list[NodeBeat]:
        """Live nodes, by id."""
        ...

    def put_instance(self, beat: InstanceBeat) -> None:
        """Report an instance; lives `keys.INSTANCE_TTL_MS`, or `INSTANCE_ENDED_TTL_MS` once its state is terminal."""
        ...

    def put_instances(self, beats: Sequence[InstanceBeat]) -> None:
        """Report several at once: all of them or, when that fails, none."""
        ...

    def instances(self) -> list[InstanceBeat]:
        """Instances that live or ended lately, by id."""
        ...

    def instances_named(self, names: Sequence[InstanceId]) -> list[InstanceBeat]:
        """Those of these that live or ended lately."""
        ...

    def put_models(self, models: Sequence[ModelInfo]) -> None:
        """Report models of a catalog; each lives `keys.MODEL_TTL_MS`."""
        ...

    def models(self) -> list[ModelInfo]:
        """Known models and aliases, by id."""
        ...

    def put_offers(self, node: NodeId, models: Sequence[ModelInfo]) -> None:
        """Report the models that a node can load, as its own catalog has them; lives `keys.NODE_TTL_MS`."""
        ...

    def offers(self) -> Offers:
        """What each live node offers. Valid until the next call."""
        ...

    def set_desired(self, model: ModelId, desired: Desired) -> None:
        """Record what an operator wants."""
        ...

    def desired(self) -> dict[ModelId, Desired]:
        """What operators want of models."""
        ...

    def change_node(self, node: NodeId, change: NodeChange) -> NodeWish:
        """Record what an operator wants of a node; all that is wanted of it then. Atomic."""
        ...

    def node_wish(self, node: NodeId) -> NodeWish:
        """What operators want of a node."""
        ...

    def put_pull(self, pull_id: str, status: PullStatus) -> None:
        """Report a pull; lives `RUNNING_TTL_MS`, or `ENDED_TTL_MS` once it has ended."""
        ...

    def pull(self, pull_id: str) -> PullStatus | None:
        """How far a pull is; None: its node has not said, or says nothing any more."""
        ...

    def secret(self) -> str:
        """The fleet's secret, 256 random bits that nodes know each other by; the first who asks makes it."""
        ...

    def put_waits(self, waits: Mapping[Route, str]) -> None:
        """Say why routes must wait, all of them; lives `keys.WAITS_TTL_MS`."""
        ...

    def waits(self) -> dict[Route, str] | None:
        """Why routes must wait; None: nobody has planned lately."""
        ...

    def prune(self) -> None:
        """Forget members whose facts have expired."""
        ...


class RedisRegistry:
    """A `Registry` on Redis or Valkey. Safe to share between threads; every call may raise `redis.RedisError`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._book = OfferBook()

    def now_ms(self) -> int:
        seconds, micros = self._redis.time()
        return seconds * 1000 + micros // 1000

    def term(self) -> int:
        return int(cast(str | None, self._redis.get(keys.TERM)) or 0)

    def put_node(self, beat: NodeBeat) -> None:
        self._put([(keys.NODES, beat.node, keys.node(NodeId(beat.node)), beat, keys.NODE_TTL_MS)])

    def drop_node(self, node: NodeId) -> None:
        self._redis.zrem(keys.NODES, node)
        self._redis.delete(keys.node(node), keys.offers(node))

    def node(self, node: NodeId) -> NodeBeat | None:
        fields = cast(dict[str, str], self._redis.hgetall(keys.node(node)))
        return load_fact(NodeBeat, node, fields) if fields else None

    def nodes(self) -> list[NodeBeat]:
        return self._all(keys.NODES, NodeBeat)

    def put_instance(self, beat: InstanceBeat) -> None:
        self.put_instances([beat])

    def put_instances(self, beats: Sequence[InstanceBeat]) -> None:
        self._put(
            [(keys.INSTANCES, b.instance, keys.instance(InstanceId(b.instance)), b, _instance_ttl_ms(b)) for b in beats]
        )

    def instances(self) -> list[InstanceBeat]:
        return self._all(keys.INSTANCES, InstanceBeat)

    def instances_named(self, names: Sequence[InstanceId]) -> list[InstanceBeat]:
        return self._facts(keys.INSTANCES, InstanceBeat, names)

    def put_models(self, models: Sequence[ModelInfo]) -> None:
        self._put([(keys.MODELS, info.id, keys.model(ModelId(info.id)), info, keys.MODEL_TTL_MS) for info in models])

    def models(self) -> list[ModelInfo]:
        return self._all(keys.MODELS, ModelInfo)

    def put_offers(self, node: NodeId, models: Sequence[ModelInfo]) -> None:
        key, said = keys.offers(node), to_offers(models)
        pipe = self._redis.pipeline(transaction=True)
        pipe.delete(key)
        pipe.hset(key, mapping=cast(dict[Any, Any], said))
        pipe.pexpire(key, keys.NODE_TTL_MS)
        pipe.execute()

    def offers(self) -> Offers:
        # A thousand nodes with two hundred models each say 60 MB; what has not changed is not read again.
        nodes = [NodeId(node) for node in sorted(cast(list[str], self._redis.zrange(keys.NODES, 0, -1)))]
        pipe = self._redis.pipeline(transaction=False)
        for node in nodes:
            pipe.hget(keys.offers(node), DIGEST)
        digests = dict(zip(nodes, pipe.execute(), strict=True))
        changed = self._book.changed(digests)
        for node in changed:
            pipe.hgetall(keys.offers(node))
        for node, said in zip(changed, pipe.execute(), strict=True):
            self._book.put(node, said)
        return self._book.by_model

    def set_desired(self, model: ModelId, desired: Desired) -> None:
        self._redis.hset(keys.DESIRED, model, desired.model_dump_json())

    def desired(self) -> dict[ModelId, Desired]:
        rows = cast(dict[str, str], self._redis.hgetall(keys.DESIRED))
        return {ModelId(model): Desired.model_validate_json(row) for model, row in rows.items()}

    def change_node(self, node: NodeId, change: NodeChange) -> NodeWish:
        now_ms = self.now_ms()
        with self._redis.pipeline() as pipe:
            while True:
                pipe.watch(keys.NODE_WISHES)  # type: ignore[no-untyped-call]
                wish = changed(
                    _parse_wish(cast("str | None", pipe.hget(keys.NODE_WISHES, node))), change, now_ms=now_ms
                )
                pipe.multi()
                pipe.hset(keys.NODE_WISHES, node, wish.model_dump_json())
                try:
                    pipe.execute()
                except WatchError:  # another operator was faster: begin again from what they wrote
                    continue
                return wish

    def node_wish(self, node: NodeId) -> NodeWish:
        return _parse_wish(cast("str | None", self._redis.hget(keys.NODE_WISHES, node)))

    def put_pull(self, pull_id: str, status: PullStatus) -> None:
        self._redis.set(keys.pull(pull_id), status.model_dump_json(), px=pull_ttl_ms(status))

    def pull(self, pull_id: str) -> PullStatus | None:
        text = cast(str | None, self._redis.get(keys.pull(pull_id)))
        return PullStatus.model_validate_json(text) if text else None

    def secret(self) -> str:
        pipe = self._redis.pipeline(transaction=True)
        pipe.set(keys.SECRET, secrets.token_hex(32), nx=True)
        pipe.pexpire(keys.SECRET, keys.SECRET_TTL_MS)
        pipe.get(keys.SECRET)
        return str(pipe.execute()[-1])

    def put_waits(self, waits: Mapping[Route, str]) -> None:
        pipe = self._redis.pipeline(transaction=True)
        pipe.delete(keys.WAITS)
        pipe.hset(
            keys.WAITS, mapping={"": "", **{str(route): why for route, why in waits.items()}}
        )  # the empty field says that somebody has planned
        pipe.pexpire(keys.WAITS, keys.WAITS_TTL_MS)
        pipe.execute()

    def waits(self) -> dict[Route, str] | None:
        rows = cast(dict[str, str], self._redis.hgetall(keys.WAITS))
        return {Route(route): reason for route, reason in rows.items() if route} if rows else None

    def prune(self) -> None:
        for index, key in _KINDS.items():
            members = cast(list[str], self._redis.zrange(index, 0, -1))
            pipe = self._redis.pipeline(transaction=False)
            for member in members:
                pipe.exists(key(member))
            gone = [member for member, exists in zip(members, pipe.execute(), strict=True) if not exists]
            if gone:
                self._redis.zrem(index, *gone)

    def _put(self, rows: Sequence[tuple[str, str, str, BaseModel, int]]) -> None:
        now = self.now_ms()
        pipe = self._redis.pipeline(transaction=True)
        for index, member, key, message, ttl_ms in rows:
            pipe.zadd(index, {member: now})
            pipe.hset(key, mapping=cast(dict[Any, Any], dump_hash(message)))
            pipe.pexpire(key, ttl_ms)
        pipe.execute()

    def _all(self, index: str, cls: type[_M]) -> list[_M]:
        return self._facts(index, cls, sorted(cast(list[str], self._redis.zrange(index, 0, -1))))

    def _facts(self, index: str, cls: type[_M], members: Sequence[str]) -> list[_M]:
        pipe = self._redis.pipeline(transaction=False)
        for member in members:
            pipe.hgetall(_KINDS[index](member))
        rows = zip(members, pipe.execute(), strict=True)
        return [fact for member, fields in rows if fields and (fact := load_fact(cls, member, fields))]


def _instance_ttl_ms(beat: InstanceBeat) -> int:
    return keys.INSTANCE_ENDED_TTL_MS if beat.state.is_terminal else keys.INSTANCE_TTL_MS


def _parse_wish(row: str | None) -> NodeWish:
    return NodeWish.model_validate_json(row) if row else NodeWish()


def load_fact(cls: type[_M], member: str, fields: dict[str, str]) -> _M | None:
    """The fact, or None when it cannot be read: one odd report of a newer node must not blind the whole fleet."""
    try:
        return load_hash(cls, fields)
    except ValueError as error:
        logger.warning("Cannot read what %s reports: %s", member, error, extra={"event": "registry.unreadable"})
        return None


class MemoryRegistry:
    """The in-memory twin, with the clock as an argument.

    Args:
        term: Of the latest leadership.
    """

    def __init__(self, now_ms: Callable[[], int], term: Callable[[], int] = lambda: 0) -> None:
        self.now_ms = now_ms
        self.term = term
        self._facts: dict[str, dict[str, tuple[int, BaseModel]]] = {"node": {}, "instance": {}, "model": {}}
        self._desired: dict[ModelId, Desired] = {}
        self._wishes: dict[NodeId, NodeWish] = {}
        self._pulls: dict[str, tuple[int, PullStatus]] = {}
        self._secret = secrets.token_hex(32)
        self._waits: tuple[int, dict[Route, str]] = (0, {})
        self._offers: dict[NodeId, tuple[int, dict[str, str]]] = {}
        self._book = OfferBook()

    def put_node(self, beat: NodeBeat) -> None:
        self._facts["node"][beat.node] = (self.now_ms() + keys.NODE_TTL_MS, beat)

    def drop_node(self, node: NodeId) -> None:
        self._facts["node"].pop(node, None)
        self._offers.pop(node, None)

    def node(self, node: NodeId) -> NodeBeat | None:
        return next((beat for beat in self.nodes() if beat.node == node), None)

    def nodes(self) -> list[NodeBeat]:
        return cast(list[NodeBeat], self._live("node"))

    def put_instance(self, beat: InstanceBeat) -> None:
        self._facts["instance"][beat.instance] = (self.now_ms() + _instance_ttl_ms(beat), beat)

    def put_instances(self, beats: Sequence[InstanceBeat]) -> None:
        for beat in beats:
            self.put_instance(beat)

    def instances(self) -> list[InstanceBeat]:
        return cast(list[InstanceBeat], self._live("instance"))

    def instances_named(self, names: Sequence[InstanceId]) -> list[InstanceBeat]:
        return [beat for beat in self.instances() if beat.instance in names]

    def put_models(self, models: Sequence[ModelInfo]) -> None:
        for info in models:
            self._facts["model"][info.id] = (self.now_ms() + keys.MODEL_TTL_MS, info)

    def models(self) -> list[ModelInfo]:
        return cast(list[ModelInfo], self._live("model"))

    def put_offers(self, node: NodeId, models: Sequence[ModelInfo]) -> None:
        self._offers[node] = (self.now_ms() + keys.NODE_TTL_MS, to_offers(models))

    def offers(self) -> Offers:
        live = {node: said for node, (until, said) in self._offers.items() if until > self.now_ms()}
        for node in self._book.changed({node: said[DIGEST] for node, said in live.items()}):
            self._book.put(node, live[node])
        return self._book.by_model

    def set_desired(self, model: ModelId, desired: Desired) -> None:
        self._desired[model] = desired

    def desired(self) -> dict[ModelId, Desired]:
        return dict(self._desired)

    def change_node(self, node: NodeId, change: NodeChange) -> NodeWish:
        self._wishes[node] = changed(self.node_wish(node), change, now_ms=self.now_ms())
        return self._wishes[node]

    def node_wish(self, node: NodeId) -> NodeWish:
        return self._wishes.get(node, NodeWish())

    def put_pull(self, pull_id: str, status: PullStatus) -> None:
        self._pulls[pull_id] = (self.now_ms() + pull_ttl_ms(status), status)

    def pull(self, pull_id: str) -> PullStatus | None:
        until, status = self._pulls.get(pull_id, (0, None))
        return status if until > self.now_ms() else None

    def secret(self) -> str:
        return self._secret

    def put_waits(self, waits: Mapping[Route, str]) -> None:
        self._waits = (self.now_ms() + keys.WAITS_TTL_MS, dict(waits))

    def waits(self) -> dict[Route, str] | None:
        until, waits = self._waits
        return waits if until > self.now_ms() else None

    def prune(self) -> None:
        """Nothing to do: `_live` looks at the clock."""

    def _live(self, kind: str) -> list[BaseModel]:
        now = self.now_ms()
        return [fact for _, (until, fact) in sorted(self._facts[kind].items()) if until > now]
