"""Jobs as records: every step of a job's life as a pure `Call`, and the `JobStore` protocol that runs them.

A job is a hash; its state is the truth, Celery's messages are only doorbells. An instance *claims* a job and gets an
epoch that grows with every claim. All its later writes (emit, renew, finish, release) carry that epoch, and the server
refuses them once the lease has lapsed and the job has moved on: so an instance that was frozen, cut off or thought dead
can do no harm when it comes back, and a job ends exactly once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, Protocol

from packtrain.broker import errors, keys
from packtrain.broker.chunks import Chunk, Event, to_entry
from packtrain.broker.fairness import HAIR, cost_of
from packtrain.broker.fields import Numerics
from packtrain.broker.ids import InstanceId, JobId, ModelId, NodeId, Route, is_deterministic, model_of, route_of
from packtrain.broker.job_spec import JobSpec, Lane
from packtrain.broker.outcome import Cause, JobStatus, Outcome
from packtrain.broker.prefixes import prefix_hashes
from packtrain.broker.rates import Rate, retry_after_s
from packtrain.broker.scripts import Call
from packtrain.broker.states import MAX_ATTEMPTS, SUSPECT_ATTEMPTS, JobState
from packtrain.broker.tally import NO_PACE, Pace, figures_of, to_words

#: Jobs that one reap or reject handles, so that no script holds the server for more than some milliseconds.
SCRIPT_BATCH = 200
#: Ready jobs among which a claim chooses by prefix, and how often one may be passed over for another.
CLAIM_LOOK, MAX_PASSED = 16, 16
#: Of a cause: it stands in every job that an instance held.
MAX_TAIL_LINES, MAX_TAIL_CHARS = 12, 2000
#: Stands for the instance in what reap.lua writes of leases that lapsed: only the record says whose each was.
_SOME_INSTANCE = "{instance}"


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a submit."""

    job_id: JobId
    model: ModelId  # the real id when the spec named an alias
    route: Route
    is_new: bool  # False: an idempotency key met its job again
    ready: int  # jobs now ready on this route, 0 when not new


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease on one job. `epoch` must go with every later write."""

    job_id: JobId
    epoch: int
    attempts: int  # leases of this job that lapsed before
    queued_ms: int  # from submit to this claim
    remaining_ms: int | None  # until its deadline; None: no deadline
    spec_json: str
    route: Route  # that the job waited on
    lane: Lane = "interactive"
    run_left_ms: int | None = None  # that it may run; None: as long as it takes
    traceparent: str = ""  # of the door that handed it in, see trace_context.py
    waited_ms: int = 0  # since it was submitted or put back
    unrung: tuple[Route, ...] = ()  # of the claimer's routes those with more jobs still ready than doorbells


@dataclass(frozen=True, slots=True)
class Reaped:
    """A job that a reap changed, or that begins anew."""

    job_id: JobId
    route: Route
    state: JobState


@dataclass(frozen=True, slots=True)
class Place:
    """Where a waiting job stands."""

    ahead: int  # jobs of its lane and route
    waiting: int  # with itself
    interactive_ahead: int  # of a bulk job
    users: int  # who have jobs in this lane of the model, over both routes
    own_waiting: int  # jobs that its own user has there
    first: JobId  # of the lane
    first_attempts: int  # how many instances that one has lost


@dataclass(frozen=True, slots=True)
class Movable:
    """A waiting job that was asked for by a name with several targets."""

    job_id: JobId
    lane: Lane
    ahead: int  # jobs that are served before it
    waited_ms: int  # since its submission
    spill_ms: int | None  # that it may wait; None: as long as it takes
    targets: tuple[ModelId, ...]  # in the order of preference
    failed: frozenset[ModelId] = frozenset()  # of these


@dataclass(frozen=True, slots=True)
class Move:
    """A waiting job shall wait for another target."""

    job_id: JobId
    source: Route
    target: ModelId
    cause: Cause  # for people
    has_failed: bool = False  # the old target could not run it, and is not to be tried again


class EmitReply(IntEnum):
    """What the server says to a chunk."""

    LOST = -1  #: this epoch no longer owns the job: stop
    OK = 0
    CANCEL = 1  #: a client asked to cancel


RenewVerdict = Literal["lost", "cancel"]


class JobStore(Protocol):
    """Where job records live: `RedisJobs` and, for tests, `MemoryJobs`; one contract suite runs on both."""

    def submit(
        self,
        job_id: JobId,
        spec: JobSpec,
        *,
        max_waiting: int,
        max_waiting_user: int | None = None,
        keep_ms: int = keys.ENDED_TTL_MS,
        may_move: bool = True,
        traceparent: str = "",
    ) -> Submitted:
        """Write the record and make it ready. The same id with the same spec again is the same job.

        Args:
            max_waiting: Jobs that may wait on one route.
            max_waiting_user: Jobs of one user that may wait for one model; None: any number.
            keep_ms: How long the record is kept after its end.
            may_move: Where its model is a name with several targets, the job may go to another than the first.
            traceparent: Of who hands it in; empty: none.

        Raises:
            IdempotencyConflict, QueueFull, UnknownModel
        """
        ...

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
    ) -> Claim | None:
        """Lease the best ready job; None when none is ready, or a suspect has to run alone first (see claim.lua).

        Args:
            routes: All that the instance serves.
            numerics_class: That it computes in. A deterministic job with tokens of another one is left where it is.
            prefixes: Hashes of the beginnings of prompts that it holds, see prefixes.py.
            bulk: False: only an interactive job.
        """
        ...

    def unring(self, route: Route) -> bool:
        """Take one doorbell of a route away, if more wait than jobs are ready; whether there was one."""
        ...

    def emit(self, chunks: Sequence[tuple[JobId, int, Chunk]]) -> list[EmitReply]:
        """Append (job, epoch, chunk) each to its stream."""
        ...

    def renew(self, held: Iterable[tuple[JobId, int]], *, lease_ms: int) -> dict[JobId, RenewVerdict]:
        """Renew (job, epoch) leases; returns only jobs that were lost or should be cancelled."""
        ...

    def finish(
        self, job_id: JobId, epoch: int, outcome: Outcome, last: Chunk | None = None, *, pace: Pace = NO_PACE
    ) -> bool:
        """End a job, and count it with the pace of its tokens. False when this epoch no longer owned it: nothing was
        written."""
        ...

    def release(self, job_id: JobId, epoch: int) -> bool:
        """Give a job back without counting an attempt. False when this epoch no longer owned it."""
        ...

    def fall_back(self, job_id: JobId, epoch: int, cause: Cause) -> Route | None:
        """Give a job without a token to the next of its targets that has not failed; the route on which it waits now.

        None: it has no such target, or this epoch no longer owns it.
        """
        ...

    def movable(self, route: Route) -> list[Movable]:
        """Waiting jobs of a route that have further targets: up to `SCRIPT_BATCH` of each lane that came last and as
        many that come next, those that come last first."""
        ...

    def move(self, moves: Sequence[Move]) -> list[bool]:
        """Let waiting jobs wait for another of their targets; which were moved, and not claimed meanwhile."""
        ...

    def cancel(self, job_id: JobId, *, forget: bool = False) -> JobState | None:
        """Cancel: at once when it waits, else by a flag. The state afterwards; None: no such job.

        Args:
            forget: Leave nothing of one that has not begun, so that its id may be used again.
        """
        ...

    def reject(self, route: Route, error: errors.PacktrainError) -> int:
        """Fail up to `SCRIPT_BATCH` waiting jobs of a route; how many were."""
        ...

    def strand(self, serving: Mapping[Route, Collection[str]]) -> int:
        """Fail waiting jobs of these routes that are meant for somebody not among the route's names; how many were."""
        ...

    def begin_anew(self, classes: Mapping[Route, Collection[tuple[str, str]]]) -> list[Reaped]:
        """Drop the tokens of waiting jobs of these routes whose class is not among the route's; which ones.

        Args:
            classes: With whom they are computed by: an instance, a node, or "" for jobs that are meant for nobody.
                A job that is meant for none of these is left alone.
        """
        ...

    def reap(self, instance: InstanceId | None = None, cause: Cause | None = None) -> list[Reaped]:
        """Requeue jobs whose lease lapsed (or all of an instance known to be gone); expire waiting ones.

        Args:
            cause: How that instance ended; its jobs keep it, for people.
        """
        ...

    def status(self, job_id: JobId) -> JobStatus | None:
        """The record, or None."""
        ...

    def events(self, after: Mapping[JobId, str], *, block_ms: int | None = None) -> list[Event]:
        """Events after the given stream ids ("0" for all); waits up to `block_ms` for the first, not if None."""
        ...

    def place(self, job_id: JobId) -> Place | None:
        """Where a job stands; None: it does not wait."""
        ...

    def rate(self, route: Route) -> Rate | None:
        """How fast its jobs are served; None: not measured lately."""
        ...

    def waiting(self) -> dict[Route, int]:
        """Jobs ready, by route, for routes that have any."""
        ...

    def ready(self, routes: Sequence[Route]) -> tuple[int, int]:
        """Jobs ready on these routes together: interactive ones, bulk ones."""
        ...


