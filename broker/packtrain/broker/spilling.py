"""Spilling: which jobs that wait for one target of a name go to another, decided from what each target has to offer.

A name with several targets (`[aliases]` in packtrain.toml) means the first of them, the *preferred* one, and the others
for when that will not do. A waiting job goes on to a later target when the first case holds:

    1. no live node offers the one it waits for                    at once
    2. it would have to wait longer than its bound, by what is
       measured: jobs ahead × time from one end to the next,
       or the rest of a load                                       at once
    3. it has waited so long in fact                               then

and some later target is offered that did not fail it and has a shorter wait: the first of these that keeps to the
bound, else the one with the shortest. So a job moves forward only, at most once for each target, and never to where it
would wait longer. One that no later target would serve better stays.

The choice is made while the job waits, not when it is submitted: by then nobody knows who else comes, and how long the
others take. It costs at most a tick of the coordinator, a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from packtrain.broker.ids import ModelId, Route, is_deterministic, model_of
from packtrain.broker.jobs import Movable
from packtrain.broker.placement.view import View
from packtrain.broker.placement.worth import guessed_load_s
from packtrain.broker.placement.worth import load_s as load_s_of
from packtrain.broker.rates import Rate
from packtrain.broker.states import InstanceState


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one target has to offer now to jobs of a route."""

    is_offered: bool = True  # by a live node that may load it
    num_free: int = 0  # slots of its instances
    gap_s: float | None = None  # measured, from one served job to the next; None: not known
    load_s: float | None = 0.0  # until the first instance is READY; None: nobody knows, as while memory is short
    num_waiting: int = 0

    def wait_s(self, ahead: int) -> float | None:
        """Until a job with so many before it begins; None: not known.

        >>> Outlook(num_free=2, gap_s=3).wait_s(1), Outlook(num_free=2, gap_s=3).wait_s(4)
        (0.0, 9.0)
        """
        if not self.is_offered:
            return math.inf
        if self.load_s is None:
            return None
        behind = ahead + 1 - self.num_free
        if self.load_s:
            return self.load_s + max(0, behind) * (self.gap_s or 0.0)
        if behind <= 0:
            return 0.0
        return None if self.gap_s is None else behind * self.gap_s


def outlook_of(route: Route, view: View, rate: Rate | None, *, is_held_up: bool) -> Outlook:
    """What is known of a target.

    Args:
        view: The fleet now.
        rate: How fast its jobs are served.
        is_held_up: The planner has a reason not to load it now.
    """
    model = model_of(route)
    rules, nodes = view.rules(model), view.open_nodes
    offers = {name: offer for name, offer in view.offers(model).items() if name in nodes and rules.admit(nodes[name])}
    if is_deterministic(route):
        offers = {name: offer for name, offer in offers.items() if model not in nodes[name].not_deterministic}
    up = view.up(route)
    ready = [i for i in up if i.state is InstanceState.READY]
    load_s: float | None = 0.0
    if not ready and up:
        load_s = max(0.1, min(load_s_of(i) - (view.now.now_ms - i.requested_ms) / 1000 for i in up))
    elif not ready and is_held_up:
        load_s = None
    elif not ready:
        before = [load_s_of(i) for i in view.of_model.get(model, ()) if i.ready_ms and not i.is_shard]
        load_s = before[-1] if before else guessed_load_s(min((o.required_bytes for o in offers.values()), default=0))
    return Outlook(
        is_offered=bool(offers or up),
        num_free=sum(max(0, i.n_slots - i.slots_used) for i in ready or up),
        gap_s=rate.gap_ms / 1000 if rate else None,
        load_s=load_s,
        num_waiting=view.now.waiting.get(route, 0),
    )


@dataclass(frozen=True, slots=True)
class Spill:
    """A job that goes to another target, and why."""

    job: Movable
    target: ModelId
    reason: str


def spill(jobs: Iterable[Movable], here: ModelId, outlooks: Mapping[ModelId, Outlook]) -> list[Spill]:
    """Which of these jobs go where.

    Args:
        jobs: That wait for `here`, those that come last first.
        outlooks: Of every target.
    """
    known = dict(outlooks)
    found = []
    for job in jobs:
        if moved := choose(job, here, known):
            found.append(moved)
            target = known[moved.target]
            known[moved.target] = replace(target, num_waiting=target.num_waiting + 1)
    return found


def choose(job: Movable, here: ModelId, outlooks: Mapping[ModelId, Outlook]) -> Spill | None:
    """Where one job goes; None: it stays."""
    outlook = outlooks.get(here, Outlook(is_offered=False))
    wait_s = outlook.wait_s(job.ahead)
    reason = _why(job, here, outlook, wait_s)
    if not reason:
        return None
    limit_s = math.inf if wait_s is None else wait_s
    bound_s = math.inf if job.spill_ms is None else job.spill_ms / 1000
    best: tuple[float, ModelId] | None = None
    for target in later_targets(job, here):
        other = outlooks.get(target)
        other_s = other.wait_s(other.num_waiting) if other else math.inf
        if other is None or not other.is_offered or (other_s is not None and other_s >= limit_s):
            continue
        cost_s = math.inf if other_s is None else other_s
        if cost_s <= bound_s:
            return Spill(job, target, reason)
        if best is None or cost_s < best[0]:
            best = (cost_s, target)
    return Spill(job, best[1], reason) if best else None


def later_targets(job: Movable, here: ModelId) -> tuple[ModelId, ...]:
    """Targets of a job behind the one it waits for, less those that failed it."""
    behind = job.targets[job.targets.index(here) + 1 :] if here in job.targets else job.targets
    return tuple(target for target in behind if target not in job.failed)


def _why(job: Movable, here: ModelId, outlook: Outlook, wait_s: float | None) -> str:
    """Why it should go; empty: it should not."""
    if not outlook.is_offered:
        return f"no live node offers {here}"
    if job.spill_ms is None:
        return ""
    bound_s, waited_s = job.spill_ms / 1000, job.waited_ms / 1000
    if wait_s is not None and wait_s > bound_s:
        return f"it would have waited {wait_s:.0f} s more for {here}, and {bound_s:g} s is its bound"
    if waited_s > bound_s:
        return f"it has waited {waited_s:.0f} s for {here}, and {bound_s:g} s is its bound"
    return ""
