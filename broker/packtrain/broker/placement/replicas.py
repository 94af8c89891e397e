"""Replicas: when the jobs that wait are worth one more, and which idle ones nobody needs.

One more is worth its load when the backlog outlasts it by far: jobs that wait, times the seconds that a job holds a
slot (measured by the instances), over all slots at work. Those are not always all: bulk jobs leave some to interactive
ones. So a burst that one instance soon works off never loads a second one. One that is on its way, or has only just
come, counts as if it were at work like the others: so as many are loaded at once as a long backlog is worth, and no
more while they load. It pays on another node only: replicas on one node share its cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.ids import Route, model_of
from packtrain.broker.placement.view import View
from packtrain.broker.placement.worth import load_s
from packtrain.broker.states import InstanceState

#: A backlog must take this many times a load, and this much more, s.
BACKLOG_PER_LOAD, BACKLOG_MARGIN_S = 2.0, 5.0
#: A replica beside another one is unloaded when it was idle this long, or its keep-alive if that is shorter, s.
SCALE_IN_S = 60.0


@dataclass(frozen=True, slots=True)
class Another:
    """One more replica is wanted."""

    reason: str
    gain_s: float  # by which the backlog ends sooner: what making room for it may cost


def another(route: Route, up: Sequence[InstanceBeat], view: View, *, planned: int = 0) -> Another | None:
    """Whether the jobs that wait on a route are worth one more replica than those that are up.

    Args:
        planned: Further ones that this plan loads.
    """
    waiting = view.now.waiting.get(route, 0)
    ready = [i for i in up if i.state is InstanceState.READY]
    at_work = [i for i in ready if i.slots_used]
    measured = [i.job_s for i in ready if i.job_s > 0]
    if not waiting or not at_work or not measured:
        return None
    used = sum(i.slots_used for i in at_work)
    if 2 * used < sum(i.n_slots for i in ready):
        return None  # most are free: the jobs are on their way to them
    coming = len(up) - len(at_work) + planned
    slots = used + coming * used / len(at_work)
    job_s = sum(measured) / len(measured)
    backlog_s, another_s = waiting * job_s / slots, max(load_s(i) for i in ready)
    if backlog_s <= BACKLOG_PER_LOAD * another_s + BACKLOG_MARGIN_S:
        return None
    most = view.rules(model_of(route)).max_replicas
    if most and len(up) + planned >= most:
        return None
    others = f" (replicas to come: {coming})" if coming else ""
    return Another(
        f"{waiting} jobs of {job_s:.1f} s wait for {used} slots at work{others}, which takes {backlog_s:.0f} s; "
        f"one more is loaded in {another_s:.0f} s",
        gain_s=(backlog_s - another_s) / (len(up) + planned + 1),
    )


def why_unwanted(instance: InstanceBeat, idle_s: float, num_beside: int, keep_alive_s: float) -> str:
    """Why an idle instance that may go should go now; empty: it should not.

    Args:
        num_beside: READY instances that do all that it does.
    """
    if keep_alive_s < 0:
        return ""
    if idle_s > keep_alive_s:
        return f"idle for {idle_s:.0f} s, keep-alive is {keep_alive_s:g} s"
    if num_beside and idle_s > SCALE_IN_S:
        others = "another one serves" if num_beside == 1 else f"{num_beside} others serve"
        return f"idle for {idle_s:.0f} s while {others} {instance.model}"
    return ""