def routes_of(model: ModelId, numerics: Numerics) -> tuple[Route, ...]:
    """The routes that an instance serves: a deterministic one runs jobs of both kinds."""
    if numerics == "fast":
        return (route_of(model),)
    return (route_of(model, deterministic=True), route_of(model))


def submit(
    job_id: JobId,
    spec: JobSpec,
    *,
    max_waiting: int,
    max_waiting_user: int | None = None,
    keep_ms: int = keys.ENDED_TTL_MS,
    may_move: bool = True,
    traceparent: str = "",
    known: Sequence[str] = (),
) -> Call[Submitted]:
    """Call of submit.lua."""

    def parse(reply: Any) -> Submitted:
        verdict, number, model, *gap = reply
        gap_ms = float(gap[0]) if gap and gap[0] else None
        match verdict:
            case "new" | "old":
                route = route_of(ModelId(model), deterministic=spec.deterministic)
                return Submitted(job_id, ModelId(model), route, verdict == "new", int(number))
            case "conflict":
                raise errors.IdempotencyConflict(job_id=job_id)
            case "full":
                wait_s = retry_after_s(int(number), gap_ms)
                raise errors.QueueFull(model=model, waiting=int(number), limit=max_waiting, retry_after_s=wait_s)
            case "full of one user":
                wait_s, limit = retry_after_s(int(number), gap_ms), max_waiting_user or 0
                raise errors.QueueFull(
                    model=model, waiting=int(number), limit=limit, retry_after_s=wait_s, user=spec.user
                )
            case _:
                raise errors.UnknownModel(model=spec.model, known=list(known))

    deadline = "" if spec.expires_in_ms is None else spec.expires_in_ms
    suffix = route_of(ModelId(""), deterministic=spec.deterministic)
    keep = "" if keep_ms == keys.ENDED_TTL_MS else keep_ms
    return Call(
        "submit",
        (keys.job(job_id),),
        (
            job_id, spec.to_json(), spec.digest(), spec.model, spec.lane, spec.user, deadline, max_waiting,
            suffix, " ".join(prefix_hashes(spec)), spec.meant_for or "", keep, cost_of(spec),
            repr(HAIR), "" if max_waiting_user is None else max_waiting_user, spec.max_run_ms or "",
            int(may_move and can_move(spec)), spec.tag or "", traceparent,
        ),
        parse,
    )  # fmt: skip


