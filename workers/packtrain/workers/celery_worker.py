"""Celery workers inside our processes: how they are started, drained and watched."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery import Celery, bootsteps, signals
from celery.exceptions import SecurityWarning

#: The consumer's own loop shows a sign of life this often, seconds; oftener where a stall is a matter of seconds.
HUB_BEAT_S, SIGNS_PER_STALL = 1.0, 6


def sign_every_s(stall_s: float) -> float:
    """Seconds from one sign of life to the next, where silence for `stall_s` is a defect."""
    return min(HUB_BEAT_S, stall_s / SIGNS_PER_STALL)


class HubBeat:
    """When the Celery consumer loop last turned. A consumer that is green but dead stops turning.

    Args:
        stall_s: Silence for so long is a defect (`PACKTRAIN_STALL_S`).
    """

    def __init__(self, stall_s: float) -> None:
        self.every_s = sign_every_s(stall_s)
        self._last = time.monotonic()

    def beat(self) -> None:
        """The loop turned."""
        self._last = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since."""
        return time.monotonic() - self._last


def run_worker(
    app: Celery,
    *,
    name: str,
    queues: Sequence[str],
    threads: int,
    events: bool,
    hub: HubBeat,
    facts: Callable[[], Mapping[str, Any]],
    on_ready: Callable[[], None],
    on_stopping: Callable[[], None],
) -> None:
    """Run a worker in this (the main) thread until SIGTERM or SIGINT; returns when its running tasks have ended.

    Args:
        name: Worker name, `<what>@<node>`.
        queues: All that it consumes.
        threads: Tasks at once.
        events: Send task events for Flower.
        hub: Told of every turn of the consumer loop.
        facts: Shown by Flower on the worker's page and by `celery inspect stats`, under `packtrain`.
        on_ready: Called once it consumes.
        on_stopping: Called in the signal handler when it begins to stop; must not block.
    """

    # Celery warns root for pickle's sake; we take JSON only, and containers often have no other user.
    warnings.filterwarnings("ignore", category=SecurityWarning)

    class Beat(bootsteps.StartStopStep):  # type: ignore[misc]
        # A consumer step, because a lost connection clears the timer and restarts the steps.
        requires = ("celery.worker.consumer.connection:Connection",)

        def start(self, consumer: Any) -> None:
            hub.beat()
            consumer.timer.call_repeatedly(hub.every_s, hub.beat)

    class Facts(bootsteps.StartStopStep):  # type: ignore[misc]
        def info(self, _worker: Any) -> dict[str, Any]:
            return {"packtrain": dict(facts())}

    app.steps["consumer"].add(Beat)
    app.steps["worker"].add(Facts)

    def ready(**_: Any) -> None:
        on_ready()

    def stopping(**_: Any) -> None:
        on_stopping()

    signals.worker_ready.connect(ready)
    signals.worker_shutting_down.connect(stopping)
    worker = app.Worker(
        hostname=name,
        pool="threads",
        concurrency=threads,
        queues=list(queues),
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        task_events=events,
        quiet=True,
    )
    worker.start()
