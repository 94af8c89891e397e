"""Hashes of model files for those who fetch them: one file at a time in the background, with its progress.

A gigabyte takes about a second, once; the hash is kept on disk, where instances look for it, too.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from contextlib import suppress
from pathlib import Path

from packtrain.workers.receipts import file_sha256, known_sha256


class StillHashing(Exception):
    """Ask again later.

    Args:
        read: Bytes that were read so far, of this file and of those before it.
    """

    def __init__(self, read: int) -> None:
        super().__init__(f"the file is being hashed, {read} bytes were read so far")
        self.read = read


class Hashes:
    """Safe to share between threads.

    Args:
        cache: JSON file with the hashes that are known.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hashing")
        self._running: dict[Path, Future[str]] = {}
        self._read = 0

    def sha256(self, path: Path, *, wait_s: float) -> str:
        """Of a file as it is now.

        Raises:
            StillHashing: It takes longer than `wait_s`.
            OSError: It cannot be read.
        """
        if known := known_sha256(path, self._cache):
            return known
        with self._lock:
            running = self._running.get(path)
            if running is None:
                running = self._pool.submit(file_sha256, path, self._cache, self._count)
                self._running[path] = running
        try:
            return running.result(wait_s)
        except StillRunning:
            raise StillHashing(self._read) from None
        finally:
            if running.done():
                with self._lock, suppress(KeyError):
                    if self._running[path] is running:
                        del self._running[path]

    def close(self) -> None:
        """Let go of what waits. One that runs goes on to the end of its file, unless the process ends."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _count(self, num_bytes: int) -> None:
        self._read += num_bytes
