"""Rows on their way out of the fleet: what has become of their jobs, and what that means for the row.

What ends badly is one of three things. The row is wrong, or its time was over: that is its answer (errors file). The
fleet failed it: it runs again with a new key, `flights.MOST_TRIES` times in all. The operator has to change something
before any row of this model can run (`ModelError`): the model is blocked, its rows stay to do, the others go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from packtrain.broker.errors import ModelError, TryLater
from packtrain.broker.ids import JobId
from packtrain.client.bulk.ends import Ends
from packtrain.client.bulk.flights import Flight, Verdict, verdict
from packtrain.client.bulk.gate import Gate
from packtrain.client.bulk.in_flight import InFlight
from packtrain.client.bulk.translate import error_line
from packtrain.client.result import result_of
from packtrain.client.transport import Transport

#: Before a row runs again, seconds; twice as long the next time.
_AGAIN_S: Final = 1.0


class Settler:
    """Settles the rows of one run.

    Args:
        jobs: In the fleet.
        ends: Told of rows that have ended.
        gate: Told of jobs that have.
        clock: Monotonic seconds.
        on_done: Called when the last row of a group is through.
    """

    def __init__(
        self,
        transport: Transport,
        jobs: InFlight,
        ends: Ends,
        gate: Gate,
        clock: Callable[[], float],
        on_done: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._jobs = jobs
        self._ends = ends
        self._gate = gate
        self._clock = clock
        self._on_done = on_done
        self.ended_s = 0.0  # the latest end
        self.is_cancelled = False  # the run is

    def look_up(self, job_ids: list[JobId]) -> None:
        """Take what has become of jobs; one without a record is submitted again."""
        found = self._transport.statuses(job_ids) if job_ids else {}
        for job_id, status in found.items():
            if job_id not in self._jobs:  # it went with another job of its row
                continue
            flight, number = self._jobs[job_id]
            if status is None:
                self.drop(job_id)
                flight.group.pending.appendleft((flight, number))
            elif status.outcome is not None:
                usage = status.outcome.usage
                self.drop(job_id, usage.prompt_tokens + usage.completion_tokens)
                self.ended_s = self._clock()
                flight.group.ends.append(self.ended_s)
                flight.results[number] = result = result_of(job_id, status.outcome, raise_error=False)
                if flight.is_whole or result.error:
                    self.settle(flight)

    def drop(self, job_id: JobId, tokens: int | None = None) -> None:
        """A job is none of ours any more; it took so many tokens, None: not known."""
        self._jobs.drop(job_id)
        self._gate.leave(job_id, tokens)

    def settle(self, flight: Flight) -> None:
        """All jobs of a row have ended, or one has failed."""
        group = flight.group
        failed = next((number for number, result in flight.results.items() if result.error), None)
        if failed is None:
            self._ends.answered(flight, [flight.results[number] for number in sorted(flight.results)])
            self._close(flight)
            return
        error = flight.results[failed].error
        assert error is not None
        self.forget_siblings(flight)
        said = verdict(error, tries=flight.tries, is_cancelled=self.is_cancelled, is_old=failed in flight.old)
        if said in (Verdict.RENEWED, Verdict.AGAIN):
            self.start_again(flight, tries=flight.tries + (said is Verdict.AGAIN))
            return
        self._close(flight)
        if said is Verdict.FAILED:
            self._ends.failed(flight.todo, group.name, error_line(flight.text, flight.asked.row.custom_id, error))
            return
        self._ends.renew(flight.todo, flight.epoch + 1, flight.tries)
        if isinstance(error, ModelError):
            group.block(error)

    def forget_siblings(self, flight: Flight) -> None:
        """Jobs of a row of which one has failed are not waited for."""
        group = flight.group
        group.pending = deque(entry for entry in group.pending if entry[0] is not flight)
        for job_id in self._jobs.of(flight):
            with suppress(TryLater):  # then it runs to its end, for nobody
                self._transport.cancel(job_id)
            self.drop(job_id)

    def start_again(self, flight: Flight, *, tries: int) -> None:
        """Have a row run once more, with new jobs."""
        flight.epoch, flight.tries = flight.epoch + 1, tries
        self._ends.renew(flight.todo, flight.epoch, flight.tries)
        flight.group.again.append((self._clock() + _AGAIN_S * 2**tries, flight))

    def _close(self, flight: Flight) -> None:
        flight.group.flights -= 1
        flight.group.size -= flight.todo.size
        if flight.group.is_done:
            self._on_done()
