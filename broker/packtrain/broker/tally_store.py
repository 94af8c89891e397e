"""Reads what the fleet has counted, and how its queues and its leader are: what every gateway tells Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from redis import Redis

from packtrain.broker import keys
from packtrain.broker.deeds import Deeds, deeds_of
from packtrain.broker.ids import ModelId
from packtrain.broker.job_spec import Lane
from packtrain.broker.queues import LANES, Queue, look_at_queues
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.scripts import Call, Scripts
from packtrain.broker.tally import Tally, Used, tally_of, used_of

#: Folds of one look. More than these hold nobody has to wait for; the next look goes on.
MAX_FOLDS = 20
#: Call of fold.lua.
_FOLD: Call[int] = Call("fold", (keys.ENDS,), (1,), int)


@dataclass(frozen=True, slots=True)
class Counted:
    """A fleet's counters at one moment."""

    tallies: Mapping[tuple[ModelId, Lane], Tally] = field(default_factory=dict)  # of every model that is known
    users: tuple[Used, ...] = ()
    tags: tuple[Used, ...] = ()
    deeds: Deeds = field(default_factory=Deeds)
    queues: tuple[Queue, ...] = ()
    leader: str = ""  # id of the leading coordinator; empty: nobody leads
    term: int = 0


class Counters:
    """Safe to share between threads; every call blocks, and may raise `redis.RedisError`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._jobs = RedisJobs(redis)
        self._registry = RedisRegistry(redis)
        self._scripts = Scripts(redis)

    def look(self) -> Counted:
        """All of it, in some seven round trips."""
        for _ in range(MAX_FOLDS):
            if self._scripts.run(_FOLD) <= keys.TALLY_MOST:
                break
        models = [ModelId(model) for model in cast(list[str], self._redis.zrange(keys.MODELS, 0, -1))]
        places = [(model, lane) for model in models for lane in LANES]
        pipe = self._redis.pipeline(transaction=False)
        for model, lane in places:
            pipe.hgetall(keys.tally(model, lane))
        for key in (keys.used("user"), keys.used("tag"), keys.DEEDS):
            pipe.hgetall(key)
        pipe.get(keys.LEADER)
        pipe.get(keys.TERM)
        *tallies, users, tags, deeds, leader, term = pipe.execute()
        now_ms = self._registry.now_ms()
        return Counted(
            {place: tally_of(fields) for place, fields in zip(places, tallies, strict=True)},
            tuple(used_of(users)), tuple(used_of(tags)), deeds_of(deeds),
            tuple(look_at_queues(self._redis, self._jobs.waiting(), now_ms)), leader or "", int(term or 0),
        )  # fmt: skip