def claim(
    routes: Sequence[Route],
    instance: InstanceId,
    node: NodeId,
    *,
    lease_ms: int,
    numerics_class: str = "",
    prefixes: Iterable[str] = (),
    bulk: bool = True,
) -> Call[Claim | None]:
    """Call of claim.lua."""

    def parse(reply: Any) -> Claim | None:
        if not reply:
            return None
        job_id, epoch, attempts, submitted, now, deadline, spec, route, unrung, lane, run_until, trace, since = reply
        remaining = int(deadline) - int(now) if deadline else None
        run_left = int(run_until) - int(now) if run_until else None
        queued_ms = int(now) - int(submitted)
        short = tuple(Route(other) for other in unrung)
        return Claim(
            JobId(job_id), int(epoch), int(attempts), queued_ms, remaining, spec, Route(route), lane, run_left, trace,
            int(now) - int(since), short,
        )  # fmt: skip

    classes = [numerics_class if is_deterministic(route) else "" for route in routes]
    lanes = [keys.ready(route, lane) for lane in ("interactive", "bulk") for route in routes]
    return Call(
        "claim",
        (*lanes, *map(keys.model_queue, routes)),
        (
            instance, node, lease_ms, _EXPIRED, SUSPECT_ATTEMPTS, " ".join(prefixes), CLAIM_LOOK, MAX_PASSED, int(bulk),
            _OVERRUN, *routes, *classes,
        ),
        parse,
    )  # fmt: skip


def unring(route: Route) -> Call[bool]:
    """Call of unring.lua."""
    names = (keys.ready(route, "interactive"), keys.ready(route, "bulk"), keys.model_queue(route))
    return Call("unring", names, (1,), lambda reply: reply == 1)


