"""Counts deeds in Redis: each once, whoever leads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from redis import Redis

from packtrain.broker import deeds, keys
from packtrain.broker.deeds import Deed
from packtrain.broker.scripts import Call, Scripts
from packtrain.broker.tally import to_words

#: What still can be seen is named again this often, so that its name is kept, seconds.
AGAIN_S = 60.0
#: How long a name is kept after nobody saw it any more, ms: some times as long as the record of an ended instance.
KEPT_MS = 6 * keys.INSTANCE_ENDED_TTL_MS


class DeedBook(Protocol):
    """Where deeds are counted."""

    def note(self, seen: Sequence[Deed]) -> None:
        """Count those that were not counted before."""
        ...

    def rerung(self, bells: int) -> None:
        """Count doorbells that were rung again."""
        ...


class RedisDeeds:
    """A `DeedBook` on Redis or Valkey, for whoever leads. Every call may raise `redis.RedisError`.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)
        self._clock = clock
        self._noted: dict[str, float] = {}  # name -> when we named it last

    def note(self, seen: Sequence[Deed]) -> None:
        now = self._clock()
        self._noted = {name: at for name, at in self._noted.items() if now - at < AGAIN_S}
        if new := [deed for deed in seen if deed.name not in self._noted]:
            self._scripts.run(_count(new))
            self._noted |= {deed.name: now for deed in new}

    def rerung(self, bells: int) -> None:
        pipe = self._redis.pipeline(transaction=True)
        pipe.hincrby(keys.DEEDS, deeds.RERUNG, bells)
        pipe.pexpire(keys.DEEDS, keys.TALLY_TTL_MS)
        pipe.execute()


def _count(new: Sequence[Deed]) -> Call[int]:
    """Call of count_deeds.lua."""
    flat = [part for deed in new for part in (deed.name, to_words(deed.figures))]
    return Call("count_deeds", (keys.DEEDS_TOLD, keys.DEEDS), (KEPT_MS, keys.DEEDS_TOLD_TTL_MS, *flat), int)
