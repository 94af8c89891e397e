"""503 instead of a long wait, for callers who ask for it: who has somewhere else to go need not stand in a queue.

Packtrain's requests wait, for that is what its queue is for. With `max_wait` one is handed in and asked when it would
begin. Where that is too late it is refused with a `Retry-After`, and so it is when it has not begun in time: an
estimate may be wrong, and of a model that has served nobody yet there is none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.explain import Explanation
from packtrain.broker.ids import Route
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.placement.worth import guessed_load_s
from packtrain.broker.states import InstanceState, JobState
from packtrain.client.aio import AsyncPacktrain
from packtrain.client.gateway.access import Caller
from packtrain.client.gateway.answering import Answering
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import Refused
from packtrain.client.gateway.names import names_of
from packtrain.client.openai import Fault
from packtrain.client.openai.faults import MAX_RETRY_AFTER_S, RETRY_AFTER_S

#: A job that waits is looked at this often, seconds.
LOOK_S = 0.5


async def begin_in_time(door: Door, caller: Caller, answering: Answering, max_wait_s: float) -> None:
    """Wait until the first job of a request begins.

    Raises:
        Refused: It will not, or has not, within `max_wait_s`. The jobs are left to the caller.
    """
    deadline = time.monotonic() + max_wait_s
    while True:
        place = await answering.jobs[0].explain()
        if place.state is not JobState.QUEUED:
            return
        left_s = deadline - time.monotonic()
        expected_s = place.eta_s if place.eta_s is not None else await _load_s(door.fleet, place)
        if left_s <= 0 or (expected_s is not None and expected_s > left_s):
            place = (await names_of(door, caller)).explanation(place)
            raise Refused(_too_long(place, expected_s, max_wait_s))
        if await answering.begins(min(left_s, LOOK_S)):
            return


def load_s(
    place: Explanation, models: Sequence[ModelInfo], instances: Sequence[InstanceBeat], now_ms: int
) -> float | None:
    """Seconds until the model of a waiting job is loaded, by its size; None: it is, or nothing is known of it."""
    mine = [each for each in instances if each.serves(Route(place.model)) and not each.state.is_terminal]
    if any(each.state is InstanceState.READY for each in mine):
        return None
    size = next((info.required_bytes or info.weights_bytes for info in models if info.id == place.model), None)
    if size is None:
        return None
    begun_s = max(((now_ms - each.requested_ms) / 1000 for each in mine), default=0.0)
    return max(0.0, guessed_load_s(size) - begun_s)


async def _load_s(fleet: AsyncPacktrain, place: Explanation) -> float | None:
    return load_s(place, await fleet.models(), await fleet.instances(), place.now_ms)


def _too_long(place: Explanation, expected_s: float | None, max_wait_s: float) -> Fault:
    again_s = min(MAX_RETRY_AFTER_S, max(1, math.ceil(RETRY_AFTER_S if expected_s is None else expected_s)))
    when = "has not begun by then" if expected_s is None else f"is expected to begin in {expected_s:.0f} s"
    message = (
        f"max_wait = {max_wait_s:g} s, and this {when}: {place.reason}; try again in {again_s} s, or leave max_wait "
        "out and wait in the queue"
    )
    return Fault(503, "unavailable_error", "would_wait", message, retry_after_s=again_s)
