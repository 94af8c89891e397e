"""`MemoryJobs`: the in-memory twin of `RedisJobs`, for unit tests of whatever stands on a job store.

Time comes in as a function. It passes the same contract suite as the real store, so a test on it can be believed.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from packtrain.broker import errors, jobs, keys
from packtrain.broker.chunks import Chunk, Event
from packtrain.broker.claims import lanes_for, rank
from packtrain.broker.fairness import FairTags, cost_of
from packtrain.broker.ids import InstanceId, JobId, ModelId, NodeId, Route, route_of
from packtrain.broker.job_spec import JobSpec, Lane
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.outcome import Cause, JobStatus, Outcome
from packtrain.broker.prefixes import prefix_hashes
from packtrain.broker.rates import Rate, retry_after_s
from packtrain.broker.states import MAX_ATTEMPTS, SUSPECT_ATTEMPTS, JobState
from packtrain.broker.tally import NO_PACE, Pace


@dataclass(slots=True)
class _Record:
    spec: JobSpec
    model: ModelId
    order: float  # start tag, see fairness.py
    submitted_ms: int
    deadline_ms: int | None
    run_until_ms: int | None = None
    state: JobState = JobState.QUEUED
    epoch: int = 0
    attempts: int = 0
    passed: int = 0
    instance: InstanceId | None = None
    node: NodeId | None = None
    lease_ms: int = 0
    cancel: bool = False
    next_index: int = 0
    numerics_class: str = ""  # of its tokens
    num_events: int = 0  # ever; an answer begun anew goes on counting
    started_ms: int | None = None
    first_token_ms: int | None = None
    finished_ms: int | None = None
    cause: Cause | None = None
    targets: tuple[ModelId, ...] = ()
    spill_ms: int | None = None
    failed: frozenset[ModelId] = frozenset()  # targets
    outcome: Outcome | None = None
    events: list[Event] = field(default_factory=list)
    traceparent: str = ""
    ready_ms: int = 0  # submitted or put back

    @property
    def is_queued(self) -> bool:
        return self.state is JobState.QUEUED

    def is_kin(self, other: _Record) -> bool:
        """True when both stand in the same lane of the same model, on whichever route."""
        return (self.model, self.spec.lane) == (other.model, other.spec.lane)

    def overrun(self, now_ms: int) -> errors.JobExpired | None:
        """Why it may wait no longer."""
        if self.deadline_ms is not None and self.deadline_ms <= now_ms:
            return jobs.EXPIRED
        return jobs.OVERRUN if self.run_until_ms is not None and self.run_until_ms <= now_ms else None

    @property
    def route(self) -> Route:
        return route_of(self.model, deterministic=self.spec.deterministic)


class MemoryJobs:
    """A `jobs.JobStore` in one process. Thread-safe.

    Args:
        now_ms: The server's clock, milliseconds.
        models: Models that may be asked for, alias → real id.
        aliases: Of these names with several targets, what catalogs say.
    """

    def __init__(self, now_ms: Callable[[], int], models: Mapping[str, str], aliases: Sequence[ModelInfo] = ()) -> None:
        self._now_ms = now_ms
        self._models = models
        self._aliases = {info.id: info for info in aliases}
        self._records: dict[JobId, _Record] = {}
        self._tags: dict[tuple[ModelId, Lane], FairTags] = defaultdict(FairTags)
        self._rates: dict[Route, Rate] = {}
        self._changed = threading.Condition(threading.RLock())

    def submit(
        self,
        job_id: JobId,
        spec: JobSpec,
        *,
        max_waiting: int,
        max_waiting_user: int | None = None,
        keep_ms: int = keys.ENDED_TTL_MS,  # noqa: ARG002
        may_move: bool = True,
        traceparent: str = "",
    ) -> jobs.Submitted:
        with self._changed:
            seen = self._records.get(job_id)
            if seen:
                if seen.spec.digest() != spec.digest():
                    raise errors.IdempotencyConflict(job_id=job_id)
                return jobs.Submitted(job_id, seen.model, seen.route, False, 0)
            if spec.model not in self._models:
                raise errors.UnknownModel(model=spec.model, known=list(self._models))
            model = ModelId(self._models[spec.model])
            route = route_of(model, deterministic=spec.deterministic)
            ready = self.waiting().get(route, 0)
            if ready >= max_waiting:
                raise errors.QueueFull(
                    model=model,
                    waiting=ready,
                    limit=max_waiting,
                    retry_after_s=retry_after_s(ready, self._gap_ms(route)),
                )
            if max_waiting_user is not None and (mine := self._num_waiting(model, spec.user)) >= max_waiting_user:
                gap = self._gap_ms(route)
                num_users = len(self._users_waiting(model, spec.lane))
                wait_s = retry_after_s(mine, None if gap is None else gap * num_users)
                raise errors.QueueFull(
                    model=model, waiting=mine, limit=max_waiting_user, retry_after_s=wait_s, user=spec.user
                )
            now = self._now_ms()
            deadline = None if spec.expires_in_ms is None else now + spec.expires_in_ms
            tag = self._tags[model, spec.lane].start(spec.user, cost_of(spec))
            self._records[job_id] = record = _Record(spec, model, tag, now, deadline)
            record.traceparent, record.ready_ms = traceparent, now
            alias = self._aliases.get(spec.model)
            if alias and len(alias.targets) > 1 and may_move and jobs.can_move(spec):
                record.targets = tuple(map(ModelId, alias.targets))
                record.spill_ms = None if alias.spill_after_s is None else int(alias.spill_after_s * 1000)
            return jobs.Submitted(job_id, model, route, True, ready + 1)

    def claim(
        self,
        routes: Sequence[Route],
        instance: InstanceId,
        node: NodeId,
        *,
        lease_ms: int,
        numerics_class: str = "",
        prefixes: Iterable[str] = (),
        bulk: bool = True,
    ) -> jobs.Claim | None:
        with self._changed:
            now = self._now_ms()
            self._expire(now)
            held = [r for r in self._records.values() if r.state is JobState.RUNNING and r.instance == instance]
            if len(held) == 1 and held[0].attempts >= SUSPECT_ATTEMPTS:
                return None
            names = {None, str(instance), str(node)}
            best = self._choose(routes, lanes_for(bulk=bulk), names, numerics_class, frozenset(prefixes))
            if best is None or (best[1].attempts >= SUSPECT_ATTEMPTS and held):
                return None
            job_id, record = best
            record.state, record.epoch = JobState.RUNNING, record.epoch + 1
            self._tags[record.model, record.spec.lane].served(record.order)
            record.instance, record.node, record.started_ms = instance, node, now
            record.lease_ms = now + lease_ms
            if record.spec.deterministic and not record.next_index:
                record.numerics_class = numerics_class
            remaining = None if record.deadline_ms is None else record.deadline_ms - now
            if record.spec.max_run_ms is not None and record.run_until_ms is None:
                record.run_until_ms = now + record.spec.max_run_ms
            run_left = None if record.run_until_ms is None else record.run_until_ms - now
            return jobs.Claim(
                job_id, record.epoch, record.attempts, now - record.submitted_ms, remaining,
                record.spec.to_json(), record.route, record.spec.lane, run_left, record.traceparent,
                now - record.ready_ms,
            )  # fmt: skip

    def unring(self, route: Route) -> bool:  # noqa: ARG002
        return False  # there are no bells

    def emit(self, chunks: Sequence[tuple[JobId, int, Chunk]]) -> list[jobs.EmitReply]:
        with self._changed:
            return [self._emit(job_id, epoch, chunk) for job_id, epoch, chunk in chunks]

    def renew(self, held: Iterable[tuple[JobId, int]], *, lease_ms: int) -> dict[JobId, jobs.RenewVerdict]:
        with self._changed:
            news: dict[JobId, jobs.RenewVerdict] = {}
            for job_id, epoch in held:
                record = self._owned(job_id, epoch)
                if record is None:
                    news[job_id] = "lost"
                    continue
                record.lease_ms = self._now_ms() + lease_ms
                if record.cancel:
                    news[job_id] = "cancel"
            return news

    def finish(
        self,
        job_id: JobId,
        epoch: int,
        outcome: Outcome,
        last: Chunk | None = None,
        *,
        pace: Pace = NO_PACE,  # noqa: ARG002
    ) -> bool:  # counts nothing: nobody scrapes a twin
        with self._changed:
            record = self._records.get(job_id)
            if record and record.epoch == epoch and record.state is outcome.state:
                return True
            record = self._owned(job_id, epoch)
            if record is None:
                return False
            if last:
                self._append(job_id, record, last)
                record.next_index = last.next_index
            if outcome.state is JobState.SUCCEEDED and record.started_ms is not None:
                rate = self._rates.get(record.route, Rate())
                self._rates[record.route] = rate.with_end(record.started_ms, self._now_ms())
            self._settle(job_id, record, outcome)
            return True

    def release(self, job_id: JobId, epoch: int) -> bool:
        with self._changed:
            record = self._owned(job_id, epoch)
            if record is None:
                return False
            if record.cancel:
                self._settle(job_id, record, jobs.ended(JobState.CANCELLED, jobs.CANCELLED))
            else:
                record.state, record.ready_ms = JobState.QUEUED, self._now_ms()
            return True

    def fall_back(self, job_id: JobId, epoch: int, cause: Cause) -> Route | None:
        with self._changed:
            record = self._owned(job_id, epoch)
            if record is None or record.next_index:
                return None
            if record.cancel and record.targets:
                self._settle(job_id, record, jobs.ended(JobState.CANCELLED, jobs.CANCELLED))
                return None
            failed = record.failed | {record.model}
            target = next((target for target in record.targets if target not in failed), None)
            if target is None:
                return None
            record.failed = failed
            self._enqueue(record, target, cause)
            return record.route

    def movable(self, route: Route) -> list[jobs.Movable]:
        with self._changed:
            ready, found = self._ready([route]), []
            for lane in ("interactive", "bulk"):
                mine = [(i, r) for i, r in ready if r.spec.lane == lane]
                before = len(ready) - len(mine) if lane == "bulk" else 0
                placed = [(i, r, before + rank) for rank, (i, r) in enumerate(mine) if r.targets]
                most = jobs.SCRIPT_BATCH
                chosen = placed if len(placed) <= 2 * most else [*placed[:most], *placed[-most:]]
                found += [
                    jobs.Movable(
                        job_id, lane, ahead, self._now_ms() - record.submitted_ms, record.spill_ms, record.targets,
                        record.failed,
                    )
                    for job_id, record, ahead in reversed(chosen)
                    if not record.next_index
                ]  # fmt: skip
            return found

    def move(self, moves: Sequence[jobs.Move]) -> list[bool]:
        with self._changed:
            return [self._move(move) for move in moves]

    def cancel(self, job_id: JobId, *, forget: bool = False) -> JobState | None:
        with self._changed:
            record = self._records.get(job_id)
            if record is None:
                return None
            if record.state is JobState.QUEUED:
                self._settle(job_id, record, jobs.ended(JobState.CANCELLED, jobs.CANCELLED))
                if forget and not record.epoch:
                    del self._records[job_id]
            elif record.state is JobState.RUNNING:
                record.cancel = True
            return record.state

    def reject(self, route: Route, error: errors.PacktrainError) -> int:
        with self._changed:
            rejected = self._ready([route])[: jobs.SCRIPT_BATCH]
            for job_id, record in rejected:
                self._settle(job_id, record, jobs.ended(JobState.FAILED, error))
            return len(rejected)

    def strand(self, serving: Mapping[Route, Collection[str]]) -> int:
        with self._changed:
            stranded = [
                (job_id, record)
                for job_id, record in self._ready(list(serving))
                if record.spec.meant_for is not None and record.spec.meant_for not in serving[record.route]
            ]
            for job_id, record in stranded:
                self._settle(job_id, record, jobs.ended(JobState.FAILED, jobs.STRANDED))
            return len(stranded)

    def begin_anew(self, classes: Mapping[Route, Collection[tuple[str, str]]]) -> list[jobs.Reaped]:
        with self._changed:
            begun = []
            for job_id, record in self._ready(list(classes)):
                meant_for = record.spec.meant_for or ""
                computed = {each for name, each in classes[record.route] if name == meant_for}
                is_begun = record.next_index and record.numerics_class
                if is_begun and computed and record.numerics_class not in computed:
                    begun.append((job_id, record))
            for _, record in begun:
                record.events.clear()
                record.next_index, record.numerics_class, record.first_token_ms = 0, "", None
            return [jobs.Reaped(job_id, record.route, record.state) for job_id, record in begun]

    def reap(self, instance: InstanceId | None = None, cause: Cause | None = None) -> list[jobs.Reaped]:
        with self._changed:
            now = self._now_ms()
            changed = []
            for job_id, record in self._records.items():
                if record.state is JobState.RUNNING:
                    gone = record.lease_ms <= now if instance is None else record.instance == instance
                    if gone:
                        record.cause = (
                            jobs.cause_of(instance, cause) if instance else jobs.silent(record.instance or "")
                        )
                        self._lapse(job_id, record)
                        changed.append(jobs.Reaped(job_id, record.route, record.state))
                elif record.is_queued and (error := record.overrun(now)):
                    self._settle(job_id, record, jobs.ended(JobState.EXPIRED, error))
                    changed.append(jobs.Reaped(job_id, record.route, record.state))
            return changed

    def status(self, job_id: JobId) -> JobStatus | None:
        with self._changed:
            record = self._records.get(job_id)
            if record is None:
                return None
            return JobStatus(
                id=job_id, state=record.state, model=record.model, user=record.spec.user, lane=record.spec.lane,
                attempts=record.attempts, epoch=record.epoch, submitted_ms=record.submitted_ms,
                started_ms=record.started_ms, first_token_ms=record.first_token_ms, finished_ms=record.finished_ms,
                instance=record.instance, node=record.node, cancel_requested=record.cancel, cause=record.cause,
                route=record.route, meant_for=record.spec.meant_for, tokens=record.next_index,
                outcome=record.outcome, traceparent=record.traceparent,
            )  # fmt: skip

    def events(self, after: Mapping[JobId, str], *, block_ms: int | None = None) -> list[Event]:
        def found() -> list[Event]:
            return [
                event
                for job_id, last in after.items()
                if (record := self._records.get(job_id))
                for event in record.events
                if int(event.id) > int(last.partition("-")[0])
            ]

        with self._changed:
            if block_ms is not None:
                self._changed.wait_for(found, block_ms / 1000)
            return found()

    def place(self, job_id: JobId) -> jobs.Place | None:
        with self._changed:
            record = self._records.get(job_id)
            if record is None or not record.is_queued:
                return None
            lane, ready = record.spec.lane, self._ready([record.route])
            mine = [(i, r) for i, r in ready if r.spec.lane == lane]
            users = [r.spec.user for r in self._records.values() if r.is_queued and r.is_kin(record)]
            first, head = mine[0]
            return jobs.Place(
                ahead=[i for i, _ in mine].index(job_id),
                waiting=len(mine),
                interactive_ahead=len(ready) - len(mine) if lane == "bulk" else 0,
                users=len(set(users)),
                own_waiting=users.count(record.spec.user),
                first=first,
                first_attempts=head.attempts,
            )

    def rate(self, route: Route) -> Rate | None:
        with self._changed:
            return self._rates.get(route)

    def waiting(self) -> dict[Route, int]:
        with self._changed:
            counts: dict[Route, int] = {}
            for record in self._records.values():
                if record.state is JobState.QUEUED:
                    counts[record.route] = counts.get(record.route, 0) + 1
            return counts

    def ready(self, routes: Sequence[Route]) -> tuple[int, int]:
        with self._changed:
            lanes = [record.spec.lane for _, record in self._ready(routes)]
            return lanes.count("interactive"), lanes.count("bulk")

    def _ready(self, routes: Sequence[Route]) -> list[tuple[JobId, _Record]]:
        """Queued jobs, best first."""
        ready = [(i, r) for i, r in self._records.items() if r.state is JobState.QUEUED and r.route in routes]
        return sorted(ready, key=lambda entry: rank(entry[1].spec.lane, entry[1].order, entry[0]))

    def _choose(
        self,
        routes: Sequence[Route],
        lanes: Sequence[Lane],
        names: set[str | None],
        numerics_class: str,
        prefixes: frozenset[str],
    ) -> tuple[JobId, _Record] | None:
        ready = self._ready(routes)
        for lane in lanes:
            in_lane = [(i, r) for i, r in ready if r.spec.lane == lane]
            for begin in range(0, len(in_lane), jobs.CLAIM_LOOK):
                looked_at = in_lane[begin : begin + jobs.CLAIM_LOOK]
                mine = [
                    (i, r)
                    for i, r in looked_at
                    if r.spec.meant_for in names and not _is_begun_elsewhere(r, numerics_class)
                ]
                if mine:
                    return self._best(mine, prefixes)
        return None

    def _best(self, mine: Sequence[tuple[JobId, _Record]], prefixes: frozenset[str]) -> tuple[JobId, _Record]:
        head = mine[0][1]
        if head.attempts >= SUSPECT_ATTEMPTS or head.passed >= jobs.MAX_PASSED or not prefixes:
            return mine[0]
        others = [(i, r) for i, r in mine if r.attempts < SUSPECT_ATTEMPTS]
        best = max(others, key=lambda entry: len(prefixes & set(prefix_hashes(entry[1].spec))))
        if best[1] is not head:
            head.passed += 1
        return best

    def _expire(self, now: int) -> None:
        for job_id, record in self._records.items():
            if record.is_queued and (error := record.overrun(now)):
                self._settle(job_id, record, jobs.ended(JobState.EXPIRED, error))

    def _owned(self, job_id: JobId, epoch: int) -> _Record | None:
        record = self._records.get(job_id)
        return record if record and record.epoch == epoch and record.state is JobState.RUNNING else None

    def _emit(self, job_id: JobId, epoch: int, chunk: Chunk) -> jobs.EmitReply:
        record = self._owned(job_id, epoch)
        if record is None:
            return jobs.EmitReply.LOST
        if chunk.index > record.next_index:
            return jobs.EmitReply.LOST
        if chunk.index == record.next_index:
            self._append(job_id, record, chunk)
            record.next_index = chunk.next_index
        return jobs.EmitReply.CANCEL if record.cancel else jobs.EmitReply.OK

    def _append(self, job_id: JobId, record: _Record, chunk: Chunk) -> None:
        if record.first_token_ms is None:
            record.first_token_ms = self._now_ms()
        record.num_events += 1
        event_id = str(record.num_events)
        record.events.append(
            Event(job_id, event_id, chunk.text, chunk.index, chunk.tokens, chunk.reasoning, chunk.calls, chunk.logprobs)
        )
        self._changed.notify_all()

    def _move(self, move: jobs.Move) -> bool:
        record = self._records.get(move.job_id)
        if not record or not record.is_queued or record.route != move.source or not record.targets or record.next_index:
            return False
        if move.has_failed:
            record.failed |= {record.model}
        model, lane, user = record.model, record.spec.lane, record.spec.user
        self._enqueue(record, move.target, move.cause)
        if user not in self._users_waiting(model, lane):
            self._tags[model, lane].forget(user)
        return True

    def _enqueue(self, record: _Record, target: ModelId, cause: Cause) -> None:
        record.state, record.model, record.cause = JobState.QUEUED, target, cause
        record.order = self._tags[target, record.spec.lane].start(record.spec.user, cost_of(record.spec))

    def _lapse(self, job_id: JobId, record: _Record) -> None:
        record.attempts += 1
        if record.cancel:
            self._settle(job_id, record, jobs.ended(JobState.CANCELLED, jobs.CANCELLED))
        elif record.attempts >= MAX_ATTEMPTS:
            assert record.cause is not None
            self._settle(job_id, record, jobs.dead(record.cause))
        else:
            record.state, record.ready_ms = JobState.QUEUED, self._now_ms()

    def _settle(self, job_id: JobId, record: _Record, outcome: Outcome) -> None:
        is_withdrawn = record.state is JobState.QUEUED
        record.state, record.outcome, record.finished_ms = outcome.state, outcome, self._now_ms()
        record.num_events += 1
        record.events.append(Event(job_id, str(record.num_events), end=outcome.state))
        self._changed.notify_all()
        lane, user = record.spec.lane, record.spec.user
        if is_withdrawn and user not in self._users_waiting(record.model, lane):
            self._tags[record.model, lane].forget(user)

    def _num_waiting(self, model: ModelId, user: str) -> int:
        return sum(r.model == model and r.spec.user == user for r in self._records.values() if r.is_queued)

    def _users_waiting(self, model: ModelId, lane: Lane) -> set[str]:
        queued = (r for r in self._records.values() if r.is_queued)
        return {r.spec.user for r in queued if (r.model, r.spec.lane) == (model, lane)}

    def _gap_ms(self, route: Route) -> float | None:
        return self._rates[route].gap_ms if route in self._rates else None


def _is_begun_elsewhere(record: _Record, numerics_class: str) -> bool:
    classes = {record.numerics_class, numerics_class if record.spec.deterministic else ""} - {""}
    return bool(record.next_index) and len(classes) == 2
