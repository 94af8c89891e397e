"""Reading a job's events to its end: pure bookkeeping that the sync and the async client share.

A stream is read by its ids, so after a dropped connection reading goes on exactly behind the last event that arrived:
no token twice, none missing. A broker that is away is waited for, `patience_s` long.
"""

from __future__ import annotations

from collections.abc import Iterable

from packtrain.broker.errors import BrokerUnavailable
from packtrain.broker.ids import JobId
from packtrain.broker.jobs import Event

#: How long a reader waits for a broker that went away, seconds. A restart takes 2, a reboot of its host a minute.
PATIENCE_S = 120.0
RETRY_S = 0.5


class Cursors:
    """How far each job has been read."""

    def __init__(self, job_ids: Iterable[JobId] = ()) -> None:
        self.after: dict[JobId, str] = dict.fromkeys(job_ids, "0")

    def add(self, job_id: JobId) -> None:
        """Read this job, too, from its start."""
        self.after[job_id] = "0"

    def advance(self, event: Event) -> None:
        """An event has arrived. An ended job is read no more."""
        if event.end:
            self.after.pop(event.job_id, None)
        else:
            self.after[event.job_id] = event.id


class Patience:
    """How long a missing broker is put up with."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._away_since: float | None = None

    def is_back(self) -> None:
        """The broker answered."""
        self._away_since = None

    def is_away(self, error: BrokerUnavailable, now: float) -> None:
        """The broker did not answer at `now` (monotonic seconds).

        Raises:
            BrokerUnavailable: It has been away for too long.
        """
        if self._away_since is None:
            self._away_since = now
        if now - self._away_since > self._patience_s:
            raise error