def emit(job_id: JobId, epoch: int, chunk: Chunk) -> Call[EmitReply]:
    """Call of emit.lua."""
    return Call(
        "emit",
        (keys.job(job_id), keys.out(job_id)),
        (epoch, chunk.next_index, *to_entry(chunk)),
        lambda reply: EmitReply(int(reply)),
    )


def renew(held: Iterable[tuple[JobId, int]], *, lease_ms: int) -> Call[dict[JobId, RenewVerdict]]:
    """Call of renew.lua."""
    flat: list[str | int] = [lease_ms]
    for job_id, epoch in held:
        flat += (job_id, epoch)

    def parse(reply: Any) -> dict[JobId, RenewVerdict]:
        return {JobId(job_id): verdict for job_id, verdict in zip(reply[::2], reply[1::2], strict=True)}

    return Call("renew", (keys.LEASES,), flat, parse)


def finish(
    job_id: JobId, epoch: int, outcome: Outcome, last: Chunk | None = None, *, pace: Pace = NO_PACE
) -> Call[bool]:
    """Call of finish.lua."""
    chunk = (last.next_index, *to_entry(last)) if last else ()
    figures = to_words(figures_of(outcome, pace))
    return Call(
        "finish",
        (keys.job(job_id), keys.out(job_id)),
        (job_id, epoch, outcome.state, outcome.model_dump_json(exclude_defaults=True), figures, *chunk),
        lambda reply: reply == 1,
    )


def release(job_id: JobId, epoch: int) -> Call[bool]:
    """Call of release.lua."""
    return Call("release", (keys.job(job_id),), (job_id, epoch, _CANCELLED), lambda reply: reply == 1)


def can_move(spec: JobSpec) -> bool:
    """Whether another model could answer as well: not where an instance is named, where tokens are those of one
    vocabulary, or where vectors of two models would stand side by side."""
    return spec.meant_for is None and not spec.prompt_tokens and spec.kind in ("chat", "complete")


def fall_back(job_id: JobId, epoch: int, cause: Cause) -> Call[Route | None]:
    """Call of fall_back.lua."""
    told = cause.model_dump_json(exclude_defaults=True)
    return Call(
        "fall_back",
        (keys.job(job_id),),
        (job_id, epoch, told, repr(HAIR), _CANCELLED),
        lambda reply: Route(reply) or None,
    )


def movable(route: Route) -> Call[list[Movable]]:
    """Call of movable.lua."""

    def parse(reply: Any) -> list[Movable]:
        return [
            Movable(
                JobId(job_id), lane, ahead, int(waited), int(spill) if spill else None,
                tuple(map(ModelId, targets.split())), frozenset(map(ModelId, failed.split())),
            )
            for job_id, lane, ahead, waited, spill, targets, failed in reply
        ]  # fmt: skip

    lanes = ("interactive", "bulk")
    names = [*(keys.ready(route, lane) for lane in lanes), *(keys.movable(route, lane) for lane in lanes)]
    return Call("movable", names, (SCRIPT_BATCH,), parse)


def move(move: Move) -> Call[bool]:
    """Call of move.lua."""
    suffix = move.source.removeprefix(model_of(move.source))
    told = move.cause.model_dump_json(exclude_defaults=True)
    return Call(
        "move",
        (keys.job(move.job_id),),
        (move.job_id, move.source, move.target, suffix, told, repr(HAIR), int(move.has_failed)),
        lambda reply: reply == 1,
    )


def cancel(job_id: JobId, *, forget: bool = False) -> Call[JobState | None]:
    """Call of cancel.lua."""
    args = (job_id, _CANCELLED, int(forget))
    return Call("cancel", (keys.job(job_id),), args, lambda reply: JobState(reply) if reply else None)


def reject(route: Route, error: errors.PacktrainError) -> Call[int]:
    """Call of reject.lua."""
    outcome = Outcome(state=JobState.FAILED, error=error.to_wire()).model_dump_json(exclude_defaults=True)
    return Call("reject", (keys.ready(route, "interactive"), keys.ready(route, "bulk")), (outcome, SCRIPT_BATCH), int)


def strand(serving: Mapping[Route, Collection[str]]) -> Call[int]:
    """Call of strand.lua."""
    flat = [part for route, names in serving.items() for name in (*names, "") for part in (route, name)]
    return Call("strand", (keys.MEANT,), (_json(JobState.FAILED, STRANDED), *flat), int)


