"""The loop of a run: rows go into the fleet as there is room, answers come out into a file.

    ledger ──todo──▶ group ──submit, key = run:line:epoch──▶ fleet ──end──▶ settle ──▶ journal ──sync──▶ ledger

Each job has an idempotency key made from its run and row, so a row that was in the fleet when this process died is
found there by the next one, running or ended, and never runs twice. The same covers replies that were lost with a
connection, and a broker that forgot its last second: the row is simply submitted again.

What ends badly is one of three things. The row is wrong, or its time was over: that is its answer (errors file). The
fleet failed it: it runs again with a new key, `flights.MOST_TRIES` times in all. The operator has to change something
before any row of this model can run (`ModelError`): the model is blocked, its rows stay to do, the others go on.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

from packtrain.broker.chunks import Event
from packtrain.broker.errors import (
    BrokerUnavailable,
    IdempotencyConflict,
    InvalidRequest,
    ModelError,
    PacktrainError,
    SetupError,
    TryLater,
)
from packtrain.broker.ids import JobId, Route
from packtrain.broker.model_info import ModelInfo
from packtrain.client.bulk import window
from packtrain.client.bulk.beats import Beats
from packtrain.client.bulk.flights import Flight, Group, Verdict, verdict
from packtrain.client.bulk.ledger import End, Ledger, State, Todo
from packtrain.client.bulk.output import Journal
from packtrain.client.bulk.progress import Snapshot, Tally
from packtrain.client.bulk.rows import RowFault, parse_row
from packtrain.client.bulk.translate import Manner, answer_line, ask, error_line
from packtrain.client.reading import RETRY_S, Cursors
from packtrain.client.request import job_id_of
from packtrain.client.result import Result, result_of
from packtrain.client.transport import Transport

#: Lines are synced and the ledger told so often, seconds, or after so many of them.
COMMIT_S: Final = 0.5
COMMIT_ROWS: Final = 500
#: Windows are fitted to the fleet so often, seconds.
LOOK_S: Final = 2.0
#: So many jobs that said nothing are looked up, so often, seconds.
SWEEP_S: Final = 2.0
SWEEP_JOBS: Final = 64
#: What is to be cancelled is cancelled again, seconds.
CANCEL_S: Final = 1.0
#: When nothing has ended for so long, the fleet is asked why, seconds.
SILENT_S: Final = 5.0
#: Between two reads of events: they come in handfuls then, and a read asks for each job in flight.
PACE_S: Final = 0.02
REPORT_S: Final = 0.5
#: Jobs of one route that are submitted before ends are looked at again.
FEED_JOBS: Final = 64
#: Rows read from the ledger at once.
_AHEAD: Final = 256
#: Before a row runs again, seconds; twice as long the next time.
_AGAIN_S: Final = 1.0
#: How long nothing is submitted when the fleet takes nothing and does not say how long, seconds.
_FULL_S: Final = 5.0


class Feeder:
    """One run of the rows that a ledger has to do. For one thread.

    Args:
        transport: To the fleet.
        ledger: Filled.
        rows: Descriptor of the file that the ledger's places are in.
        answers, errors: Where lines go.
        run_id: Names the run in idempotency keys.
        manner: How rows run.
        tally: Told of all that ends.
        report: Called twice a second.
        clock: Monotonic seconds.
        sleep: For so many seconds.
    """

    def __init__(
        self,
        transport: Transport,
        ledger: Ledger,
        rows: int,
        answers: Journal,
        errors: Journal,
        *,
        run_id: str,
        manner: Manner,
        tally: Tally,
        report: Callable[[Snapshot], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._transport = transport
        self._ledger = ledger
        self._rows = rows
        self._answers = answers
        self._errors = errors
        self._run_id = run_id
        self._manner = manner
        self._tally = tally
        self._report = report
        self._clock = clock
        self._sleep = sleep
        self._groups = [Group(Route(name), name) for name in ledger.counts()]
        self._active: list[Route] = []
        self._jobs: dict[JobId, tuple[Flight, int]] = {}  # the one longest without a sign first
        self._cursors = Cursors()
        self._ends: list[End] = []
        self._again: list[tuple[int, int, int]] = []
        self._beats = Beats(clock, "look", "sweep", "commit", "report")
        self._ended_s = 0.0  # the latest end
        self._reason = ""  # why nothing ends
        self._is_stopped = False
        self._is_cancelled = False
        self._has_found = False  # what there is to cancel

    def stop(self) -> None:
        """Return soon. Jobs in the fleet go on, and are found there by the next run. May be called by a handler."""
        self._is_stopped = True

    def cancel(self) -> None:
        """Submit nothing more, cancel what is in the fleet, and return when that has ended."""
        self._is_cancelled = True

    def run(self) -> list[ModelError]:
        """Run until every row is through, or `stop`; why models are blocked, whose rows are not through."""
        self._ended_s = self._clock()
        self._tally.start(self._ended_s)
        self._refuse()
        while not self._is_stopped and not self._is_over():
            try:
                self._step()
            except BrokerUnavailable as error:
                self._commit()
                self._tally.waits_for = f"the broker: {error.data.get('reason', error)}"
                self._beats.make_due("sweep")  # it may have forgotten its last second
                self._say()
                self._sleep(RETRY_S)
        self._commit()
        self._tally.in_flight = len(self._jobs)
        self._report(self._tally.look(self._clock()))
        return [group.blocked for group in self._groups if group.blocked]

    def fail_rest(self, error: PacktrainError) -> None:
        """Have this be the answer of all rows that are still to do; nothing may be in the fleet."""
        for group in self._groups:
            after = (b"", 0)
            while todos := self._ledger.todo(group.name, after, _AHEAD):
                for todo in todos:
                    text = self._text(todo)
                    try:
                        custom_id: str | None = parse_row(text, todo.line, self._manner.defaults).custom_id
                    except RowFault as fault:
                        custom_id = fault.custom_id
                    self._fail(todo, group.name, error_line(text, custom_id, error))
                after = (todos[-1].prefix, todos[-1].line)
                self._commit()

    def _is_over(self) -> bool:
        if self._is_cancelled:
            return self._has_found and not self._jobs
        return not self._jobs and all(group.is_done or group.blocked for group in self._groups)

    def _step(self) -> None:
        self._tally.waits_for = self._reason
        if self._beats.is_due("look", LOOK_S):
            self._fit_windows()
        if self._is_cancelled:
            self._find_earlier()
            if self._beats.is_due("cancel", CANCEL_S):
                self._cancel_all()
        else:
            for group in self._groups:
                if group.route in self._active and not group.blocked:
                    self._feed(group)
        self._tally.in_flight = len(self._jobs)
        self._settle_all(self._transport.events(self._cursors.after, block_s=self._block_s()))
        if self._beats.is_due("sweep", SWEEP_S):
            self._sweep()
        if len(self._ends) >= COMMIT_ROWS or self._beats.is_due("commit", COMMIT_S):
            self._commit()
        self._say()
        self._sleep(PACE_S)

    def _say(self) -> None:
        if self._beats.is_due("report", REPORT_S):
            self._report(self._tally.look(self._clock()))

    def _block_s(self) -> float:
        if not self._jobs:
            return 0.0
        return max(0.001, self._beats.left_s())

    # --- into the fleet

    def _fit_windows(self) -> None:
        instances = self._transport.instances()
        infos: Mapping[str, ModelInfo] = {info.id: info for info in self._transport.models()}
        left = [group.route for group in self._groups if group.name and not group.is_done and not group.blocked]
        self._active = window.together(left, self._active, self._transport.nodes(), instances, infos)
        now_s = self._clock()
        for group in self._groups:
            group.window = window.window(window.slots_for(group.route, instances, infos), group.jobs_per_s(now_s))

    def _feed(self, group: Group) -> None:
        now_s = self._clock()
        if now_s < group.not_before_s:
            return
        for flight in group.take_ready(now_s):
            group.open(flight)
        for _ in range(FEED_JOBS):
            if group.jobs >= group.window or self._is_stopped:
                return
            if not group.pending:
                if group.is_heavy or not self._open_next(group):
                    return
                continue
            flight, number = group.pending[0]
            try:
                self._submit(flight, number)
            except (TryLater, SetupError) as error:  # a full queue; the memory of the broker; a gateway's limits
                if isinstance(error, BrokerUnavailable):
                    raise  # it stays pending
                group.not_before_s = now_s + float(error.data.get("retry_after_s", _FULL_S))
                self._tally.waits_for = str(error)
                return
            except IdempotencyConflict:  # of another version of this program, which made another job of the row
                self._forget_siblings(flight)
                self._start_again(flight, tries=flight.tries)
            except (InvalidRequest, ModelError) as error:
                flight.results[number] = Result("", "", None, error=error)
                self._settle_row(flight)
            else:
                group.pending.popleft()

    def _open_next(self, group: Group) -> bool:
        """Take up the next row of a group; False: there is none."""
        if not group.read and not group.is_read:
            group.read.extend(self._ledger.todo(group.name, group.after, _AHEAD))
            group.is_read = len(group.read) < _AHEAD
        if not group.read:
            return False
        todo = group.read.popleft()
        group.after = (todo.prefix, todo.line)
        text = self._text(todo)
        try:
            asked = ask(text, todo.line, self._manner)
        except RowFault as fault:
            self._fail(todo, group.name, error_line(text, fault.custom_id, fault))
            return True
        group.flights += 1
        group.size += todo.size
        group.open(Flight(todo, group, text, asked, todo.epoch, todo.tries))
        return True

    def _submit(self, flight: Flight, number: int) -> None:
        submitted = self._transport.submit(self._id_of(flight, number), flight.asked.specs[number])
        if not submitted.is_new:
            flight.old.add(number)
        self._watch(submitted.job_id, flight, number)

    def _id_of(self, flight: Flight, number: int) -> JobId:
        key = f"bulk:{self._run_id}:{flight.todo.line}:{number}:{flight.epoch}"
        return job_id_of(flight.asked.specs[number], key)

    def _watch(self, job_id: JobId, flight: Flight, number: int) -> None:
        self._jobs[job_id] = (flight, number)
        self._cursors.add(job_id)
        flight.group.jobs += 1

    def _refuse(self) -> None:
        """Lines that are no rows, which a run was told to go on without."""
        for group in self._groups:
            while not group.name and self._open_next(group):
                if len(self._ends) >= COMMIT_ROWS:
                    self._commit()

    def _find_earlier(self) -> None:
        """Once: take on jobs of an earlier process, which are of the rows that come next, to be cancelled with ours."""
        if self._has_found:
            return
        for group in self._groups:
            while len(group.pending) < window.MOST and not group.is_heavy and self._open_next(group):
                pass
            pending = {self._id_of(flight, number): (flight, number) for flight, number in group.pending}
            found = self._transport.statuses(list(pending)) if pending else {}
            for job_id, status in found.items():
                if status is not None:
                    self._watch(job_id, *pending[job_id])
            group.pending.clear()
        self._has_found = True

    def _cancel_all(self) -> None:
        for job_id in list(self._jobs):
            if self._transport.cancel(job_id) is None:
                self._drop(job_id)
        for group in self._groups:
            group.pending.clear()
            group.again.clear()

    # --- out of the fleet

    def _settle_all(self, events: Iterable[Event]) -> None:
        ended = []
        for event in events:
            if event.job_id in self._jobs:
                self._jobs[event.job_id] = self._jobs.pop(event.job_id)
                self._cursors.after[event.job_id] = event.id
                if event.end:
                    ended.append(event.job_id)
        self._look_up(ended)

    def _sweep(self) -> None:
        """Look at jobs that said nothing for long: an end may have been lost, or a job with a broker's last second."""
        silent = list(self._jobs)[:SWEEP_JOBS]
        self._reason = ""
        if silent and self._clock() - self._ended_s > SILENT_S and (found := self._transport.explain(silent[0])):
            self._reason = f"{found.model}: {found.reason}"
        for job_id in silent:
            self._jobs[job_id] = self._jobs.pop(job_id)
        self._look_up(silent)

    def _look_up(self, job_ids: list[JobId]) -> None:
        """Take what has become of jobs; one without a record is submitted again."""
        found = self._transport.statuses(job_ids) if job_ids else {}
        for job_id, status in found.items():
            if job_id not in self._jobs:  # it went with another job of its row
                continue
            flight, number = self._jobs[job_id]
            if status is None:
                self._drop(job_id)
                flight.group.pending.appendleft((flight, number))
            elif status.outcome is not None:
                self._drop(job_id)
                self._ended_s = self._clock()
                flight.group.ends.append(self._ended_s)
                flight.results[number] = result = result_of(job_id, status.outcome, raise_error=False)
                if flight.is_whole or result.error:
                    self._settle_row(flight)

    def _drop(self, job_id: JobId) -> None:
        flight, _ = self._jobs.pop(job_id)
        self._cursors.after.pop(job_id, None)
        flight.group.jobs -= 1

    def _settle_row(self, flight: Flight) -> None:
        """All jobs of a row have ended, or one has failed."""
        group = flight.group
        failed = next((number for number, result in flight.results.items() if result.error), None)
        if failed is None:
            results = [flight.results[number] for number in sorted(flight.results)]
            line = answer_line(flight.asked, results, self._manner)
            self._ends.append(End(flight.todo.line, State.DONE, self._answers.append(line), len(line)))
            self._tally.ended(group.name, flight.todo.cost, results, self._clock(), failed=False)
            self._close(flight)
            return
        error = flight.results[failed].error
        assert error is not None
        self._forget_siblings(flight)
        said = verdict(error, tries=flight.tries, is_cancelled=self._is_cancelled, is_old=failed in flight.old)
        if said in (Verdict.RENEWED, Verdict.AGAIN):
            self._start_again(flight, tries=flight.tries + (said is Verdict.AGAIN))
            return
        self._close(flight)
        if said is Verdict.FAILED:
            self._fail(flight.todo, group.name, error_line(flight.text, flight.asked.row.custom_id, error))
            return
        self._again.append((flight.todo.line, flight.epoch + 1, flight.tries))
        if isinstance(error, ModelError):
            group.block(error)

    def _forget_siblings(self, flight: Flight) -> None:
        """Jobs of a row of which one has failed are not waited for."""
        group = flight.group
        group.pending = deque(entry for entry in group.pending if entry[0] is not flight)
        for job_id in [job_id for job_id, (other, _) in self._jobs.items() if other is flight]:
            with suppress(TryLater):  # then it runs to its end, for nobody
                self._transport.cancel(job_id)
            self._drop(job_id)

    def _start_again(self, flight: Flight, *, tries: int) -> None:
        flight.epoch, flight.tries = flight.epoch + 1, tries
        self._again.append((flight.todo.line, flight.epoch, flight.tries))
        flight.group.again.append((self._clock() + _AGAIN_S * 2**tries, flight))

    def _close(self, flight: Flight) -> None:
        flight.group.flights -= 1
        flight.group.size -= flight.todo.size
        if flight.group.is_done:
            self._beats.make_due("look")  # there may be room for another model now

    def _fail(self, todo: Todo, route: str, line: bytes) -> None:
        self._ends.append(End(todo.line, State.FAILED, self._errors.append(line), len(line)))
        self._tally.ended(route, todo.cost, (), self._clock(), failed=True)

    def _commit(self) -> None:
        if not self._ends and not self._again:
            return
        self._answers.sync()
        self._errors.sync()
        self._ledger.record(self._ends, self._again)
        self._ends.clear()
        self._again.clear()

    def _text(self, todo: Todo) -> bytes:
        text = os.pread(self._rows, todo.size, todo.place)
        if len(text) != todo.size:
            raise SetupError(
                f"the input ends before line {todo.line}: it was changed while it is read; restore it, and run again"
            )
        return text
