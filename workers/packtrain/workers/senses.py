"""Senses: what the media of jobs are to a model, each looked at or heard once however many ask about it.

    sha256 ──blob──▶ bytes ──decode──▶ pixels or samples ──projector──▶ rows, kept for the next who asks

All of that happens on the threads that prepare jobs, while the engine computes steps. Only one of them is decoded and
encoded at a time, so what that takes of the memory is bounded; and while it lasts the engine lends a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from packtrain.broker.blobs import BlobStore
from packtrain.broker.errors import MediaGone, MediaUnsupported
from packtrain.broker.ids import ModelId
from packtrain.broker.media import Kind, kind_of
from packtrain.workers.backends.base import Backend
from packtrain.workers.engine.media import MediaRows, Seen

logger = logging.getLogger(__name__)

#: Of rows that are kept for media that may be asked about again: 28,000 rows of a model of 576.
CACHE_BYTES = 64 * 1024 * 1024


class Senses:
    """Looks at images and hears sounds. Thread-safe.

    Args:
        lend: Told how many of the engine's threads are needed elsewhere: 1 while a projector works, then 0.
    """

    def __init__(
        self, blobs: BlobStore, backend: Backend, *, model: ModelId, lend: Callable[[int], None] = lambda _: None
    ) -> None:
        self._blobs = blobs
        self._backend = backend
        self._model = model
        self._lend = lend
        self._lock = threading.Lock()  # of what is kept
        self._looking = threading.Lock()  # of one who looks
        self._kept: OrderedDict[str, Future[Seen]] = OrderedDict()  # the one used longest ago first
        self._sizes: dict[str, int] = {}
        self.num_seen = 0  # looked at so far

    def look(self, sha256: str) -> Seen:
        """What the image or sound with this hash is to the model. Blocks.

        Raises:
            MediaUnsupported, MediaGone, MediaUnreadable
            RedisError: It cannot be read right now.
        """
        if not (self._backend.sees or self._backend.hears):
            raise MediaUnsupported(model=self._model)
        with self._lock:
            known = self._kept.get(sha256)
            mine: Future[Seen] = known or Future()
            self._kept[sha256] = mine
            self._kept.move_to_end(sha256)
        if known:
            return known.result()
        try:
            seen = self._look(sha256)
        except BaseException as error:
            with self._lock:
                del self._kept[sha256]
            mine.set_exception(error)
            raise
        mine.set_result(seen)
        self._keep(sha256, seen)
        return seen

    def _look(self, sha256: str) -> Seen:
        data = self._blobs.get(sha256)
        if data is None:
            raise MediaGone(sha256=sha256)
        kind = kind_of(data)
        if not (self._backend.sees if kind == "image" else self._backend.hears):
            raise MediaUnsupported(model=self._model, kind=kind, takes=self._takes())
        with self._looking:
            begin = time.monotonic()
            encode, what = self._decoded(kind, data)
            decoded = time.monotonic()
            self._lend(1)
            try:
                seen = encode()
            finally:
                self._lend(0)
            self.num_seen += 1
        logger.info(
            "%s %s..., %s, in %.0f + %.0f ms", "Looked at" if kind == "image" else "Heard", sha256[:12], what,
            1e3 * (decoded - begin), 1e3 * (time.monotonic() - decoded), extra={"event": f"{kind}.seen"},
        )  # fmt: skip
        return seen

    def _decoded(self, kind: Kind, data: bytes) -> tuple[Callable[[], Seen], str]:
        """What is left to do with the bytes, and how much that is. Nobody else needs the decoders."""
        if kind == "image":
            from packtrain.workers.pictures import decode

            picture = decode(data)
            return lambda: self._backend.see(picture), f"{picture.shape[1]} x {picture.shape[0]}"
        from packtrain.workers import sounds

        rate = self._backend.sample_rate
        samples = sounds.decode(data, rate)
        return lambda: self._backend.hear(samples), f"{len(samples) / rate:.1f} s"

    def _takes(self) -> list[str]:
        return ["text", *["vision"] * self._backend.sees, *["audio"] * self._backend.hears]

    def _keep(self, sha256: str, seen: Seen) -> None:
        with self._lock:
            self._sizes[sha256] = sum(piece.rows.nbytes for piece in seen if isinstance(piece, MediaRows))
            for oldest in list(self._kept):
                if sum(self._sizes.values()) <= CACHE_BYTES:
                    return
                if oldest in self._sizes and oldest != sha256:
                    del self._kept[oldest], self._sizes[oldest]
