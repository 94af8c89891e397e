"""The jobs of a run that are in the fleet: whose they are, how far each has been read, which said nothing for long."""

from __future__ import annotations

from collections.abc import Iterable

from packtrain.broker.chunks import Event
from packtrain.broker.ids import JobId
from packtrain.client.bulk.flights import Flight
from packtrain.client.reading import Cursors


class InFlight:
    """Jobs by id, each of a row and with its number there. The one longest without a sign comes first."""

    def __init__(self) -> None:
        self._jobs: dict[JobId, tuple[Flight, int]] = {}
        self.cursors = Cursors()

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: JobId) -> bool:
        return job_id in self._jobs

    def __getitem__(self, job_id: JobId) -> tuple[Flight, int]:
        return self._jobs[job_id]

    def ids(self) -> list[JobId]:
        """All of them."""
        return list(self._jobs)

    def add(self, job_id: JobId, flight: Flight, number: int) -> None:
        """A job has been handed in, or was found there."""
        self._jobs[job_id] = (flight, number)
        self.cursors.add(job_id)
        flight.group.jobs += 1

    def drop(self, job_id: JobId) -> None:
        """It is none of ours any more."""
        flight, _ = self._jobs.pop(job_id)
        self.cursors.after.pop(job_id, None)
        flight.group.jobs -= 1

    def of(self, flight: Flight) -> list[JobId]:
        """Those of one row."""
        return [job_id for job_id, (other, _) in self._jobs.items() if other is flight]

    def saw(self, events: Iterable[Event]) -> list[JobId]:
        """These events came; the jobs that have ended by them, whose records it needs now."""
        ended = []
        for event in events:
            if event.job_id in self._jobs:
                self._jobs[event.job_id] = self._jobs.pop(event.job_id)
                self.cursors.after[event.job_id] = event.id
                if event.end:
                    ended.append(event.job_id)
        return ended

    def silent(self, most: int) -> list[JobId]:
        """So many that said nothing for longest; the next time others."""
        silent = self.ids()[:most]
        for job_id in silent:
            self._jobs[job_id] = self._jobs.pop(job_id)
        return silent
