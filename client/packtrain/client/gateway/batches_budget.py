"""What the rows of a batch take of its key's tokens per minute: they count, and wait where a request would be refused.

Rows take at most three quarters of what the key may use, so that its requests find some left beside a long batch. The
number of requests at once does not count for rows: how many run is the fleet's to say, in the bulk lane.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from packtrain.broker.api_keys import LEASE_MS, ApiKey, ApiKeys, Charge
from packtrain.broker.errors import TryLater
from packtrain.broker.ids import JobId
from packtrain.broker.job_spec import JobSpec
from packtrain.client.gateway.guesses import guessed_tokens
from packtrain.client.redis_transport import reachable

#: The key is looked at anew after this long, seconds.
FRESH_S: Final = 2.0
#: A row that has to wait asks again after this long at the latest, seconds: others end, and took less than they might.
AGAIN_S: Final = 5.0


class Budget:
    """A `bulk.Gate` for the batches of one key.

    Args:
        name: Of the key.
        url: Of the broker.
        now: Monotonic seconds.
    """

    def __init__(self, keys: ApiKeys, name: str, url: str, now: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._name = name
        self._url = url
        self._now = now
        self._known: ApiKey | None = None
        self._known_at = self._kept_at = float("-inf")
        self._charges: dict[JobId, tuple[ApiKey, Charge]] = {}

    def enter(self, job_id: JobId, spec: JobSpec) -> None:
        key = self._key()
        if key is None:
            message = f"the API key {self._name!r} was revoked; create it anew, or cancel the batch"
            raise TryLater(message, retry_after_s=AGAIN_S)
        if not key.tokens_per_minute:
            return
        with reachable(self._url):
            found = self._keys.admit(key, job_id, guessed_tokens([spec]), is_row=True)
        if isinstance(found, Charge):
            self._charges[job_id] = (key, found)
            return
        message = (
            f"{found.used} tokens were used by the API key {self._name!r} in the last 60 s, of {key.tokens_per_minute} "
            "that it may use; rows go on as they come free, and more quickly with a smaller max_tokens"
        )
        raise TryLater(message, retry_after_s=min(AGAIN_S, max(0.5, found.retry_ms / 1000)))

    def leave(self, job_id: JobId, tokens: int | None) -> None:
        if charged := self._charges.pop(job_id, None):
            with reachable(self._url):
                self._keys.account(*charged, tokens)

    def keep(self) -> None:
        if self._charges and self._now() - self._kept_at > LEASE_MS / 3000:
            with reachable(self._url):
                self._keys.keep([(key, job_id) for job_id, (key, _) in self._charges.items()], are_rows=True)
            self._kept_at = self._now()

    def _key(self) -> ApiKey | None:
        if self._now() - self._known_at > FRESH_S:
            with reachable(self._url):
                self._known = next((key for key in self._keys.all() if key.id == self._name), None)
            self._known_at = self._now()
        return self._known
