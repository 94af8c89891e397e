"""Blocking calls for an event loop: each runs in one of a few threads, under the signature of the method that it calls.

The async client repeats nothing of the sync one. A method that takes milliseconds is the sync method in a thread; only
what waits for a job is written anew, for a wait must not hold a thread: with eight of them, the ninth would queue.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

#: A submit holds one for 1-2 ms, half of it the doorbell (kombu has no asyncio side).
THREADS = 8

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")


class Twin(Generic[S]):
    """The asyncio side of a blocking object.

    Args:
        sync: That object. Safe to share between threads.
        pool: Where its methods run.
    """

    def __init__(self, sync: S, pool: Executor) -> None:
        self._sync = sync
        self._pool = pool

    async def _in_thread(self, call: Callable[[], T], *, undo: Callable[[T], object] | None = None) -> T:
        """What `call` returns.

        Args:
            undo: Given that, in the thread, when nobody waited for it to the end.
        """
        leavable = _Leavable(call, undo)
        future = self._pool.submit(copy_context().run, leavable.run)  # it knows the trace that this is part of
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if leavable.leave():
                self._pool.submit(leavable.undo_now)
            raise


def in_thread(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[Twin[S], P], Coroutine[Any, Any, T]]:
    """The same method for the twin."""

    @wraps(method)
    async def run(self: Twin[S], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._in_thread(partial(method, self._sync, *args, **kwargs))

    return run


def new_pool() -> Executor:
    """Threads for one client. They end with it."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="packtrain")


class _Leavable(Generic[T]):
    """A call that is undone when nobody waits for its result any more.

    In the thread of the call itself if that still runs: the client may be closed by then, and begin nothing new.
    """

    def __init__(self, call: Callable[[], T], undo: Callable[[T], object] | None) -> None:
        self._call = call
        self._undo = undo
        self._lock = threading.Lock()
        self._results: list[T] = []  # one, once it is there
        self._is_left = False

    def run(self) -> T:
        """Call, and undo that if it has been left meanwhile."""
        result = self._call()
        with self._lock:
            self._results.append(result)
            is_left = self._is_left
        if is_left:
            self.undo_now()
        return result

    def leave(self) -> bool:
        """Nobody waits any more. True: the result is there already and is to be undone."""
        with self._lock:
            self._is_left = True
            return bool(self._results)

    def undo_now(self) -> None:
        """Undo the call."""
        if self._undo:
            self._undo(self._results[0])
