"""The seam between the queue's side of an instance and what runs its jobs: the engine of a loaded model, or a client of
another server (`remote/engine.py`).

The queue's side claims, leases, renews, publishes and drains; it knows of what runs the jobs only this.
"""

from __future__ import annotations

from typing import Protocol

from packtrain.broker.ids import JobId
from packtrain.workers.engine.engine import EngineStats
from packtrain.workers.engine.sequence import End


class JobEngine(Protocol):
    """Runs jobs in a thread of its own, `run`. All else may be called from any thread."""

    @property
    def stats(self) -> EngineStats:
        """Counters since the start, and the last sign of life."""
        ...

    @property
    def is_busy(self) -> bool:
        """True while it has any job."""
        ...

    def cancel(self, job_id: JobId, end: End) -> None:
        """End a job soon, with this reason. Unknown jobs are ignored: it may just have ended."""
        ...

    def set_threads(self, count: int) -> None:
        """Compute with this many threads from now on."""
        ...

    def stop(self) -> None:
        """Give back every job and let `run` return."""
        ...

    def run(self) -> None:
        """The thread: run jobs until `stop`."""
        ...
