"""Why a job is where it is, in one sentence, and when it may be served: made from what the broker knows.

A waiting job meets the first case that holds:

    1. only somebody may run it who does not serve its model now     waits for them
    2. nothing is loaded that serves its route                       the planner's reason, or that nobody plans
    3. what serves it is coming up, or leaves                        says so, and since when
    4. it has lost so many instances that it runs alone              waits for an idle instance
    5. such a job is first in its lane                               waits for that one: nothing passes it
    6. jobs are ahead of it, or all slots are at work                waits for its turn
    7. otherwise                                                     begins at once

The estimate is jobs ahead times the measured time from one end to the next, see rates.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.fields import Report
from packtrain.broker.ids import JobId, Route
from packtrain.broker.jobs import JobStore, Place
from packtrain.broker.outcome import JobStatus
from packtrain.broker.rates import Rate
from packtrain.broker.registry import Registry
from packtrain.broker.states import SUSPECT_ATTEMPTS, InstanceState, JobState


class Explanation(Report):
    """A job's state, and the reason for it."""

    id: str
    state: JobState
    reason: str = Field(description="one sentence for people")
    model: str
    user: str
    lane: str
    position: int | None = Field(None, description="in its lane, 1: next; null: it does not wait")
    ahead: int | None = Field(None, description="jobs that are served before it, of all lanes; null: it does not wait")
    waiting: int | None = Field(None, description="jobs of its lane")
    users: int | None = Field(None, description="users who take turns in its lane")
    own_waiting: int | None = Field(None, description="jobs that its own user has there")
    jobs_per_s: float | None = Field(None, description="measured, of its model; null: not known")
    eta_s: float | None = Field(None, description="until it begins, by that rate; null: not known")
    since_ms: int = Field(0, description="when it was submitted, began or ended, on the broker's clock")
    now_ms: int = 0
    instance: str | None = None
    node: str | None = None
    attempts: int = 0
    tokens: int = Field(0, description="of its answer so far")


def look(store: JobStore, registry: Registry, job_id: JobId) -> Explanation | None:
    """The explanation of a job now; None: there is no such job."""
    status = store.status(job_id)
    if status is None:
        return None
    place = store.place(job_id) if status.state is JobState.QUEUED else None
    route = Route(status.route or status.model)
    waits = registry.waits() if place else None
    instances = registry.instances() if place else ()
    rate = store.rate(route) if place else None
    return explain(status, place, rate, instances, waits, registry.now_ms())


def explain(
    status: JobStatus,
    place: Place | None,
    rate: Rate | None,
    instances: Sequence[InstanceBeat],
    waits: Mapping[Route, str] | None,
    now_ms: int,
) -> Explanation:
    """The explanation of a job with this record.

    Args:
        place: Of one that waits.
        rate: Of its route.
        waits: The planner's reasons; None: no coordinator has planned lately.
    """
    found = Explanation(
        id=status.id, state=status.state, reason="", model=status.model, user=status.user, lane=status.lane,
        since_ms=status.finished_ms or (status.started_ms if place is None else 0) or status.submitted_ms,
        now_ms=now_ms, instance=status.instance, node=status.node, attempts=status.attempts, tokens=status.tokens,
    )  # fmt: skip
    if place is None:
        return found.model_copy(update={"reason": _not_waiting(status, now_ms)})
    route = Route(status.route or status.model)
    serving = [i for i in instances if i.serves(route) and not i.state.is_terminal]
    ready = [i for i in serving if i.state is InstanceState.READY]
    ahead = place.ahead + place.interactive_ahead
    left = {i.instance: i.reserved_slots if status.lane == "bulk" else 0 for i in ready}
    is_next = not ahead and any(i.slots_used < i.n_slots - left[i.instance] for i in ready)
    reason = _waiting(status, place, route, serving, ready, waits, now_ms, is_next=is_next)
    eta_s = None
    if ready and (is_next or rate):
        eta_s = 0.0 if is_next or rate is None else (ahead + 1) * rate.gap_ms / 1000
    return found.model_copy(
        update={
            "reason": reason,
            "position": place.ahead + 1,
            "ahead": ahead,
            "waiting": place.waiting,
            "users": place.users,
            "own_waiting": place.own_waiting,
            "jobs_per_s": 1000 / rate.gap_ms if rate and rate.gap_ms else None,
            "eta_s": eta_s,
            "instance": None,
            "node": None,
        }
    )


def _waiting(
    status: JobStatus,
    place: Place,
    route: Route,
    serving: Sequence[InstanceBeat],
    ready: Sequence[InstanceBeat],
    waits: Mapping[Route, str] | None,
    now_ms: int,
    *,
    is_next: bool,
) -> str:
    meant_for = status.meant_for
    if meant_for and not any(meant_for in (i.instance, i.node) for i in serving):
        return f"only {meant_for} may run it (`meant_for`), and it does not serve {route} now"
    if not serving:
        if waits is None:
            return f"{route} is not loaded, and no coordinator has planned lately; see `packtrain nodes`"
        return f"{route} is not loaded: {waits.get(route, 'it is about to be planned')}"
    if not ready:
        first = min(serving, key=lambda i: i.requested_ms)
        age_s = max(0, now_ms - first.requested_ms) / 1000
        tells = first.reason and (first.is_head or first.state is InstanceState.FETCHING)
        how_far = f" ({first.reason})" if tells else ""
        return f"{first.model} is {first.state.lower()} on {first.node}{how_far}, {age_s:.0f} s after it was asked for"
    if status.attempts >= SUSPECT_ATTEMPTS:
        return f"it has lost {status.attempts} instances and so runs alone, on an instance that has nothing else to do"
    if place.first != status.id and place.first_attempts >= SUSPECT_ATTEMPTS:
        return (
            f"job {place.first} at the head of the lane has lost {place.first_attempts} instances and runs alone first"
        )
    if is_next:
        return "it is next, and a slot is free"
    return _turn(place, ready, left=sum(i.reserved_slots for i in ready) if status.lane == "bulk" else 0)


def _turn(place: Place, ready: Sequence[InstanceBeat], *, left: int) -> str:
    used, slots = sum(i.slots_used for i in ready), sum(i.n_slots for i in ready)
    ahead = place.ahead + place.interactive_ahead
    parts = [f"{used} of {slots} slots are at work{f', {left} are left to interactive jobs' if left else ''}"]
    if ahead:
        interactive = f", {place.interactive_ahead} of them interactive" if place.interactive_ahead else ""
        parts.append(f"{ahead} {'job is' if ahead == 1 else 'jobs are'} ahead of it{interactive}")
    else:
        parts.append("it is next")
    if place.users > 1:
        parts.append(f"{place.users} users take turns, its own has {place.own_waiting} waiting")
    return "; ".join(parts)


def _not_waiting(status: JobStatus, now_ms: int) -> str:
    if status.state is JobState.QUEUED:
        return "it has just been submitted or given back"
    if status.state is JobState.RUNNING:
        since_s = (now_ms - (status.started_ms or now_ms)) / 1000
        again = f", attempt {status.attempts + 1}" if status.attempts else ""
        cancelled = "; it is being cancelled" if status.cancel_requested else ""
        return (
            f"it runs on {status.node} ({status.instance}) for {since_s:.1f} s{again}, "
            f"{status.tokens} tokens so far{cancelled}"
        )
    took_s = ((status.finished_ms or now_ms) - status.submitted_ms) / 1000
    error = status.outcome.error if status.outcome else None
    why = f": {error.get('message', '')}" if error else ""
    return f"it ended as {status.state}, {took_s:.1f} s after it was submitted{why}"
