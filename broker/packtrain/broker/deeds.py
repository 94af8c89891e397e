"""Deeds: what the fleet did with models, as the leading coordinator sees it. Pure; `deeds_store` counts them.

Instances are records that stay for ten minutes after their end, and the leader looks each second: so it sees each load
and each end, whoever led when it happened. What it sees again, as the next leader or a minute later, has the same name
and counts no more. A model over several nodes is one, on the node of its head.

    loaded|smollm2|n1          what became of instances, by model and node
    load:5000|smollm2          a histogram of load times, see tally.py
    rerung                     doorbells that were lost and rung again
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.ids import ModelId, Route, model_of
from packtrain.broker.placement import Unload
from packtrain.broker.states import InstanceState
from packtrain.broker.tally import LOADS_MS, Histogram, histogram_of, observed

#: What becomes of instances: READY; not READY; ended while they were READY, by themselves or with their node; unloaded.
LOADED, LOAD_FAILED, CRASHED, LOST, UNLOADED = "loaded", "load_failed", "crashed", "lost", "unloaded"
#: Of those unloaded: to make room for another model; and of these, though jobs for it waited or ran.
EVICTED, SWAPPED = "evicted", "swapped"
RERUNG: Final = "rerung"


@dataclass(frozen=True, slots=True)
class Deed:
    """Something that happened once."""

    name: str  # the same whoever sees it
    figures: Mapping[str, int]  # what it adds to the counters


@dataclass(frozen=True, slots=True)
class Deeds:
    """What has been counted."""

    instances: Mapping[tuple[str, str, str], int] = field(default_factory=dict)  # (what, model, node) -> how many
    loads: Mapping[str, Histogram] = field(default_factory=dict)  # model -> how long its loads took
    rerung: int = 0


def of_instances(instances: Iterable[InstanceBeat]) -> list[Deed]:
    """What the records of instances tell."""
    found = []
    for each in instances:
        if each.is_shard:
            continue
        if each.ready_ms:
            took = observed("load", each.ready_ms - each.requested_ms, LOADS_MS)
            timed = {f"{name}|{each.model}": number for name, number in took.items()}
            found.append(Deed(f"{LOADED} {each.instance}", {_row(LOADED, each): 1, **timed}))
        if each.state.is_terminal:
            found.append(Deed(f"end {each.instance}", {_row(_end_of(each), each): 1}))
    return found


def of_unloads(unloads: Iterable[Unload], instances: Iterable[InstanceBeat], waiting: Collection[Route]) -> list[Deed]:
    """What a plan does to make room for another model."""
    by_name = {each.instance: each for each in instances}
    wanted = {model_of(route) for route in waiting}
    found = []
    for unload in unloads:
        if unload.cost is None or not (each := by_name.get(unload.instance)):
            continue
        is_wanted = each.slots_used > 0 or ModelId(each.model) in wanted
        figures = {_row(EVICTED, each): 1} | ({_row(SWAPPED, each): 1} if is_wanted else {})
        found.append(Deed(f"{EVICTED} {each.instance}", figures))
    return found


def deeds_of(fields: Mapping[str, str]) -> Deeds:
    """What the counters say. Fields of another version are left out."""
    instances: dict[tuple[str, str, str], int] = {}
    times: dict[str, dict[str, int]] = {}
    for row, number in fields.items():
        match row.split("|"):
            case [what, model, node]:
                instances[what, model, node] = int(number)
            case [name, model]:
                times.setdefault(model, {})[name] = int(number)
    loads = {model: histogram_of("load", LOADS_MS, Counter(numbers)) for model, numbers in times.items()}
    return Deeds(instances, loads, int(fields.get(RERUNG, 0)))


def _end_of(each: InstanceBeat) -> str:
    if each.state is InstanceState.STOPPED:
        return UNLOADED
    if each.state is InstanceState.LOST:
        return LOST
    return CRASHED if each.ready_ms else LOAD_FAILED


def _row(what: str, each: InstanceBeat) -> str:
    return f"{what}|{each.model}|{each.node}"
