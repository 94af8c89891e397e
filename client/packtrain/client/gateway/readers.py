"""Processes that read large bodies, so that reading one does not hold up all others.

Python reads JSON, and pydantic checks it, without letting any other thread run. A body of 30 MB takes seconds of that
if it is made of many small values, and the gateway's loop would stand still for as long. A thread is no help; so such
a body goes to another process as it came, and what comes back are its jobs.

The processes begin with the first large body, and end with the gateway, however that ends.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, Final, TypeVar

from packtrain.broker.errors import PacktrainError
from packtrain.client.gateway.failures import Refused
from packtrain.client.openai.faults import Fault

T = TypeVar("T")

#: A body is large with so many bytes, or with so many values: some 50 ms of reading.
LARGE_BYTES: Final = 4 * 1024 * 1024
LARGE_VALUES: Final = 30_000
#: Bodies that are read at once; the others wait for their turn.
AT_ONCE: Final = 2
#: Memory of one such process. Values take up to 30 times the bytes that they had in the body.
MEMORY: Final = 4 * 1024**3


def is_large(text: bytes) -> bool:
    """Whether a body is much work to read. A value is followed by a comma, or has a bracket before it."""
    if len(text) <= LARGE_VALUES:
        return False
    return len(text) > LARGE_BYTES or sum(map(text.count, (b",", b"[", b"{"))) > LARGE_VALUES


class Readers:
    """The processes of one gateway."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """What `work`, which has to be picklable, returns in another process.

        Raises:
            PacktrainError: As `work` does.
            Refused: It takes too much memory (413).
        """
        for _ in range(2):
            pool = self._pool = self._pool or ProcessPoolExecutor(
                AT_ONCE, multiprocessing.get_context("spawn"), initializer=_prepare
            )
            try:
                found, told = await asyncio.get_running_loop().run_in_executor(pool, _run, work)
                break
            except MemoryError:
                raise _too_large() from None
            except BrokenProcessPool:  # one of them was killed, perhaps long ago, or for another body: once more
                if self._pool is pool:
                    self._pool = None
                    pool.shutdown(wait=False, cancel_futures=True)
        else:
            raise _too_large()
        if told is not None:
            raise PacktrainError.from_wire(told)
        return found  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the processes."""
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _too_large() -> Refused:
    message = f"the body takes more than {MEMORY // 1024**2} MiB of memory to read; send less at once"
    return Refused(Fault(413, "invalid_request_error", "body_too_large", message))


def _run(work: Callable[[], Any]) -> tuple[Any, dict[str, Any] | None]:
    """Its result, or its error as it travels."""
    try:
        return work(), None
    except PacktrainError as error:
        return None, error.to_wire()


def _prepare() -> None:
    """First thing in such a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway's to hear
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    gc.disable()  # a tree of values has no cycles, and looking for them doubles the time
    parent = multiprocessing.parent_process()
    assert parent

    def until_it_ends() -> None:
        wait([parent.sentinel])
        os._exit(0)

    threading.Thread(target=until_it_ends, name="lifeline", daemon=True).start()
