"""More models than fit and all of them wanted: who leaves, and whose turn it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.ids import ModelId, Route
from packtrain.broker.orders import Desired
from packtrain.broker.placement import MAX_WAIT_MS, MIB, MIN_RESIDENCY_MS, Plan, Snapshot, plan, unserved_since
from packtrain.broker.placement.rooms import MAX_EXACT
from packtrain.broker.states import InstanceState
from tests.support.factories import instance_beat, model_info, node_beat

pytestmark = pytest.mark.unit

NOW = 10_000_000
LONG_AGO = NOW - 100_000
A, B, C = Route("a"), Route("b"), Route("c")
SIZE = 600 * MIB


def loaded(model: str, *, load_s: float = 5, since_ms: int = LONG_AGO, mib: int = 600, **fields: Any) -> InstanceBeat:
    """A READY instance of 600 MiB that was loaded in 5 s."""
    times = {"requested_ms": since_ms - int(load_s * 1000), "ready_ms": since_ms, "last_used_ms": since_ms}
    size = {"reserved_bytes": mib * MIB, "resident_bytes": mib * MIB}
    return instance_beat(f"{model}-1", **{"model": model, **times, **size, **fields})


def fleet(
    *instances: InstanceBeat, waiting: dict[Route, int], nodes: tuple[str, ...] = ("n1",), **fields: Any
) -> Snapshot:
    """Nodes that hold one of the models a, b and c each."""
    names = {"a", "b", "c"} | {i.model for i in instances}
    beats = [node_beat(node, memory_free=10_000 * MIB, models=tuple(sorted(names))) for node in nodes]
    models = {ModelId(name): model_info(name, required_bytes=SIZE) for name in sorted(names)}
    return Snapshot(now_ms=NOW, nodes=beats, instances=instances, models=models, waiting=waiting, **fields)


def room_for(*idle: InstanceBeat, need_mib: int, free_mib: int = 0, **fields: Any) -> Snapshot:
    """A node with this much left beside these instances, and a job for a model that needs more."""
    node = node_beat(memory_budget=free_mib * MIB + sum(i.reserved_bytes for i in idle), memory_free=10**12)
    infos = [*(model_info(i.model) for i in idle), model_info("a", required_bytes=need_mib * MIB)]
    models = {ModelId(info.id): info for info in infos}
    node = node.model_copy(update={"models": ("a",)})
    return Snapshot(now_ms=NOW, nodes=[node], instances=idle, models=models, waiting={A: 1}, **fields)


def unloads(result: Plan) -> list[str]:
    return [unload.instance for unload in result.unloads]


def test_what_is_back_in_a_moment_leaves_before_what_takes_long_to_load() -> None:
    slow, quick = loaded("x", load_s=40, since_ms=LONG_AGO - 1), loaded("y", load_s=1)

    assert unloads(plan(room_for(slow, quick, need_mib=600))) == ["y-1"]


def test_what_nobody_has_wanted_for_long_leaves_before_what_was_just_used() -> None:
    recent, old = loaded("x", load_s=4, last_used_ms=NOW - 20_000), loaded("y", load_s=8, since_ms=NOW - 3_600_000)

    assert unloads(plan(room_for(recent, old, need_mib=600))) == ["y-1"]


def test_one_of_two_replicas_leaves_before_the_only_one_of_another_model() -> None:
    only, twin = loaded("x", load_s=5), loaded("y", load_s=6)
    elsewhere = loaded("y", node="n2").model_copy(update={"instance": "y-2"})
    snapshot = room_for(only, twin, need_mib=600)

    assert unloads(plan(snapshot)) == ["x-1"]
    assert unloads(plan(replace(snapshot, instances=[only, twin, elsewhere]))) == ["y-1"]


def test_two_cheap_ones_leave_rather_than_one_that_costs_more_than_both() -> None:
    large, small, other = loaded("x", load_s=60), loaded("y", load_s=5, mib=300), loaded("z", load_s=5, mib=300)

    assert unloads(plan(room_for(large, small, other, need_mib=600))) == ["y-1", "z-1"]


def test_one_leaves_rather_than_two_that_cost_more_than_it() -> None:
    large, small, other = loaded("x", load_s=9), loaded("y", load_s=5, mib=300), loaded("z", load_s=5, mib=300)

    assert unloads(plan(room_for(large, small, other, need_mib=600))) == ["x-1"]


def test_more_idle_instances_than_can_be_tried_in_all_ways_still_make_room() -> None:
    many = [loaded(f"m{n}", mib=100) for n in range(MAX_EXACT + 4)]

    assert len(unloads(plan(room_for(*many, need_mib=600)))) == 6


def test_room_is_made_on_the_node_where_it_costs_least() -> None:
    dear, cheap = loaded("x", load_s=60, node="n1"), loaded("y", load_s=2, node="n2")
    result = plan(fleet(dear, cheap, nodes=("n1", "n2"), waiting={A: 1}))

    assert unloads(result) == ["y-1"]
    assert {candidate.verdict for candidate in result.unloads[0].candidates} >= {"no room"}


def test_an_instance_that_is_quick_to_load_need_not_stay_for_long() -> None:
    def after(load_s: float, idle_ms: int) -> list[str]:
        return unloads(plan(fleet(loaded("b", load_s=load_s, last_used_ms=NOW - idle_ms), waiting={A: 1})))

    assert after(1, 2000) == ["b-1"]
    assert after(1, 1999) == []
    assert after(60, MIN_RESIDENCY_MS) == ["b-1"]
    assert after(60, MIN_RESIDENCY_MS - 1) == []


def overdue(*routes: Route, by_ms: int = 0) -> dict[Route, int]:
    return dict.fromkeys(routes, NOW - MAX_WAIT_MS - by_ms)


@pytest.mark.parametrize("slots_used", [0, 4])
def test_a_model_with_work_leaves_only_for_one_that_has_waited_too_long(slots_used: int) -> None:
    working = loaded("b", slots_used=slots_used, last_used_ms=NOW)
    snapshot = fleet(working, waiting={A: 1, B: 50})

    early = plan(replace(snapshot, unserved_since={A: NOW - MAX_WAIT_MS + 1}))
    late = plan(replace(snapshot, unserved_since=overdue(A)))

    assert unloads(early) == []
    assert unloads(late) == ["b-1"]
    assert "jobs have waited 60 s" in late.unloads[0].reason


@pytest.mark.parametrize(
    ("there", "fields"),
    [
        (loaded("b", slots_used=1, since_ms=NOW - MIN_RESIDENCY_MS + 1), {}),
        (loaded("b", slots_used=1, served_ms=NOW - MIN_RESIDENCY_MS + 1), {}),
        (loaded("b", slots_used=1, served_ms=0), {}),
        (loaded("b", slots_used=1), {"desired": {ModelId("b"): Desired(replicas=1)}}),
        (loaded("b", slots_used=1, state=InstanceState.LOADING, ready_ms=0), {}),
        (loaded("pinned", slots_used=1), {}),
    ],
)
def test_not_even_one_that_has_waited_too_long_drives_out_the_young_the_wanted_and_the_pinned(
    there: InstanceBeat, fields: dict[str, Any]
) -> None:
    snapshot = fleet(there, waiting={A: 1, B: 50}, unserved_since=overdue(A), **fields)
    models = dict(snapshot.models)
    if "pinned" in models:
        models[ModelId("pinned")] = model_info("pinned", pinned=True)

    assert unloads(plan(replace(snapshot, models=models))) == []


@pytest.mark.parametrize("fields", [{"served_ms": NOW - MIN_RESIDENCY_MS, "slots_used": 1}, {"served_ms": 0}])
def test_one_whose_jobs_have_had_their_time_leaves_and_so_does_one_that_does_nothing_for_them(
    fields: dict[str, Any],
) -> None:
    assert unloads(plan(fleet(loaded("b", **fields), waiting={A: 1, B: 50}, unserved_since=overdue(A)))) == ["b-1"]


def test_without_a_stay_that_is_asked_for_one_still_brings_a_job_to_its_first_token() -> None:
    def after(served_ms: int) -> list[str]:
        at_work = loaded("b", slots_used=1, since_ms=NOW, served_ms=served_ms)
        return unloads(plan(fleet(at_work, waiting={A: 1}, unserved_since=overdue(A), min_residency_ms=0)))

    assert after(0) == []
    assert after(NOW) == ["b-1"]


def test_one_that_has_just_run_out_of_work_is_spared_no_longer_than_one_that_has_some() -> None:
    just_idle = loaded("b", last_used_ms=NOW - 1)

    assert unloads(plan(fleet(just_idle, waiting={A: 1}))) == []
    assert unloads(plan(fleet(just_idle, waiting={A: 1}, unserved_since=overdue(A)))) == ["b-1"]


def test_an_idle_one_leaves_before_one_with_work_even_for_one_that_has_waited_too_long() -> None:
    working, idle = loaded("b", slots_used=1, node="n1"), loaded("c", node="n2", load_s=60)
    snapshot = fleet(working, idle, nodes=("n1", "n2"), waiting={A: 1, B: 50}, unserved_since=overdue(A))

    assert unloads(plan(snapshot)) == ["c-1"]


def test_of_those_with_work_the_one_that_has_been_there_longest_leaves() -> None:
    old, new = loaded("b", slots_used=1), loaded("c", slots_used=1, node="n2", since_ms=NOW - 20_000)
    snapshot = fleet(new, old, nodes=("n1", "n2"), waiting={A: 1, B: 9, C: 9}, unserved_since=overdue(A))

    assert unloads(plan(snapshot)) == ["b-1"]


def test_one_that_has_waited_too_long_comes_before_one_with_more_jobs() -> None:
    snapshot = fleet(waiting={A: 1, B: 50})

    assert [load.model for load in plan(snapshot).loads] == ["b"]
    assert [load.model for load in plan(replace(snapshot, unserved_since=overdue(A))).loads] == ["a"]
    both = {**overdue(A), **overdue(B, by_ms=1)}
    assert [load.model for load in plan(replace(snapshot, unserved_since=both)).loads] == ["b"]


def test_a_route_is_unserved_from_when_its_last_instance_left() -> None:
    served = fleet(loaded("a"), waiting={A: 3, B: 1})
    leaving = replace(served, instances=[loaded("a", state=InstanceState.DRAINING)])

    first = unserved_since(served, {})
    assert first == {B: NOW}
    assert unserved_since(replace(leaving, now_ms=NOW + 5), first) == {A: NOW + 5, B: NOW}
    coming = replace(served, instances=[loaded("b", state=InstanceState.REQUESTED)], now_ms=NOW + 9)
    assert unserved_since(coming, first) == {A: NOW + 9}
    assert unserved_since(replace(served, waiting={A: 3}), first) == {}
    fast_only = replace(served, waiting={Route("a@deterministic"): 1})
    assert unserved_since(fast_only, {}) == {Route("a@deterministic"): NOW}


def test_a_node_that_makes_room_makes_it_for_one_model_at_a_time() -> None:
    leaving = loaded("b", state=InstanceState.DRAINING)
    result = plan(fleet(leaving, waiting={A: 1, C: 1}, unserved_since=overdue(A, C)))

    assert (unloads(result), result.loads) == ([], [])
    assert "is unloaded from n1" in result.waits[A]
    assert "nothing idle" in result.waits[C]
