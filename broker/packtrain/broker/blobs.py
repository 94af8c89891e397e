"""Blobs: images and sounds of jobs in the broker, each once under the hash of its bytes.

    pt:blob:<sha256>   the bytes, for a day from the last job that names them

A job's record names hashes alone, so it and the queue stay small, and the same image with ten questions is kept once.
Nobody counts who still needs one: each job that is submitted keeps its media for another day, and one that has to
wait for longer ends with an error that says so. All together are bounded, so that they cannot fill the broker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Protocol, cast

from redis import Redis
from redis.client import NEVER_DECODE

from packtrain.broker import keys
from packtrain.broker.errors import BlobsFull, MediaGone
from packtrain.broker.media import MediaRef
from packtrain.broker.scripts import Call, Scripts

#: Of all blobs together.
MAX_BYTES = 512 * 1024 * 1024


class BlobStore(Protocol):
    """Where media lie: `RedisBlobs` and, for tests, `MemoryBlobs`; one contract suite runs on both."""

    def keep(self, media: Iterable[MediaRef]) -> None:
        """Put in what comes with its bytes, and keep what is there for another `keys.BLOB_TTL_MS`.

        Raises:
            MediaGone: One comes without its bytes, and they are not there.
            BlobsFull
        """
        ...

    def get(self, sha256: str) -> bytes | None:
        """The bytes; None: they are gone."""
        ...


def put_blob(sha256: str, data: bytes, most: int) -> Call[int]:
    """Call of put_blob.lua."""
    # redis-py sends bytes as they are; as an argument a script takes any.
    argument = cast(str, data)
    return Call(
        "put_blob",
        [keys.blob(sha256), keys.BLOBS, keys.BLOBS_BYTES],
        [sha256, argument, keys.BLOB_TTL_MS, most],
        int,
    )


class RedisBlobs:
    """A `BlobStore` on the broker. Safe to share between threads."""

    def __init__(self, redis: Redis, most: int = MAX_BYTES) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)
        self._most = most

    def keep(self, media: Iterable[MediaRef]) -> None:
        for sha256, data in _distinct(media).items():
            kept = self._scripts.run(put_blob(sha256, b"", self._most))  # most are there, and their bytes need not go
            if not kept and data:
                kept = self._scripts.run(put_blob(sha256, data, self._most))
            _check(kept, sha256, data, self._most)

    def get(self, sha256: str) -> bytes | None:
        execute = cast(Callable[..., bytes | None], self._redis.execute_command)
        return execute("GET", keys.blob(sha256), **{NEVER_DECODE: []})


class MemoryBlobs:
    """A `BlobStore` in one process. Thread-safe."""

    def __init__(self, now_ms: Callable[[], int], most: int = MAX_BYTES) -> None:
        self._now_ms = now_ms
        self._most = most
        self._kept: dict[str, tuple[int, bytes]] = {}  # until when
        self._lock = threading.Lock()

    def keep(self, media: Iterable[MediaRef]) -> None:
        with self._lock:
            now = self._now_ms()
            self._kept = {sha: kept for sha, kept in self._kept.items() if kept[0] > now}
            for sha256, data in _distinct(media).items():
                held = self._kept[sha256][1] if sha256 in self._kept else data
                total = sum(len(other) for sha, (_, other) in self._kept.items() if sha != sha256)
                kept = 0 if not held else -1 if total + len(held) > self._most else 1
                _check(kept, sha256, data, self._most)
                self._kept[sha256] = now + keys.BLOB_TTL_MS, held

    def get(self, sha256: str) -> bytes | None:
        with self._lock:
            until, data = self._kept.get(sha256, (0, b""))
            return data if until > self._now_ms() else None


def _distinct(media: Iterable[MediaRef]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for ref in media:
        found[ref.sha256] = found.get(ref.sha256) or ref.data or b""
    return found


def _check(kept: int, sha256: str, data: bytes, most: int) -> None:
    if kept == 0:
        raise MediaGone(sha256=sha256)
    if kept < 0:
        raise BlobsFull(size=len(data), limit=most)
