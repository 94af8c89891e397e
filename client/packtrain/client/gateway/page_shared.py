"""One look for all who ask: whoever comes first within a while looks, and the others get what was found.

A look blocks in a thread, which nothing can interrupt. Where the broker does not answer, those who ask are told so
after `PATIENCE_S`, and the same look goes on for those who ask next: threads do not pile up behind it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from redis.exceptions import RedisError

from packtrain.broker.errors import BrokerUnavailable

#: A look that takes long is taken less often: it may have this part of the time of one core.
SHARE: Final = 0.25
#: But it is not shown for longer than this for that, seconds: it may have taken long because the broker was away.
MAX_AGE_S: Final = 5.0
#: Nobody waits longer for a look, seconds.
PATIENCE_S: Final = 3.0

T = TypeVar("T")


class Shared(Generic[T]):
    """What a blocking look has found lately.

    Args:
        fresh_s: That it is shown for.
        url: Of the broker, without its password, for errors.
    """

    def __init__(
        self,
        look: Callable[[], T],
        fresh_s: float,
        url: str,
        *,
        patience_s: float = PATIENCE_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._fresh_s = fresh_s
        self._url = url
        self._patience_s = patience_s
        self._now = now
        self._looking: asyncio.Task[T] | None = None
        self._found: T | None = None
        self._until = float("-inf")

    async def get(self) -> T:
        """It, as it was at most `fresh_s` ago, or as `SHARE` allows.

        Raises:
            BrokerUnavailable: The broker failed, or did not answer in time.
        """
        if self._found is not None and self._now() < self._until:
            return self._found
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_once())
        looking = self._looking
        done, _ = await asyncio.wait([looking], timeout=self._patience_s)
        if not done:
            raise BrokerUnavailable(url=self._url, reason=f"it did not answer within {self._patience_s:g} s")
        return looking.result()

    async def _look_once(self) -> T:
        begun = self._now()
        try:
            found = await asyncio.to_thread(self._look)
        except RedisError as error:
            raise BrokerUnavailable(url=self._url, reason=str(error) or type(error).__name__) from error
        finally:
            self._looking = None
        ended = self._now()
        rest_s = min(MAX_AGE_S, (ended - begun) / SHARE)
        self._found, self._until = found, ended + max(self._fresh_s, rest_s)
        return found
