"""API keys: who may call over HTTP, as whom, and how much.

The broker holds of each key a name, what it may do, and the SHA-256 of its secret. Slow hashes (bcrypt, argon2) protect
passwords that people think up, a few thousand million guesses away; these are 256 random bits, which no computer will
guess through any hash, and a slow one would cost each request 100 ms.

What a key uses is counted in the broker, for all gateways together:

* Requests under way are leases of `LEASE_MS`, kept ahead by the gateway that answers. If it dies, they lapse.
* Tokens are summed over the last 60 s, by the second they were charged in. A request is charged a guess when it begins,
  and what it really used when it ends, so many at once cannot all pass before the first is counted.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import Field, ValidationError
from redis import Redis

from packtrain.broker import keys
from packtrain.broker.errors import InvalidParameter
from packtrain.broker.fields import Report, SafeId
from packtrain.broker.ids import is_safe_id
from packtrain.broker.scripts import Call, Scripts

PREFIX = "pt-"
#: Of a secret that somebody else made.
LEAST_SECRET = 32
#: A request whose gateway says nothing of it for this long counts no more.
LEASE_MS = 30_000
#: Of a key's tokens per minute, what the rows of its batches may use together with all else: the rest is for requests.
ROWS_SHARE = 0.75


class ApiKey(Report):
    """One key, without its secret."""

    name: SafeId = Field(description="also the user of its jobs")
    digest: str = Field(description="SHA-256 of the secret, as hex digits")
    models: tuple[SafeId, ...] = Field((), description="names that it may say; none: all")
    concurrent: int | None = Field(None, description="requests under way at once; null: any number")
    tokens_per_minute: int | None = Field(None, description="of prompts and answers; null: any number")
    is_admin: bool = Field(False, description="may load and unload, change nodes, and see jobs of others")
    created_ms: int = 0

    @property
    def id(self) -> str:
        """By which what belongs to it is kept: with another secret it is still the same."""
        return self.name

    @property
    def has_limits(self) -> bool:
        """True when its requests have to be counted."""
        return bool(self.concurrent or self.tokens_per_minute)


@dataclass(frozen=True, slots=True)
class Charge:
    """A request that was let in."""

    request: str
    second: int  # in which it was charged
    tokens: int  # that it was charged
    is_row: bool = False  # of a batch


@dataclass(frozen=True, slots=True)
class Short:
    """Why a request may not begin yet."""

    of: Literal["concurrent", "tokens"]
    used: int
    retry_ms: int  # 0: whenever one under way ends


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


class ApiKeys:
    """The keys of one fleet. Every call may raise `redis.RedisError`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)

    def create(
        self,
        name: str,
        *,
        models: Sequence[str] = (),
        concurrent: int | None = None,
        tokens_per_minute: int | None = None,
        is_admin: bool = False,
        replace: bool = False,
        secret: str = "",
    ) -> tuple[ApiKey, str]:
        """A new key and its secret, which is kept nowhere.

        Args:
            replace: A key of this name ends; else that it is there is an error.
            secret: To take instead of one of ours: at least `LEAST_SECRET` characters that go into a header.

        Raises:
            InvalidParameter: There is one, or name or models are none, or the secret is too short.
        """
        for text in (name, *models):
            if not is_safe_id(text):
                raise InvalidParameter(
                    f"{text!r} is no name; use lower-case letters, digits, '-', '_' and '.', at most 80", field="name"
                )
        if secret and (len(secret) < LEAST_SECRET or not re.fullmatch(r"[!-~]+", secret)):
            raise InvalidParameter(
                f"an API key of {len(secret)} characters can be guessed, or has others than a header may; take at "
                f"least {LEAST_SECRET} letters, digits, '-' and '_', `openssl rand -hex 24` makes one", field="secret",
            )  # fmt: skip
        secret = secret or PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(
            name=name, digest=digest_of(secret), models=tuple(models), concurrent=concurrent,
            tokens_per_minute=tokens_per_minute, is_admin=is_admin, created_ms=int(time.time() * 1000),
        )  # fmt: skip
        row = key.model_dump_json()
        if replace:
            self._redis.hset(keys.API_KEYS, name, row)
        elif not self._redis.hsetnx(keys.API_KEYS, name, row):
            raise InvalidParameter(
                f"there is a key {name!r} already; choose another name, or say `--replace`: the old one ends then",
                field="name",
            )
        return key, secret

    def all(self) -> list[ApiKey]:
        """Every key, by name."""
        rows = cast("Mapping[str, str]", self._redis.hgetall(keys.API_KEYS))
        return [_parse(name, row) for name, row in sorted(rows.items())]

    def revoke(self, name: str) -> bool:
        """End a key; False: there is none of this name."""
        return bool(self._redis.hdel(keys.API_KEYS, name))

    def admit(self, key: ApiKey, request: str, tokens: int, *, is_row: bool = False) -> Charge | Short:
        """Let a request begin, or say what is short.

        Args:
            request: Its name, random.
            tokens: That it is taken to cost.
            is_row: It is a job of a batch: however many run at once, but within `ROWS_SHARE` of the tokens.
        """
        return self._scripts.run(admit(key, request, tokens, is_row=is_row))

    def account(self, key: ApiKey, charge: Charge, used: int | None) -> bool:
        """It has ended. `used`: tokens; None: not known, what it was taken to cost stays. False: it had before."""
        return self._scripts.run(account(key, charge, used))

    def keep(self, leases: Sequence[tuple[ApiKey, str]], *, are_rows: bool = False) -> None:
        """These requests, each of a key, are still under way."""
        seconds, micros = self._redis.time()
        until_ms = seconds * 1000 + micros // 1000 + LEASE_MS
        with self._redis.pipeline(transaction=False) as pipe:
            for key, request in leases:
                busy = _busy(key, is_row=are_rows)
                pipe.zadd(busy, {request: until_ms}, xx=True)
                pipe.pexpire(busy, LEASE_MS * 2)
            pipe.execute()


def admit(key: ApiKey, request: str, tokens: int, *, is_row: bool = False) -> Call[Charge | Short]:
    """The call of `ApiKeys.admit`."""
    # One that is taken to cost more than the limit may run alone: else it could never. None is taken to cost nothing:
    # a charge of 0 is that of a key without a limit, to which nothing is added.
    concurrent, limit = key.concurrent or 0, key.tokens_per_minute or 0
    if is_row:
        concurrent, limit = 0, math.ceil(limit * ROWS_SHARE)
    tokens = min(max(1, tokens), limit)

    def parse(reply: Any) -> Charge | Short:
        short, second, used, retry_ms = reply
        return Short(short, used, retry_ms) if short else Charge(request, second, tokens, is_row)

    args = (request, concurrent, LEASE_MS, limit, tokens)
    return Call("admit", (_busy(key, is_row=is_row), keys.api_spent(key.id)), args, parse)


def account(key: ApiKey, charge: Charge, used: int | None) -> Call[bool]:
    """The call of `ApiKeys.account`."""
    args = (charge.request, charge.second, charge.tokens, "" if used is None else used)
    return Call("account", (_busy(key, is_row=charge.is_row), keys.api_spent(key.id)), args, bool)


def _busy(key: ApiKey, *, is_row: bool) -> str:
    return keys.api_rows(key.id) if is_row else keys.api_busy(key.id)


def _parse(name: str, row: str) -> ApiKey:
    try:
        return ApiKey.model_validate_json(row)
    except ValidationError:
        return ApiKey(name=name, digest="")  # from another version: shown, and nobody's secret
