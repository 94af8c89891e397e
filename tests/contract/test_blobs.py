"""What the store of images promises, shown on the in-memory twin and on a real server."""

from __future__ import annotations

import hashlib

import pytest
from redis import Redis

from packtrain.broker import keys
from packtrain.broker.blobs import BlobStore, MemoryBlobs, RedisBlobs
from packtrain.broker.errors import BlobsFull, MediaGone
from packtrain.broker.media import MediaRef
from tests.support.clock import FakeClock
from tests.support.pictures import png

pytestmark = pytest.mark.contract

MOST = 4000


def image(data: bytes, *, comes_along: bool = True) -> MediaRef:
    return MediaRef(sha256=hashlib.sha256(data).hexdigest(), at=0, data=data if comes_along else None)


class BlobsContract:
    """Inherited by one class for each store."""

    def test_what_was_put_in_is_read_back_byte_by_byte(self, blobs: BlobStore) -> None:
        data = png(8, 8, tail=bytes(range(256)))

        blobs.keep([image(data)])

        assert blobs.get(hashlib.sha256(data).hexdigest()) == data

    def test_what_is_there_need_not_be_sent_again(self, blobs: BlobStore) -> None:
        data = png(8, 8)
        blobs.keep([image(data)])

        blobs.keep([image(data, comes_along=False), image(data)])

        assert blobs.get(hashlib.sha256(data).hexdigest()) == data

    def test_one_that_is_nowhere_is_told_by_its_hash(self, blobs: BlobStore) -> None:
        absent = image(png(8, 8), comes_along=False)

        with pytest.raises(MediaGone, match=absent.sha256[:12]):
            blobs.keep([absent])
        assert blobs.get(absent.sha256) is None

    def test_the_same_image_counts_once(self, blobs: BlobStore) -> None:
        data = png(8, 8, tail=bytes(MOST // 2))

        for _ in range(5):
            blobs.keep([image(data), image(data)])

    def test_all_together_are_bounded(self, blobs: BlobStore) -> None:
        first, second = (png(8, 8, tail=bytes([number]) * (MOST * 2 // 3)) for number in (1, 2))
        blobs.keep([image(first)])

        with pytest.raises(BlobsFull, match="no room"):
            blobs.keep([image(second)])
        assert blobs.get(hashlib.sha256(first).hexdigest()) == first
        assert blobs.get(hashlib.sha256(second).hexdigest()) is None


class TestMemoryBlobs(BlobsContract):
    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def blobs(self, clock: FakeClock) -> BlobStore:
        return MemoryBlobs(clock, MOST)

    def test_one_goes_a_day_after_it_was_last_sent(self, blobs: BlobStore, clock: FakeClock) -> None:
        data = png(8, 8)
        blobs.keep([image(data)])
        clock.advance(keys.BLOB_TTL_MS - 1)
        blobs.keep([image(data, comes_along=False)])
        clock.advance(keys.BLOB_TTL_MS - 1)
        assert blobs.get(hashlib.sha256(data).hexdigest())

        clock.advance(1)

        assert blobs.get(hashlib.sha256(data).hexdigest()) is None


class TestRedisBlobs(BlobsContract):
    @pytest.fixture
    def blobs(self, redis: Redis) -> BlobStore:
        return RedisBlobs(redis, MOST)

    def test_one_lives_for_a_day_from_when_it_was_last_sent(self, blobs: BlobStore, redis: Redis) -> None:
        data = png(8, 8)
        blobs.keep([image(data)])
        key = keys.blob(hashlib.sha256(data).hexdigest())
        redis.pexpire(key, 1000)

        blobs.keep([image(data, comes_along=False)])

        assert keys.BLOB_TTL_MS - 10_000 < redis.pttl(key) <= keys.BLOB_TTL_MS

    def test_room_of_those_that_have_gone_is_room_again(self, blobs: BlobStore, redis: Redis) -> None:
        first, second = (png(8, 8, tail=bytes([number]) * (MOST * 2 // 3)) for number in (1, 2))
        blobs.keep([image(first)])
        sha256 = hashlib.sha256(first).hexdigest()
        redis.delete(keys.blob(sha256))
        redis.zadd(keys.BLOBS, {f"{sha256}:{len(first)}": 1})  # as if its day were over

        blobs.keep([image(second)])

        assert int(str(redis.get(keys.BLOBS_BYTES))) == len(second)
