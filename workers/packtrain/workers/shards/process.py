"""A shard as its agent holds it: spawned with no more than it needs, waited for, ended.

It ends with whoever started it (a lifeline), serves one head at a time, and what it says is kept to tell why it ended.
"""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

from packtrain.broker.errors import ModelLoadFailed
from packtrain.broker.fields import Numerics
from packtrain.workers.bare_process import BareProcess
from packtrain.workers.shards import cache
from packtrain.workers.shards.hello import NoShard, version_at
from packtrain.workers.shards.messages import ShardConfig
from packtrain.workers.shards.split import HOST

logger = logging.getLogger(__name__)

#: Imports and llama.cpp's own start, on a busy machine.
START_S = 60.0
#: What llama.cpp prints when a head comes and goes.
_TAKEN = {"Accepted client connection": True, "Client connection closed": False}


class ShardProcess(BareProcess):
    """One shard. It begins at once; `wait` until it can be used.

    Args:
        cache_folder: Of the model that it will hold a part of; None: it keeps nothing.
        n_threads: It computes with.
        numerics: Of the head.
        memory_bytes: That the head may take of it; 0: any.

    Raises:
        OSError: It cannot be started, or the folder not be made.
    """

    def __init__(
        self,
        *,
        cache_folder: Path | None,
        n_threads: int,
        numerics: Numerics = "fast",
        memory_bytes: int = 0,
    ) -> None:
        self._cache = cache_folder
        if cache_folder is not None:
            cache.begin(cache_folder)
        #: Whether a head is connected.
        self.is_taken = False
        self.port = _free_port()
        config = ShardConfig(
            port=self.port, cache=str(cache_folder or ""), n_threads=n_threads, numerics=numerics,
            memory_bytes=memory_bytes,
        )  # fmt: skip
        # One thread until it has given up its rights, so numpy may not start some for a library it does not need.
        super().__init__(
            "packtrain.workers.shard_main", config.model_dump_json(), on_line=self._hear, OPENBLAS_NUM_THREADS="1"
        )

    def wait(self, timeout_s: float = START_S) -> None:
        """Block until it answers.

        Raises:
            ModelLoadFailed: It ended, or does not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if (code := self.exit_code()) is not None:
                raise ModelLoadFailed(f"the shard ended with code {code} before it answered: {self.last_words()}")
            try:
                version_at(self.port, timeout_s=1)
                return
            except NoShard as reason:
                if time.monotonic() > deadline:
                    raise ModelLoadFailed(f"the shard does not answer: {reason}") from reason
            time.sleep(0.05)

    def keep_cache(self) -> None:
        """Once its head has loaded: what it wrote is whole, and good for the next load."""
        if self._cache is not None:
            cache.end(self._cache)

    def _hear(self, line: str) -> bool:
        logger.info("[shard at port %d] %s", self.port, line)
        if line not in _TAKEN:
            return False
        self.is_taken = _TAKEN[line]
        return True


def _free_port() -> int:
    # Somebody else may take it before the shard does: then it ends, and says so.
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])
