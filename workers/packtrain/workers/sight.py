"""Sight: what the images of jobs are to a model, each looked at once however many ask about it.

    sha256 ──blob──▶ bytes ──decode──▶ pixels ──projector──▶ rows, kept for the next who asks

All of that happens on the threads that prepare jobs, while the engine computes steps. Only one image is decoded and
looked at at a time, so what that takes of the memory is bounded; and while it lasts the engine lends a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from packtrain.broker.blobs import BlobStore
from packtrain.broker.errors import ImageGone, ImagesUnsupported
from packtrain.broker.ids import ModelId
from packtrain.workers.backends.base import Backend
from packtrain.workers.engine.media import ImageRows, Seen

logger = logging.getLogger(__name__)

#: Of rows that are kept for images that may be asked about again: 28,000 rows of a model of 576.
CACHE_BYTES = 64 * 1024 * 1024


class Sight:
    """Looks at images. Thread-safe.

    Args:
        lend: Told how many of the engine's threads are needed elsewhere: 1 while an image is looked at, then 0.
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
        """What the image with this hash is to the model. Blocks.

        Raises:
            ImagesUnsupported, ImageGone, ImageUnreadable
            RedisError: It cannot be read right now.
        """
        if not self._backend.sees:
            raise ImagesUnsupported(model=self._model)
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
        from packtrain.workers.pictures import decode  # nobody else needs Pillow

        data = self._blobs.get(sha256)
        if data is None:
            raise ImageGone(sha256=sha256)
        with self._looking:
            begin = time.monotonic()
            picture = decode(data)
            decoded = time.monotonic()
            self._lend(1)
            try:
                seen = self._backend.see(picture)
            finally:
                self._lend(0)
            self.num_seen += 1
        height, width, _ = picture.shape
        logger.info(
            "Looked at %s..., %d x %d, in %.0f + %.0f ms", sha256[:12], width, height, 1e3 * (decoded - begin),
            1e3 * (time.monotonic() - decoded), extra={"event": "image.seen"},
        )  # fmt: skip
        return seen

    def _keep(self, sha256: str, seen: Seen) -> None:
        with self._lock:
            self._sizes[sha256] = sum(piece.rows.nbytes for piece in seen if isinstance(piece, ImageRows))
            for oldest in list(self._kept):
                if sum(self._sizes.values()) <= CACHE_BYTES:
                    return
                if oldest in self._sizes and oldest != sha256:
                    del self._kept[oldest], self._sizes[oldest]