def begin_anew(classes: Mapping[Route, Collection[tuple[str, str]]]) -> Call[list[Reaped]]:
    """Call of anew.lua."""

    def parse(reply: Any) -> list[Reaped]:
        rows = zip(reply[::2], reply[1::2], strict=True)
        return [Reaped(JobId(job_id), Route(route), JobState.QUEUED) for job_id, route in rows]

    flat = [part for route, computed in classes.items() for name, each in computed for part in (route, name, each)]
    return Call("anew", (keys.BEGUN,), flat, parse)


def reap(instance: InstanceId | None = None, cause: Cause | None = None) -> Call[list[Reaped]]:
    """Call of reap.lua."""
    cause = cause_of(instance, cause) if instance else silent(_SOME_INSTANCE)

    def parse(reply: Any) -> list[Reaped]:
        rows = zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        return [Reaped(JobId(job_id), Route(route), JobState(state)) for job_id, route, state in rows]

    return Call(
        "reap",
        (keys.LEASES, keys.DEADLINES),
        (
            MAX_ATTEMPTS,
            SCRIPT_BATCH,
            instance or "",
            dead(cause).model_dump_json(exclude_defaults=True),
            _CANCELLED,
            _EXPIRED,
            cause.model_dump_json(exclude_defaults=True),
            _SOME_INSTANCE,
            _OVERRUN,
        ),
        parse,
    )


def place(job_id: JobId) -> Call[Place | None]:
    """Call of place.lua."""

    def parse(reply: Any) -> Place | None:
        if not reply:
            return None
        ahead, waiting, interactive, users, own, first, attempts = reply
        return Place(ahead, waiting, interactive, users, int(own), JobId(first), int(attempts))

    return Call("place", (keys.job(job_id),), (job_id,), parse)


def parse_status(job_id: JobId, fields: Mapping[str, str]) -> JobStatus | None:
    """A job record (the hash as read) as a `JobStatus`; None when it is empty."""
    if not fields:
        return None
    outcome = Outcome.model_validate_json(fields["outcome"]) if "outcome" in fields else None
    cause = Cause.model_validate_json(fields["cause"]) if "cause" in fields else None
    known = {name: value for name, value in fields.items() if name in JobStatus.model_fields}
    return JobStatus.model_validate(
        {
            "route": fields["model"],
            **known,
            "id": job_id,
            "outcome": outcome,
            "cause": cause,
            "cancel_requested": "cancel" in fields,
        }
    )


def ended(state: JobState, error: errors.PacktrainError) -> Outcome:
    """The outcome of a job that ends without a result."""
    return Outcome(state=state, error=error.to_wire())


def silent(instance: str) -> Cause:
    """Of a lease that lapsed: frozen, cut off or gone, nobody knows."""
    return Cause(instance=instance, reason="fell silent until its lease lapsed")


def cause_of(instance: InstanceId, cause: Cause | None) -> Cause:
    """The cause to keep for the jobs of an instance that is known to be gone: the given one, cut to size."""
    if cause is None:
        return Cause(instance=instance, reason="is gone")
    tail: list[str] = []
    room = MAX_TAIL_CHARS
    for line in reversed(cause.tail[-MAX_TAIL_LINES:]):
        tail.insert(0, line[:room])
        room -= len(tail[0])
    return cause.model_copy(update={"instance": instance, "reason": cause.reason[:500], "tail": tuple(tail)})


def dead(cause: Cause) -> Outcome:
    """The outcome of a job that lost its last instance by this cause."""
    error = errors.JobDead(
        attempts=MAX_ATTEMPTS,
        instance=cause.instance,
        cause=str(cause),
        exit_code=cause.exit_code,
        signal=cause.signal,
        tail=cause.tail,
    )
    return ended(JobState.DEAD, error)


def _json(state: JobState, error: errors.PacktrainError) -> str:
    return ended(state, error).model_dump_json(exclude_defaults=True)


CANCELLED = errors.JobCancelled("the job was cancelled; submit it again if you need its answer")
EXPIRED = errors.JobExpired("the deadline passed before the job ended; allow more time with `expires_in`")
OVERRUN = errors.JobExpired(
    "the job has run as long as its `max_run` allows, all attempts together; allow more time with `max_run`"
)
STRANDED = errors.JobFailed(
    "the instance or node that alone may run this job (`meant_for`) does not serve its model now; leave it out, or "
    "name one that `packtrain ps` shows"
)
_CANCELLED = _json(JobState.CANCELLED, CANCELLED)
_EXPIRED = _json(JobState.EXPIRED, EXPIRED)
_OVERRUN = _json(JobState.EXPIRED, OVERRUN)
