"""The loop of a run: rows go into the fleet as there is room, answers come out into a file.

    ledger ──todo──▶ group ──submit, key = run:line:epoch──▶ fleet ──end──▶ settle ──▶ journal ──sync──▶ ledger

Each job has an idempotency key made from its run and row, so a row that was in the fleet when this process died is
found there by the next one, running or ended, and never runs twice. The same covers replies that were lost with a
connection, and a broker that forgot its last second: the row is simply submitted again.

    opening.py     rows, from the file until they have jobs       in_flight.py   jobs that are in the fleet
    settling.py    what an end means for its row                  ends.py        ends, until they are on disk
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from packtrain.broker.errors import (
    BrokerUnavailable,
    IdempotencyConflict,
    InvalidRequest,
    ModelError,
    PacktrainError,
    SetupError,
    TryLater,
)
from packtrain.broker.ids import Route
from packtrain.broker.model_info import ModelInfo
from packtrain.client.bulk import window
from packtrain.client.bulk.beats import Beats
from packtrain.client.bulk.ends import Ends
from packtrain.client.bulk.flights import Flight, Group
from packtrain.client.bulk.gate import Gate, OpenGate
from packtrain.client.bulk.in_flight import InFlight
from packtrain.client.bulk.ledger import Ledger
from packtrain.client.bulk.opening import Opener
from packtrain.client.bulk.output import Journal
from packtrain.client.bulk.progress import Snapshot, Tally
from packtrain.client.bulk.settling import Settler
from packtrain.client.bulk.translate import Manner
from packtrain.client.reading import RETRY_S
from packtrain.client.result import Result
from packtrain.client.transport import Transport

#: Lines are synced and the ledger told so often, seconds, or after `ends.MOST_ROWS` of them.
COMMIT_S: Final = 0.5
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
        gate: Asked before each job; None: nobody has to be.
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
        gate: Gate | None = None,
    ) -> None:
        self._transport = transport
        self._tally = tally
        self._report = report
        self._clock = clock
        self._sleep = sleep
        self._gate = gate or OpenGate()
        self._groups = [Group(Route(name), name) for name in ledger.counts()]
        self._active: list[Route] = []
        self._jobs = InFlight()
        self._ends = Ends(ledger, answers, errors, manner, tally, clock)
        self._opener = Opener(ledger, rows, run_id, manner, self._ends)
        self._beats = Beats(clock, "look", "sweep", "commit", "report")
        # Once a model has done all its rows there may be room for another.
        has_room = partial(self._beats.make_due, "look")
        self._settler = Settler(transport, self._jobs, self._ends, self._gate, clock, has_room)
        self._reason = ""  # why nothing ends
        self._is_stopped = False
        self._is_cancelled = False
        self._has_found = False  # what there is to cancel

    def stop(self) -> None:
        """Return soon. Jobs in the fleet go on, and are found there by the next run. May be called by a handler."""
        self._is_stopped = True

    def cancel(self) -> None:
        """Submit nothing more, cancel what is in the fleet, and return when that has ended."""
        self._is_cancelled = self._settler.is_cancelled = True

    def run(self) -> list[ModelError]:
        """Run until every row is through, or `stop`; why models are blocked, whose rows are not through."""
        self._settler.ended_s = self._clock()
        self._tally.start(self._settler.ended_s)
        self._opener.refuse(self._groups)  # lines that are no rows, which a run was told to go on without
        while not self._is_stopped and not self._is_over():
            try:
                self._step()
            except BrokerUnavailable as error:
                self._ends.commit()
                self._tally.waits_for = f"the broker: {error.data.get('reason', error)}"
                self._beats.make_due("sweep")  # it may have forgotten its last second
                self._say()
                self._sleep(RETRY_S)
        self._ends.commit()
        self._tally.in_flight = len(self._jobs)
        self._report(self._tally.look(self._clock()))
        return [group.blocked for group in self._groups if group.blocked]

    def fail_rest(self, error: PacktrainError) -> None:
        """Have this be the answer of all rows that are still to do; nothing may be in the fleet."""
        self._opener.fail_rest(self._groups, error)

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
        self._gate.keep()
        self._settler.look_up(self._jobs.saw(self._transport.events(self._jobs.cursors.after, block_s=self._block_s())))
        if self._beats.is_due("sweep", SWEEP_S):
            self._sweep()
        if self._ends.is_full or self._beats.is_due("commit", COMMIT_S):
            self._ends.commit()
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
            self._tally.waits_for = group.waits_for
            return
        for flight in group.take_ready(now_s):
            group.open(flight)
        for _ in range(FEED_JOBS):
            if group.jobs >= group.window or self._is_stopped:
                return
            if not group.pending:
                if group.is_heavy or not self._opener.open_next(group):
                    return
                continue
            flight, number = group.pending[0]
            try:
                self._submit(flight, number)
            except (TryLater, SetupError) as error:  # a full queue; the memory of the broker; a gateway's limits
                if isinstance(error, BrokerUnavailable):
                    raise  # it stays pending
                group.wait(now_s + float(error.data.get("retry_after_s", _FULL_S)), str(error))
                self._tally.waits_for = group.waits_for
                return
            except IdempotencyConflict:  # of another version of this program, which made another job of the row
                self._settler.forget_siblings(flight)
                self._settler.start_again(flight, tries=flight.tries)
            except (InvalidRequest, ModelError) as error:
                flight.results[number] = Result("", "", None, error=error)
                self._settler.settle(flight)
            else:
                group.pending.popleft()

    def _submit(self, flight: Flight, number: int) -> None:
        job_id, spec = self._opener.id_of(flight, number), flight.asked.specs[number]
        self._gate.enter(job_id, spec)
        try:
            submitted = self._transport.submit(job_id, spec)
        except BaseException:
            self._gate.leave(job_id, 0)
            raise
        if not submitted.is_new:  # of an earlier process, which has entered with it
            self._gate.leave(job_id, 0)
            flight.old.add(number)
        self._jobs.add(submitted.job_id, flight, number)

    def _find_earlier(self) -> None:
        """Once: take on jobs of an earlier process, which are of the rows that come next, to be cancelled with ours."""
        if self._has_found:
            return
        for group in self._groups:
            while len(group.pending) < window.MOST and not group.is_heavy and self._opener.open_next(group):
                pass
            pending = {self._opener.id_of(flight, number): (flight, number) for flight, number in group.pending}
            found = self._transport.statuses(list(pending)) if pending else {}
            for job_id, status in found.items():
                if status is not None:
                    self._jobs.add(job_id, *pending[job_id])
            group.pending.clear()
        self._has_found = True

    def _cancel_all(self) -> None:
        for job_id in self._jobs.ids():
            if self._transport.cancel(job_id) is None:
                self._settler.drop(job_id)
        for group in self._groups:
            group.pending.clear()
            group.again.clear()

    # --- out of the fleet

    def _sweep(self) -> None:
        """Look at jobs that said nothing for long: an end may have been lost, or a job with a broker's last second."""
        silent = self._jobs.silent(SWEEP_JOBS)
        self._reason = ""
        is_still = self._clock() - self._settler.ended_s > SILENT_S
        if silent and is_still and (found := self._transport.explain(silent[0])):
            self._reason = f"{found.model}: {found.reason}"
        self._settler.look_up(silent)
