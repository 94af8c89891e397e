"""Blocking calls for an event loop: each runs in one of a few threads, under the signature of the method that it calls.

The async client repeats nothing of the sync one. A method that takes milliseconds is the sync method in a thread; only
what waits for a job is written anew, for a wait must not hold a thread: with eight of them, the ninth would queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
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
        future = self._pool.submit(call)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if undo:  # in a thread again: the callback itself may be called on the loop
                future.add_done_callback(lambda done: self._pool.submit(_undo, undo, done))
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


def _undo(undo: Callable[[T], object], future: Future[T]) -> None:
    if not future.cancelled() and future.exception() is None:
        undo(future.result())
