"""Access by API keys, as `packtrain keys` makes them.

While there is no key, a gateway on loopback lets everybody in who reaches it, but for web sites (web_pages.py). Beyond
loopback nobody is let in without a key.

Secrets are looked up by their SHA-256. How long that takes can tell something of the hash, which is no way back to the
secret; so no comparison here has to take constant time.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import RedisError
from starlette.requests import Request

from packtrain.broker.api_keys import LEASE_MS, ApiKey, ApiKeys, Charge, digest_of
from packtrain.broker.connection import unavailable
from packtrain.broker.errors import PacktrainError
from packtrain.broker.job_spec import JobSpec
from packtrain.client.gateway.access import Admission, Caller, no_model
from packtrain.client.gateway.failures import Refused
from packtrain.client.gateway.guesses import guessed_tokens
from packtrain.client.gateway.settings import GatewaySettings
from packtrain.client.gateway.web_pages import refuse_web_pages
from packtrain.client.openai import Fault

#: Keys are read anew after this long, so a revoked one is refused from then on, seconds.
FRESH_S = 2.0
#: For a key that is not among them they are read again, but no more often than this, seconds.
SOON_S = 0.2

T = TypeVar("T")


class KeyAccess:
    """The keys of a fleet, for one gateway.

    Args:
        keys: Blocking; called in threads.
        url: Of the broker, without its password, for errors.
    """

    def __init__(
        self,
        keys: ApiKeys,
        settings: GatewaySettings,
        url: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._settings = settings
        self._url = url
        self._now = now
        self._turn = asyncio.Lock()
        self._known: Mapping[str, ApiKey] = {}
        self._known_at = float("-inf")
        self._failures: tuple[int, PacktrainError | None] = (0, None)  # of reads: how many, and the last
        self._held: dict[str, ApiKey] = {}  # requests under way that count
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeps = False

    async def caller(self, request: Request) -> Caller:
        known = await self._all()
        if known:
            sent = _sent_key(request)
            key = known.get(digest_of(sent))
            if key is None and sent:  # it may be new
                key = (await self._all(SOON_S)).get(digest_of(sent))
            if key is None:
                raise Refused(_no_such_key(has_sent=bool(sent)))
            return _caller_of(key)
        if not self._settings.is_loopback:
            raise Refused(_no_keys())
        refuse_web_pages(request, self._settings.cors)
        return Caller()

    async def admit(self, caller: Caller, specs: Sequence[JobSpec]) -> Admission:
        for spec in specs:
            if not caller.may_use(spec.model):
                raise Refused(no_model(spec.model, caller))
        if caller.key_id is None:
            return Admission()
        key = next((key for key in (await self._all()).values() if key.id == caller.key_id), None)
        if key is None:  # revoked a moment ago
            raise Refused(_no_such_key(has_sent=True))
        if not key.has_limits:
            return Admission()
        request = secrets.token_hex(8)
        found = await self._ask(partial(self._keys.admit, key, request, guessed_tokens(specs)))
        if not isinstance(found, Charge):
            raise Refused(_over_limit(key, found.of, found.used, found.retry_ms))
        self._held[request] = key
        if not self._keeps:
            self._keeps = True
            self.in_background(self._keep())
        return _Counted(self, key, found)

    async def end(self, key: ApiKey, charge: Charge, tokens: int | None) -> None:
        """A request that was let in is over."""
        self._held.pop(charge.request, None)
        with suppress(PacktrainError):  # then it lapses
            await self._ask(partial(self._keys.account, key, charge, tokens))

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this while the gateway runs."""
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    async def _all(self, max_age_s: float = FRESH_S) -> Mapping[str, ApiKey]:
        """Every key, by the digest of its secret, as it was at most so long ago."""
        before, _ = self._failures
        async with self._turn:
            failures, error = self._failures
            if error and failures > before:  # while we waited: the same try for all, for one may take half a minute
                raise error.with_traceback(None)
            if self._now() - self._known_at > max_age_s:
                try:
                    self._known = {key.digest: key for key in await self._ask(self._keys.all)}
                except PacktrainError as failure:
                    self._failures = (failures + 1, failure)
                    raise
                self._known_at = self._now()
        return self._known

    async def _ask(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(call)
        except RedisError as error:
            raise unavailable(self._url, error) from error

    async def _keep(self) -> None:
        while self._held:
            await asyncio.sleep(LEASE_MS / 3000)
            leases = [(key, request) for request, key in self._held.items()]
            with suppress(PacktrainError):  # the next try is in time, too
                await self._ask(partial(self._keys.keep, leases))
        self._keeps = False


class _Counted(Admission):
    counts = True

    def __init__(self, access: KeyAccess, key: ApiKey, charge: Charge) -> None:
        self.guess = charge.tokens
        self._end = partial(access.end, key, charge)

    async def end(self, tokens: int | None) -> None:
        await self._end(tokens)


def _caller_of(key: ApiKey) -> Caller:
    return Caller(key.name, key.id, key.is_admin, frozenset(key.models) if key.models else None)


def _sent_key(request: Request) -> str:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return request.headers.get("x-api-key", "").strip()


def _no_such_key(*, has_sent: bool) -> Fault:
    what = "this API key is none, or was revoked" if has_sent else "an API key is needed"
    message = f"{what}; send one of `packtrain keys create` as `Authorization: Bearer pt-...` or `x-api-key`"
    return Fault(401, "invalid_request_error", "invalid_api_key", message)


def _no_keys() -> Fault:
    message = (
        "this gateway can be reached from other machines and there is no API key, so nobody is let in; "
        "create one with `packtrain keys create NAME`"
    )
    return Fault(401, "invalid_request_error", "invalid_api_key", message)


def _over_limit(key: ApiKey, of: str, used: int, retry_ms: int) -> Fault:
    if of == "concurrent":
        message = (
            f"{used} requests of this API key are under way, at most {key.concurrent} may be; wait until one has ended"
        )
        return Fault(429, "rate_limit_error", "rate_limit_exceeded", message, retry_after_s=1)
    wait_s = max(1, -(-retry_ms // 1000))
    message = (
        f"{used} tokens were used by this API key in the last 60 s, at most {key.tokens_per_minute} may be, and this "
        f"request may need more than are left; try again in {wait_s} s, or with a smaller max_tokens"
    )
    return Fault(429, "rate_limit_error", "rate_limit_exceeded", message, retry_after_s=wait_s)
