"""Sight: each image is looked at once, and one that cannot be is not remembered as if it could."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from packtrain.broker import keys
from packtrain.broker.blobs import MemoryBlobs
from packtrain.broker.errors import MediaGone, MediaUnreadable, MediaUnsupported
from packtrain.broker.ids import ModelId
from packtrain.broker.media import MediaRef
from packtrain.workers import senses as senses_module
from packtrain.workers.backends.scripted import ScriptedBackend
from packtrain.workers.engine.media import MediaRows, Seen
from packtrain.workers.senses import Senses
from tests.support.clock import FakeClock
from tests.support.pictures import png

pytestmark = pytest.mark.unit


class Slow(ScriptedBackend):
    """Looks at a picture only once it may."""

    def __init__(self) -> None:
        super().__init__(sees=True)
        self.may_see = threading.Event()

    def see(self, picture: np.ndarray[Any, np.dtype[np.uint8]]) -> Seen:
        assert self.may_see.wait(10)
        return super().see(picture)


class Bench:
    def __init__(self, backend: ScriptedBackend | None = None) -> None:
        self.clock = FakeClock()
        self.blobs = MemoryBlobs(self.clock)
        self.backend = backend or ScriptedBackend(sees=True)
        self.lent: list[int] = []
        self.sight = Senses(self.blobs, self.backend, model=ModelId("m"), lend=self.lent.append)

    def keep(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs.keep([MediaRef(sha256=sha256, at=0, data=data)])
        return sha256


def test_whoever_asks_at_once_gets_what_one_has_seen() -> None:
    slow = Slow()
    bench = Bench(slow)
    sha256 = bench.keep(png(20, 10))
    with ThreadPoolExecutor(8) as pool:
        looks = [pool.submit(bench.sight.look, sha256) for _ in range(8)]
        slow.may_see.set()
        seen = [look.result(10) for look in looks]

    assert slow.pictures == [(10, 20)]
    assert all(each is seen[0] for each in seen)
    assert bench.sight.num_seen == 1
    assert bench.lent == [1, 0]


def test_what_was_seen_needs_no_blob_any_more() -> None:
    bench = Bench()
    sha256 = bench.keep(png(8, 8))
    bench.sight.look(sha256)
    bench.clock.advance(keys.BLOB_TTL_MS + 1)

    assert bench.sight.look(sha256)
    with pytest.raises(MediaGone):
        Bench().sight.look(sha256)


def test_one_that_cannot_be_read_is_looked_at_again_when_it_is_asked_about_again() -> None:
    bench = Bench()
    broken = bench.keep(png(64, 64)[:60])

    for _ in range(2):
        with pytest.raises(MediaUnreadable):
            bench.sight.look(broken)
    assert bench.backend.pictures == []
    assert bench.lent == []


def test_the_one_used_longest_ago_is_forgotten_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    first, second, third = (bench.keep(png(side, 8)) for side in (8, 9, 10))
    (rows,) = bench.sight.look(first)
    assert isinstance(rows, MediaRows)
    monkeypatch.setattr(senses_module, "CACHE_BYTES", 2 * rows.rows.nbytes)
    for sha256 in (second, first, third, first, second):
        bench.sight.look(sha256)

    assert bench.backend.pictures == [(8, 8), (8, 9), (8, 10), (8, 9)]


def test_a_blind_model_says_so() -> None:
    bench = Bench(ScriptedBackend())

    with pytest.raises(MediaUnsupported, match="'m' takes text alone"):
        bench.sight.look(bench.keep(png(8, 8)))
