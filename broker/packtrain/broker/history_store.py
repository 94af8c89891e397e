"""The history of a fleet in Redis: written by the leading coordinator, read by gateways and `packtrain top`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from pydantic import BaseModel
from redis import Redis

from packtrain.broker import keys
from packtrain.broker.history import (
    MAX_FAULTS,
    MAX_SAMPLES,
    SAMPLE_MS,
    Fault,
    Sample,
    Series,
    TokenMeter,
    faults_of,
    sample,
    series,
)
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry

logger = logging.getLogger(__name__)

_M = TypeVar("_M", bound=BaseModel)


class History:
    """Samples and faults. Every call may raise `redis.RedisError`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def write(self, found: Sample, faults: list[Fault]) -> None:
        """Keep a sample, and faults, which may have been kept before."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.xadd(keys.HISTORY, {"s": found.model_dump_json(exclude_defaults=True)}, maxlen=MAX_SAMPLES)
        pipe.pexpire(keys.HISTORY, keys.HISTORY_TTL_MS)
        if faults:
            pipe.zadd(keys.FAULTS, {fault.model_dump_json(): fault.at_ms for fault in faults})
            pipe.zremrangebyrank(keys.FAULTS, 0, -MAX_FAULTS - 1)
            pipe.pexpire(keys.FAULTS, keys.FAULTS_TTL_MS)
        pipe.execute()

    def samples(self, since_ms: int) -> list[Sample]:
        """Samples from then on, oldest first."""
        rows = cast(list[tuple[str, dict[str, str]]], self._redis.xrange(keys.HISTORY, min=max(0, since_ms)))
        return [found for _, fields in rows if (found := _read(Sample, fields["s"]))]

    def series(self, *, now_ms: int, span_ms: int, step_ms: int) -> Series:
        """Curves over the last `span_ms`."""
        since_ms = now_ms - span_ms
        return series(self.samples(since_ms), since_ms=since_ms, until_ms=now_ms, step_ms=step_ms)

    def faults(self, count: int) -> list[Fault]:
        """The latest, oldest first."""
        rows = cast(list[str], self._redis.zrange(keys.FAULTS, -count, -1))
        return [found for row in rows if (found := _read(Fault, row))]

    def firsts_ms(self, since_ms: int) -> list[float]:
        """How long jobs waited for their first token that got it since, ms; of the latest few thousand."""
        rows = cast(list[tuple[str, dict[str, str]]], self._redis.xrange(keys.FIRSTS, min=max(0, since_ms)))
        return [float(fields["ms"]) for _, fields in rows]


class Recorder:
    """Samples the fleet every 15 s, for whoever leads.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._history = History(redis)
        self._jobs = RedisJobs(redis)
        self._registry = RedisRegistry(redis)
        self._clock = clock
        self._meter = TokenMeter()
        self._due = clock()
        self._last_ms: int | None = None

    def tick(self) -> None:
        """Sample, if it is time to. To be called about each second while leading."""
        if self._clock() < self._due:
            return
        self._due = self._clock() + SAMPLE_MS / 1000
        now_ms = self._registry.now_ms()
        since_ms = max(self._last_ms or 0, now_ms - 2 * SAMPLE_MS) + 1  # others may have led in between
        instances = self._registry.instances()
        found = sample(
            now_ms, self._meter.read(now_ms, instances), instances,
            self._jobs.ready(list(self._jobs.waiting())), self._history.firsts_ms(since_ms),
        )  # fmt: skip
        self._last_ms = now_ms
        self._history.write(found, faults_of(instances, now_ms))


def _read(cls: type[_M], text: Any) -> _M | None:
    try:
        return cls.model_validate_json(text)
    except ValueError as error:  # of another version
        logger.warning("Cannot read a %s: %s", cls.__name__, error, extra={"event": "history.unreadable"})
        return None
