"""A shard as its agent holds it: spawned with no more than it needs, waited for, ended.

It ends with whoever started it (a lifeline), serves one head at a time, and what it says is kept to tell why it ended.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

from packtrain.broker import lifeline
from packtrain.broker.errors import ModelLoadFailed
from packtrain.broker.fields import Numerics
from packtrain.broker.jobs import MAX_TAIL_LINES
from packtrain.workers.shards import cache
from packtrain.workers.shards.hello import NoShard, version_at
from packtrain.workers.shards.messages import ShardConfig
from packtrain.workers.shards.split import HOST

#: Imports and llama.cpp's own start, on a busy machine.
START_S = 60.0
#: Of our own environment: where Python and llama.cpp find their parts. No address, no password, no key.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")

#: What llama.cpp prints when a head comes and goes.
_TAKEN = {b"Accepted client connection": True, b"Client connection closed": False}


class ShardProcess:
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
        self.port = _free_port()
        config = ShardConfig(
            port=self.port, cache=str(cache_folder or ""), n_threads=n_threads, numerics=numerics,
            memory_bytes=memory_bytes,
        )  # fmt: skip
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "packtrain.workers.shard_main", config.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # One thread until it has given up its rights, so numpy may not start some for a library it does not need.
            env={**environment, lifeline.VARIABLE: "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._tail: deque[str] = deque(maxlen=MAX_TAIL_LINES)
        self._is_taken = False
        self._reader = threading.Thread(target=self._read, name="shard", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def said(self) -> str:
        """The last lines of what it wrote."""
        return "\n".join(self._tail)

    @property
    def is_taken(self) -> bool:
        """Whether a head is connected."""
        return self._is_taken

    def exit_code(self) -> int | None:
        """Negative: the signal that ended it. None while it lives."""
        return self._process.poll()

    def wait(self, timeout_s: float = START_S) -> None:
        """Block until it answers.

        Raises:
            ModelLoadFailed: It ended, or does not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if (code := self.exit_code()) is not None:
                self._reader.join(timeout=2)
                raise ModelLoadFailed(f"the shard ended with code {code} before it answered: {self.said}")
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

    def close(self) -> None:
        """End it and wait until it is gone; its memory is free then."""
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=2)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for line in pipe:
                if line.rstrip() in _TAKEN:
                    self._is_taken = _TAKEN[line.rstrip()]
                else:
                    self._tail.append(line.decode("utf-8", "replace").rstrip())


def _free_port() -> int:
    # Somebody else may take it before the shard does: then it ends, and says so.
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])
