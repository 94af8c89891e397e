"""The fleet's secret as one process knows it: read once, and again when somebody shows a token that does not match it.

So tokens go on while the broker is away, and a broker that was emptied and has a new secret is noticed at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from redis.exceptions import RedisError

#: Whoever sends wrong tokens makes us ask the broker no more often than this, seconds.
REREAD_S = 1.0


class FleetSecret:
    """Safe to share between threads.

    Args:
        read: Asks the broker; may raise `RedisError`.
    """

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._known = ""
        self._read_at = float("-inf")

    def known(self) -> str:
        """The secret; blocks on the broker the first time.

        Raises:
            RedisError: The broker is away, and was never asked before.
        """
        with self._lock:
            if not self._known:
                self._known = self._read()
            return self._known

    def read_again(self) -> bool:
        """Ask the broker anew. True when it is another one than was known."""
        with self._lock:
            if time.monotonic() - self._read_at < REREAD_S:
                return False
            self._read_at = time.monotonic()
            try:
                before, self._known = self._known, self._read()
            except RedisError:  # what was known stands
                return False
            return before != self._known
