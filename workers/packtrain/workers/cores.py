"""Dealing cores: how many threads each instance of a node computes with, as a pure function of who is at work.

llama.cpp's threads spin while they wait for each other, so two instances with all cores each do not take turns, they
burn each other's time: two threads beside one busy neighbour fell from 261 to 118 tokens/s. So a node has a budget of
cores, and they are dealt evenly to the instances at work. Four rules:

1. Cores go to instances at work, in equal parts. What does not divide goes to those who have more already, so that
   nothing moves without a reason.
2. An idle instance computes nothing, so its number costs nothing: it is the part that would be its own if it went to
   work now. Most of the time it wakes with the right number, and nobody has to be quick.
3. An instance that has just gone idle keeps its part for `HOLD_S`, because its next job mostly comes at once;
   but it loses it as soon as another instance goes to work after it stopped.
4. With more instances at work than cores each has one thread. One thread waits for nobody, so it does not spin, and the
   kernel shares the cores out among them with little loss. To stop some of them instead would stop their streams.

How many slots an instance fills does not count: one person's single stream is to have its part beside a bulk run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packtrain.broker.ids import InstanceId

#: Longer than it takes a client nearby to send its next job upon the end of the last, seconds.
HOLD_S = 0.2


@dataclass(frozen=True, slots=True)
class Claimant:
    """An instance that may want cores."""

    is_busy: bool
    since_s: float  # for how long it has been busy, or idle
    threads: int  # that it was dealt last


def deal(budget: int, claimants: Mapping[InstanceId, Claimant]) -> dict[InstanceId, int]:
    """Threads for each instance, at least 1. At most `budget` together for those at work and those that hold a part,
    as long as these are no more than there are cores.

    >>> a, b = InstanceId("a"), InstanceId("b")
    >>> deal(4, {a: Claimant(True, 9, 4), b: Claimant(False, 9, 2)})
    {'a': 4, 'b': 2}
    >>> deal(4, {a: Claimant(True, 9, 4), b: Claimant(True, 0, 2)})
    {'a': 2, 'b': 2}
    """
    busy = [name for name, claimant in claimants.items() if claimant.is_busy]
    latest_s = min((claimants[name].since_s for name in busy), default=math.inf)
    holding = [name for name, claimant in claimants.items() if _holds(claimant, latest_s)]
    shares = _split(budget, [*busy, *holding], claimants)
    woken = {name: _split(budget, [*busy, name], claimants)[name] for name in claimants if name not in shares}
    return {name: shares.get(name) or woken[name] for name in claimants}


def _holds(claimant: Claimant, latest_s: float) -> bool:
    """Whether an idle instance keeps its part; `latest_s`: for how long the last one that went to work has worked."""
    return not claimant.is_busy and claimant.since_s < min(HOLD_S, latest_s)


def _split(budget: int, names: Sequence[InstanceId], claimants: Mapping[InstanceId, Claimant]) -> dict[InstanceId, int]:
    if len(names) >= budget:
        return dict.fromkeys(names, 1)
    part, rest = divmod(budget, len(names) or 1)
    ordered = sorted(names, key=lambda name: (-claimants[name].threads, name))
    return {name: part + (place < rest) for place, name in enumerate(ordered)}
