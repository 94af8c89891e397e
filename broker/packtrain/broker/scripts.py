"""Runs the Lua scripts in `lua/` on a Redis client.

A `Call` is one script call as a value: which script, its KEYS and ARGV, and how to read the reply. Building calls is
pure (`jobs.py`); running them is here.

Redis forgets its script cache at a restart (the AOF holds only effects), so every run may meet NOSCRIPT and loads anew.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Generic, TypeVar

from redis import Redis
from redis.exceptions import NoScriptError, RedisError

from packtrain.broker import keys

T = TypeVar("T")

#: Constants of keys.py that scripts use by the same name.
_CONSTANTS = (
    "JOB_PREFIX", "OUT_PREFIX", "READY_PREFIX", "MOVABLE_PREFIX", "HELD_PREFIX", "FAIR_PREFIX", "QUEUED_PREFIX",
    "RATE_PREFIX", "MODEL_PREFIX", "WAITING", "LEASES", "DEADLINES", "MEANT", "PREFIXES", "BEGUN", "RECENT", "ORDER",
    "QUEUED_TTL_MS", "ENDED_TTL_MS", "STREAM_TTL_MS", "STREAM_ENDED_TTL_MS", "RATE_TTL_MS", "RECENT_MAX",
    "FIRSTS", "FIRSTS_TTL_MS", "FIRSTS_MAX", "TALLY_PREFIX", "TALLY_TTL_MS",
    "ENDS", "TALLY_FOLD", "TALLY_MOST", "USED_PREFIX", "USED_MAX", "USED_OTHERS",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One script call as a value."""

    script: str  # file name in lua/, without its ending
    keys: Sequence[str]
    args: Sequence[str | int]
    parse: Callable[[Any], T]


@cache
def source(script: str) -> str:
    """The whole text that Redis runs: the functions of the prelude that the script needs, and the script.

    Constants stand in it as literals, and nothing in it that is not needed: the server makes each local anew at every
    call, and throws it away again.
    """
    folder = resources.files(__package__) / "lua"
    text = (folder / f"{script}.lua").read_text()
    for function in reversed((folder / "prelude.lua").read_text().split("\n\n")):  # each calls only those above it
        name = function.partition("local function ")[2].partition("(")[0]
        if re.search(rf"\b{name}\(", text):
            text = f"{function}\n{text}"
    return re.sub(rf"\b({'|'.join(_CONSTANTS)})\b", lambda found: repr(getattr(keys, found[0])), text)


@cache
def _sha(script: str) -> str:
    return hashlib.sha1(source(script).encode(), usedforsecurity=False).hexdigest()


def _evalsha(call: Call[Any]) -> tuple[Any, ...]:
    return (_sha(call.script), len(call.keys), *call.keys, *call.args)


def _names() -> list[str]:
    folder = resources.files(__package__) / "lua"
    files = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".lua"))
    return [name.removesuffix(".lua") for name in files if name != "prelude.lua"]


class Scripts:
    """Runs calls on a sync client made with `decode_responses=True`. Safe to share between threads."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def run(self, call: Call[T]) -> T:
        """One call, one round trip."""
        try:
            reply = self._redis.evalsha(*_evalsha(call))
        except NoScriptError:
            self._load()
            reply = self._redis.evalsha(*_evalsha(call))
        return call.parse(reply)

    def run_many(self, calls: Sequence[Call[T]]) -> list[T]:
        """All calls in one round trip, in order, with no other client's command between them.

        Raises:
            RedisError: Of the first call that failed.
        """
        replies = self._try_many(calls)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            self._load()
            replies = self._try_many(calls)
        for reply in replies:
            if isinstance(reply, RedisError):
                raise reply
        return [call.parse(reply) for call, reply in zip(calls, replies, strict=True)]

    def _try_many(self, calls: Sequence[Call[T]]) -> list[Any]:
        # A transaction, and scripts that are only ever loaded all at once: so either every call of a batch meets
        # NOSCRIPT or none does, and a job's finish can never run while its last tokens wait for a second try.
        with self._redis.pipeline(transaction=True) as pipe:
            for call in calls:
                pipe.evalsha(*_evalsha(call))
            return list(pipe.execute(raise_on_error=False))

    def _load(self) -> None:
        with self._redis.pipeline(transaction=True) as pipe:
            for name in _names():
                pipe.script_load(source(name))
            pipe.execute()
