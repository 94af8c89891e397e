"""Where models go and who must leave, from snapshots alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.errors import ModelGone, ModelLoadFailed, ModelTooLarge
from packtrain.broker.ids import ModelId, Route, route_of
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.orders import Desired
from packtrain.broker.placement import (
    LOAD_BACKOFF_MS,
    MAX_LOAD_FAILURES,
    MIB,
    MIN_RESIDENCY_MS,
    OFFER_WAIT_MS,
    Plan,
    Snapshot,
    missing_since,
    plan,
)
from packtrain.broker.placement.packing import pack, unpack
from packtrain.broker.states import InstanceState
from tests.support.factories import DETERMINISTIC, MODEL, NODE, ROUTE, instance_beat, model_info, node_beat

pytestmark = pytest.mark.unit

NOW = 10_000_000
LONG_AGO = NOW - 100_000
BIG = ModelId("big")


def fleet(
    *,
    nodes: Sequence[NodeBeat] | None = None,
    instances: Sequence[InstanceBeat] = (),
    models: Sequence[ModelInfo] | None = None,
    waiting: dict[Route, int] | None = None,
    desired: dict[ModelId, Desired] | None = None,
) -> Snapshot:
    """One node with room for the one model that a job waits for."""
    return Snapshot(
        now_ms=NOW,
        nodes=[node_beat()] if nodes is None else nodes,
        instances=instances,
        models={ModelId(info.id): info for info in ([model_info()] if models is None else models)},
        waiting={ROUTE: 1} if waiting is None else waiting,
        desired=desired or {},
    )


def idle(name: str, *, mib: int = 100, since_ms: int = LONG_AGO, **fields: Any) -> InstanceBeat:
    """A READY instance of a model of its own, that nobody has used since."""
    defaults = {"model": f"m-{name}", "ready_ms": since_ms, "last_used_ms": since_ms}
    size = {"reserved_bytes": mib * MIB, "resident_bytes": mib * MIB}
    return instance_beat(name, **{**defaults, **size, **fields})


def failed(name: str, *, requested_ms: int = LONG_AGO, **fields: Any) -> InstanceBeat:
    """An instance that never became READY."""
    fields = {"reason": "the disk is full", **fields}
    return instance_beat(name, state=InstanceState.FAILED, requested_ms=requested_ms, resident_bytes=0, **fields)


def loads(result: Plan) -> list[tuple[str, str]]:
    return [(load.model, load.node) for load in result.loads]


def unloads(result: Plan) -> list[str]:
    return [unload.instance for unload in result.unloads]


def room_for(free_mib: int, *instances: InstanceBeat, need_mib: int = 600, **fields: Any) -> Snapshot:
    """A node with this much left beside these instances, and a job that needs a big model."""
    held = sum(max(i.reserved_bytes, i.resident_bytes) for i in instances if not i.state.is_terminal)
    node = node_beat(memory_budget=held + free_mib * MIB, memory_free=10_000 * MIB, models=(BIG,))
    models = [model_info(BIG, required_bytes=need_mib * MIB), *(model_info(i.model) for i in instances)]
    return fleet(nodes=[node], instances=instances, models=models, waiting={Route(BIG): 1}, **fields)


def test_nothing_waits_and_nothing_happens() -> None:
    result = plan(fleet(waiting={}))

    assert result == Plan()


def test_the_same_snapshot_gives_the_same_plan() -> None:
    snapshot = room_for(100, idle("a", mib=300), idle("b", mib=300))

    assert plan(snapshot) == plan(snapshot)


@pytest.mark.parametrize(
    "state",
    [
        InstanceState.REQUESTED,
        InstanceState.STARTING,
        InstanceState.LOADING,
        InstanceState.WARMING,
        InstanceState.READY,
    ],
)
def test_a_model_that_is_loaded_or_on_its_way_is_not_loaded_again(state: InstanceState) -> None:
    result = plan(fleet(instances=[instance_beat(state=state)]))

    assert (result.loads, result.unloads, result.rejects) == ([], [], [])


@pytest.mark.parametrize("state", [InstanceState.DRAINING, InstanceState.STOPPED, InstanceState.LOST])
def test_a_model_whose_instance_leaves_or_has_left_is_loaded_again(state: InstanceState) -> None:
    assert loads(plan(fleet(instances=[instance_beat(state=state)]))) == [(MODEL, NODE)]


def test_a_model_that_failed_to_load_too_often_is_rejected_with_the_cause() -> None:
    result = plan(fleet(instances=[failed(str(number)) for number in range(MAX_LOAD_FAILURES)]))

    (reject,) = result.rejects
    assert result.loads == []
    assert isinstance(reject.error, ModelLoadFailed)
    assert "the disk is full" in str(reject.error)


def test_a_crash_after_ready_is_no_failed_load() -> None:
    crashed = [failed(str(n), ready_ms=LONG_AGO, requested_ms=NOW - 1) for n in range(MAX_LOAD_FAILURES)]

    assert loads(plan(fleet(instances=crashed))) == [(MODEL, NODE)]


@pytest.mark.parametrize(("failures", "backoff_ms"), [(1, LOAD_BACKOFF_MS), (2, 2 * LOAD_BACKOFF_MS)])
def test_after_a_failed_load_the_next_waits_and_the_wait_doubles(failures: int, backoff_ms: int) -> None:
    def after(milliseconds: int) -> Plan:
        past = [failed(str(n), requested_ms=NOW - milliseconds - 1000 * n) for n in range(failures)]
        return plan(fleet(instances=past))

    assert "the disk is full" in after(backoff_ms - 1).waits[ROUTE]
    assert loads(after(backoff_ms - 1)) == []
    assert loads(after(backoff_ms)) == [(MODEL, NODE)]


def test_failures_of_another_model_do_not_matter() -> None:
    others = [failed(str(number), model="other") for number in range(MAX_LOAD_FAILURES)]

    assert loads(plan(fleet(instances=others))) == [(MODEL, NODE)]


@pytest.mark.parametrize("nodes", [[], [node_beat(models=())]])
def test_a_model_whose_file_no_live_node_has_waits(nodes: list[NodeBeat]) -> None:
    result = plan(fleet(nodes=nodes))

    assert result.waits == {ROUTE: "no live node has its file; its jobs fail in 600 s"}
    assert result.rejects == []


def test_who_waits_for_a_node_that_drains_hears_of_it() -> None:
    snapshot = fleet(nodes=[node_beat("n1", draining=True), node_beat("n2", models=("other",))])

    fails = plan(replace(snapshot, missing_since={MODEL: NOW - OFFER_WAIT_MS}))

    assert plan(snapshot).waits == {ROUTE: "n1 has its file, and drains; its jobs fail in 600 s"}
    assert "offered now: other. n1 has its file, and drains: `packtrain nodes resume`" in str(fails.rejects[0].error)


def test_jobs_wait_for_a_node_with_their_model_only_so_long() -> None:
    snapshot = fleet(nodes=[node_beat(models=("other",))], waiting={ROUTE: 1, DETERMINISTIC: 1})

    waits = plan(replace(snapshot, missing_since={MODEL: NOW - OFFER_WAIT_MS + 1}))
    fails = plan(replace(snapshot, missing_since={MODEL: NOW - OFFER_WAIT_MS}))

    assert set(waits.waits) == {ROUTE, DETERMINISTIC}
    assert waits.rejects == []
    assert {reject.route for reject in fails.rejects} == {ROUTE, DETERMINISTIC}
    for reject in fails.rejects:
        assert isinstance(reject.error, ModelGone)
        assert "'tiny' for 600 s; offered now: other" in str(reject.error)


def test_a_model_that_is_loaded_or_offered_again_is_waited_for_as_long_as_it_takes() -> None:
    loaded = fleet(nodes=[node_beat(models=())], instances=[instance_beat()])

    for snapshot in (loaded, fleet()):
        assert plan(replace(snapshot, missing_since={MODEL: 0})).rejects == []


def test_a_model_is_missing_from_when_it_was_first_seen_so_until_it_is_offered_again() -> None:
    nodes = [node_beat(models=()), node_beat("n2", draining=True)]
    gone, back = fleet(nodes=nodes, waiting={ROUTE: 1}), fleet(waiting={ROUTE: 1})

    first = missing_since(gone, {})
    assert first == {MODEL: NOW}
    assert missing_since(replace(gone, now_ms=NOW + 5), first) == first
    assert missing_since(back, first) == {}
    assert missing_since(fleet(models=[], nodes=[], waiting={DETERMINISTIC: 1}), {}) == {MODEL: NOW}
    assert missing_since(fleet(nodes=nodes, waiting={}), first) == {}, "no job waits, so none has waited too long"


def test_a_model_too_large_for_every_node_is_rejected_with_the_shortfall() -> None:
    result = plan(fleet(models=[model_info(required_bytes=1200 * MIB)]))

    (reject,) = result.rejects
    assert isinstance(reject.error, ModelTooLarge)
    assert reject.error.data["short_bytes"] == 200 * MIB
    assert "1200 MiB" in str(reject.error)
    assert "1000 MiB" in str(reject.error)


@pytest.mark.parametrize(
    ("sizes", "remedy"),
    [
        # 200 MiB fixed and 250 per slot: three slots fit 1000 MiB.
        ({"required_bytes": 1200 * MIB, "kv_bytes_per_token": 250 * MIB // 512}, "slots = 3 "),
        # 900 fixed and 300 per slot of 512 tokens: no slot fits, 256 tokens do not either.
        ({"required_bytes": 2100 * MIB, "kv_bytes_per_token": 300 * MIB // 512}, "smaller quantisation"),
        # 500 fixed and 600 per slot of 2048 tokens: one slot of 1706 tokens fits, 1536 is round.
        (
            {"required_bytes": 2900 * MIB, "kv_bytes_per_token": 600 * MIB // 2048, "n_ctx": 2048},
            "slots = 1 and context = 1536",
        ),
        ({"required_bytes": 1200 * MIB}, "smaller quantisation"),
    ],
)
def test_the_remedy_for_a_model_too_large_is_the_smallest_change_that_fits(sizes: dict[str, Any], remedy: str) -> None:
    info = model_info(**sizes)
    (reject,) = plan(fleet(models=[info])).rejects

    assert remedy in str(reject.error)


def test_a_model_goes_to_the_node_with_the_most_free_memory() -> None:
    nodes = [node_beat("n1"), node_beat("n2", memory_budget=1200 * MIB), node_beat("n3")]

    assert loads(plan(fleet(nodes=nodes))) == [(MODEL, "n2")]


def test_a_node_that_drains_gets_nothing() -> None:
    nodes = [node_beat("n1"), node_beat("n2", memory_budget=1200 * MIB, draining=True)]

    assert loads(plan(fleet(nodes=nodes))) == [(MODEL, "n1")]


def test_a_node_without_the_file_gets_nothing() -> None:
    nodes = [node_beat("n1"), node_beat("n2", memory_budget=1200 * MIB, models=("other",))]

    assert loads(plan(fleet(nodes=nodes))) == [(MODEL, "n1")]


def test_what_others_have_reserved_is_not_free() -> None:
    coming = instance_beat("x", model="x", state=InstanceState.REQUESTED, reserved_bytes=950 * MIB, resident_bytes=0)
    result = plan(fleet(instances=[coming]))

    assert result.loads == []
    assert ROUTE in result.waits


def test_memory_that_other_programs_use_is_not_free() -> None:
    assert plan(fleet(nodes=[node_beat(memory_free=50 * MIB)])).loads == []


def test_memory_that_a_loading_instance_has_yet_to_take_is_not_free() -> None:
    loading = instance_beat(
        "x", model="x", state=InstanceState.LOADING, reserved_bytes=400 * MIB, resident_bytes=100 * MIB
    )

    assert plan(fleet(nodes=[node_beat(memory_free=350 * MIB)], instances=[loading])).loads == []
    assert plan(fleet(nodes=[node_beat(memory_free=400 * MIB)], instances=[loading])).loads != []


def test_two_loads_of_one_plan_do_not_claim_the_same_bytes() -> None:
    models = [model_info("a", required_bytes=600 * MIB), model_info("b", required_bytes=600 * MIB)]
    nodes = [node_beat(models=("a", "b"))]
    result = plan(fleet(nodes=nodes, models=models, waiting={Route("a"): 1, Route("b"): 2}))

    assert loads(result) == [("b", NODE)]
    assert "a" in result.waits


def test_the_second_load_of_a_plan_goes_to_the_node_that_then_has_most() -> None:
    models = [model_info("a", required_bytes=600 * MIB), model_info("b", required_bytes=600 * MIB)]
    nodes = [node_beat("n1", models=("a", "b"), memory_budget=1100 * MIB), node_beat("n2", models=("a", "b"))]
    result = plan(fleet(nodes=nodes, models=models, waiting={Route("a"): 2, Route("b"): 1}))

    assert loads(result) == [("a", "n1"), ("b", "n2")]


def test_the_model_with_most_waiting_jobs_comes_first() -> None:
    models = [model_info("a"), model_info("b")]
    waiting = {Route("a"): 1, Route("b"): 5}
    result = plan(fleet(nodes=[node_beat(models=("a", "b"))], models=models, waiting=waiting))

    assert [model for model, _ in loads(result)] == ["b", "a"]


def test_a_model_that_an_operator_wants_is_loaded_without_a_job() -> None:
    result = plan(fleet(waiting={}, desired={MODEL: Desired(replicas=1)}))

    assert loads(result) == [(MODEL, NODE)]
    assert "operator" in result.loads[0].reason


def test_the_least_recently_used_is_unloaded_first() -> None:
    old, new = idle("old", mib=500, since_ms=LONG_AGO), idle("new", mib=500, since_ms=LONG_AGO + 1)
    result = plan(room_for(100, new, old))

    assert unloads(result) == ["old"]
    assert "m-old" in result.waits[Route(BIG)]
    assert result.loads == []


def test_several_are_unloaded_when_it_takes_several() -> None:
    result = plan(room_for(100, *(idle(name, mib=250) for name in "abc")))

    assert unloads(result) == ["a", "b"]


def test_nothing_is_unloaded_when_all_of_it_would_not_be_enough() -> None:
    result = plan(room_for(100, idle("a"), idle("b"), instance_beat("busy", slots_used=1, reserved_bytes=900 * MIB)))

    assert unloads(result) == []
    assert "nothing idle to unload" in result.waits[Route(BIG)]


def test_one_whose_memory_turns_out_not_to_be_needed_is_spared() -> None:
    small, large = idle("small", mib=10, since_ms=LONG_AGO), idle("large", mib=600, since_ms=LONG_AGO + 1)

    assert unloads(plan(room_for(0, small, large))) == ["large"]


@pytest.mark.parametrize(
    "fields",
    [
        {"slots_used": 1},
        {"state": InstanceState.LOADING},
        {"ready_ms": NOW - MIN_RESIDENCY_MS + 1},
        {"last_used_ms": NOW - MIN_RESIDENCY_MS + 1},
    ],
)
def test_a_busy_or_young_instance_is_never_unloaded(fields: dict[str, Any]) -> None:
    assert unloads(plan(room_for(0, idle("a", mib=600, **fields)))) == []


def test_an_instance_whose_own_jobs_wait_is_never_unloaded() -> None:
    snapshot = room_for(0, idle("a", mib=600))

    assert unloads(plan(replace(snapshot, waiting={Route(BIG): 9, Route("m-a"): 1}))) == []


def test_an_instance_that_an_operator_wants_is_never_unloaded() -> None:
    snapshot = room_for(0, idle("a", mib=600))

    assert unloads(plan(replace(snapshot, desired={ModelId("m-a"): Desired(replicas=1)}))) == []


def test_a_pinned_instance_is_never_unloaded() -> None:
    snapshot = room_for(0, idle("a", mib=600))
    pinned = {ModelId("m-a"): model_info("m-a", pinned=True, keep_alive_s=0)}

    assert unloads(plan(replace(snapshot, models={**snapshot.models, **pinned}))) == []


def test_while_the_unloaded_one_leaves_nobody_else_must() -> None:
    leaving = idle("leaving", mib=500, state=InstanceState.DRAINING)
    result = plan(room_for(100, leaving, idle("other", mib=500)))

    assert unloads(result) == []
    assert "m-leaving" in result.waits[Route(BIG)]


def test_when_what_leaves_is_not_enough_only_the_rest_is_unloaded() -> None:
    leaving = idle("leaving", mib=300, state=InstanceState.DRAINING)
    result = plan(room_for(0, leaving, idle("b", mib=300), idle("c", mib=300)))

    assert unloads(result) == ["b"]


def test_two_models_of_one_plan_do_not_count_on_the_same_leaving_instance() -> None:
    other = ModelId("other")
    snapshot = room_for(0, idle("a", mib=600), idle("b", mib=600))
    node = snapshot.nodes[0].model_copy(update={"models": (BIG, other)})
    models = {**snapshot.models, other: model_info(other, required_bytes=600 * MIB)}
    result = plan(replace(snapshot, nodes=[node], models=models, waiting={Route(BIG): 1, Route(other): 1}))

    assert sorted(unloads(result)) == ["a", "b"]


def test_room_promised_to_one_model_is_not_given_to_another_of_the_same_plan() -> None:
    small = ModelId("small")
    snapshot = room_for(200, idle("a", mib=400))
    node = snapshot.nodes[0].model_copy(update={"models": (BIG, small)})
    models = {**snapshot.models, small: model_info(small, required_bytes=100 * MIB)}
    result = plan(replace(snapshot, nodes=[node], models=models, waiting={Route(BIG): 2, Route(small): 1}))

    assert (loads(result), unloads(result)) == ([], ["a"])


def test_room_is_made_on_another_node_when_the_one_with_most_free_memory_has_nothing_idle() -> None:
    busy = instance_beat("busy", node="n1", model="x", slots_used=1, reserved_bytes=500 * MIB)
    there = idle("there", mib=900, node="n2")
    nodes = [node_beat("n1", models=(BIG,)), node_beat("n2", models=(BIG,))]
    models = [model_info(BIG, required_bytes=600 * MIB), model_info("x"), model_info("m-there")]
    result = plan(fleet(nodes=nodes, instances=[busy, there], models=models, waiting={Route(BIG): 1}))

    assert unloads(result) == ["there"]


def test_nothing_is_unloaded_for_memory_that_would_not_come_back() -> None:
    mapped = idle("mapped", mib=600, resident_bytes=10 * MIB)  # its weights lie in the page cache
    snapshot = room_for(0, mapped)
    node = snapshot.nodes[0].model_copy(update={"memory_free": 300 * MIB})

    assert unloads(plan(replace(snapshot, nodes=[node]))) == []


def test_an_instance_idle_past_its_keep_alive_is_unloaded() -> None:
    def after(seconds: float) -> Plan:
        instance = instance_beat(ready_ms=1, last_used_ms=NOW - int(seconds * 1000))
        return plan(fleet(instances=[instance], models=[model_info(keep_alive_s=60)], waiting={}))

    assert unloads(after(61)) == ["tiny-1"]
    assert unloads(after(60)) == []


def test_a_negative_keep_alive_means_never() -> None:
    instance = instance_beat(ready_ms=1, last_used_ms=1)

    assert unloads(plan(fleet(instances=[instance], models=[model_info(keep_alive_s=-1)], waiting={}))) == []


@pytest.mark.parametrize("fields", [{"slots_used": 1}, {"state": InstanceState.WARMING}])
def test_an_instance_that_works_or_loads_is_not_idle(fields: dict[str, Any]) -> None:
    instance = instance_beat(ready_ms=1, last_used_ms=1, **fields)

    assert unloads(plan(fleet(instances=[instance], waiting={}))) == []


def test_a_job_that_waits_keeps_its_model_loaded() -> None:
    assert unloads(plan(fleet(instances=[instance_beat(ready_ms=1, last_used_ms=1)]))) == []


def test_an_operator_unloads_even_what_is_pinned_busy_or_young() -> None:
    instance = instance_beat(requested_ms=NOW - 10, ready_ms=NOW - 5, slots_used=1)
    desired = {MODEL: Desired(unload_before_ms=NOW)}
    result = plan(fleet(instances=[instance], models=[model_info(pinned=True)], waiting={}, desired=desired))

    assert unloads(result) == ["tiny-1"]


def test_an_operators_unload_does_not_meet_what_was_loaded_since() -> None:
    instance = instance_beat(requested_ms=NOW, ready_ms=NOW)
    desired = {MODEL: Desired(unload_before_ms=NOW)}

    assert unloads(plan(fleet(instances=[instance], waiting={}, desired=desired))) == []


def test_nobody_is_unloaded_twice_in_one_plan() -> None:
    snapshot = room_for(0, idle("a", mib=600))
    desired = {ModelId("m-a"): Desired(unload_before_ms=NOW)}

    assert unloads(plan(replace(snapshot, desired=desired))) == ["a"]


_STATES = st.sampled_from(list(InstanceState))
_SIZES = st.integers(0, 12).map(lambda n: n * 100 * MIB)
_TIMES = st.sampled_from([0, LONG_AGO, NOW - MIN_RESIDENCY_MS, NOW - 1])
_NAMES = ("a", "b", "c", "d")


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Any fleet of up to three nodes and four models."""
    held = st.builds(
        instance_beat,
        st.uuids().map(lambda u: f"i-{u.hex}"),
        model=st.sampled_from(_NAMES),
        node=st.sampled_from(["n1", "n2", "n3"]),
        state=_STATES,
        reserved_bytes=_SIZES,
        resident_bytes=_SIZES,
        slots_used=st.integers(0, 1),
        requested_ms=_TIMES,
        ready_ms=_TIMES,
        last_used_ms=_TIMES,
    )
    beats = [
        node_beat(
            name, memory_budget=draw(_SIZES), memory_free=draw(_SIZES), models=_NAMES, draining=draw(st.booleans())
        )
        for name in ["n1", "n2", "n3"][: draw(st.integers(1, 3))]
    ]
    infos = [
        model_info(
            name,
            required_bytes=draw(st.integers(1, 9)) * 100 * MIB,
            pinned=draw(st.booleans()),
            keep_alive_s=draw(st.sampled_from([-1.0, 0.0, 60.0])),
        )
        for name in _NAMES
    ]
    wants = st.builds(Desired, replicas=st.integers(0, 2), unload_before_ms=st.sampled_from([0, NOW]))
    return fleet(
        nodes=beats,
        instances=draw(st.lists(held, max_size=6)),
        models=infos,
        waiting=draw(st.dictionaries(st.sampled_from(_NAMES).map(Route), st.integers(0, 5))),
        desired=draw(st.dictionaries(st.sampled_from(_NAMES).map(ModelId), wants, max_size=2)),
    )


def held_bytes(snapshot: Snapshot, node: str) -> int:
    here = [i for i in snapshot.instances if i.node == node and not i.state.is_terminal]
    return sum(max(i.reserved_bytes, i.resident_bytes) for i in here)


@settings(deadline=None)
@given(snapshot=snapshots())
def test_no_plan_ever_claims_more_than_a_budget(snapshot: Snapshot) -> None:
    result = plan(snapshot)

    for node in snapshot.nodes:
        new = sum(load.reserved_bytes for load in result.loads if load.node == node.node)
        if new:
            assert held_bytes(snapshot, node.node) + new <= node.memory_budget
            assert new <= node.memory_free
            assert not node.draining


@settings(deadline=None)
@given(snapshot=snapshots())
def test_no_plan_ever_unloads_what_must_stay_or_makes_room_in_vain(snapshot: Snapshot) -> None:
    result = plan(snapshot)

    by_id = {i.instance: i for i in snapshot.instances}
    ready = Counter(i.model for i in snapshot.instances if i.state is InstanceState.READY)
    left = ready - Counter(by_id[name].model for name in unloads(result))
    assert len(unloads(result)) == len(set(unloads(result)))
    for unload in result.unloads:
        victim = by_id[unload.instance]
        model = ModelId(victim.model)
        wanted = snapshot.desired.get(model, Desired())
        assert victim.state is InstanceState.READY
        if victim.requested_ms < wanted.unload_before_ms:
            continue
        assert not victim.slots_used
        assert left[victim.model] >= wanted.replicas, "what an operator wants stays, and what is more than that may go"
        assert not snapshot.waiting.get(route_of(model))
        assert not snapshot.models[model].pinned
        if "makes room" in unload.reason:
            assert NOW - max(victim.ready_ms, victim.last_used_ms) >= MIN_RESIDENCY_MS


@settings(deadline=None)
@given(snapshot=snapshots())
def test_every_model_that_jobs_wait_for_is_up_or_meets_a_verdict(snapshot: Snapshot) -> None:
    result = plan(snapshot)

    up = {i.model for i in snapshot.instances if not i.state.is_terminal and i.state is not InstanceState.DRAINING}
    settled = {load.model for load in result.loads} | {r.route for r in result.rejects} | set(result.waits) | up
    assert {model for model, count in snapshot.waiting.items() if count} <= settled
    for load in result.loads:  # a replica of what is up is loaded only for an operator who wants more than one
        assert load.model not in up or snapshot.desired.get(load.model, Desired()).replicas > 1


@settings(deadline=None, max_examples=60)
@given(snapshot=snapshots())
def test_unloading_comes_to_an_end_and_never_exceeds_what_is_needed(snapshot: Snapshot) -> None:
    """Plan, let the victims drain, plan again: those that already leave are counted on, so nobody else must."""
    first = plan(snapshot)
    leaving = set(unloads(first))
    draining = [
        i.model_copy(update={"state": InstanceState.DRAINING}) if i.instance in leaving else i
        for i in snapshot.instances
    ]
    loaded = [
        instance_beat(
            f"new-{load.model}", model=load.model, node=load.node, state=InstanceState.REQUESTED,
            reserved_bytes=load.reserved_bytes, resident_bytes=0,
        )
        for load in first.loads
    ]  # fmt: skip
    again = plan(replace(snapshot, instances=[*draining, *loaded]))

    assert unloads(again) == []


@settings(deadline=None, max_examples=40)
@given(snapshot=snapshots())
def test_a_snapshot_that_was_packed_gives_the_same_plan(snapshot: Snapshot) -> None:
    there, again = plan(snapshot), plan(unpack(pack(snapshot)))

    assert (again.loads, again.unloads, again.waits) == (there.loads, there.unloads, there.waits)
    assert [(r.route, str(r.error)) for r in again.rejects] == [(r.route, str(r.error)) for r in there.rejects]


@pytest.mark.parametrize("text", ["", "?", "no base 85 \u00fc", pack(fleet())[:-9], "a" * 40])
def test_a_text_that_is_no_packed_snapshot_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="snapshot"):
        unpack(text)


def test_a_deterministic_job_loads_a_deterministic_instance_beside_a_busy_fast_one() -> None:
    busy = instance_beat(slots_used=2)
    result = plan(fleet(instances=[busy], waiting={DETERMINISTIC: 1}))

    assert [(load.model, load.numerics) for load in result.loads] == [(MODEL, "deterministic")]


def test_a_deterministic_instance_serves_both_routes() -> None:
    strict = instance_beat(numerics="deterministic")
    result = plan(fleet(instances=[strict], waiting={ROUTE: 1, DETERMINISTIC: 1}))

    assert result.loads == []


def test_a_plain_job_loads_the_model_as_its_catalog_says() -> None:
    result = plan(fleet(models=[model_info(numerics="deterministic")]))

    assert [load.numerics for load in result.loads] == ["deterministic"]


def test_a_job_that_no_node_can_compute_deterministically_is_refused_with_the_reason() -> None:
    node = node_beat(not_deterministic={MODEL: "its kernels are not"})
    result = plan(fleet(nodes=[node], waiting={ROUTE: 1, DETERMINISTIC: 1}))

    (reject,) = result.rejects
    assert reject.route == DETERMINISTIC
    assert reject.error.code == "not_deterministic"
    assert "its kernels are not" in str(reject.error)
    assert [load.numerics for load in result.loads] == ["fast"]


def test_a_node_that_cannot_be_deterministic_is_passed_over_for_one_that_may() -> None:
    nodes = [node_beat("a", memory_free=1900 * MIB, not_deterministic={MODEL: "no"}), node_beat("b")]

    assert [load.node for load in plan(fleet(nodes=nodes, waiting={DETERMINISTIC: 1})).loads] == ["b"]


def test_an_idle_fast_instance_makes_room_for_a_deterministic_one_of_its_model() -> None:
    there = idle("a", mib=600).model_copy(update={"model": MODEL})
    big = model_info(required_bytes=600 * MIB)
    result = plan(fleet(instances=[there], models=[big], waiting={DETERMINISTIC: 1}))

    assert unloads(result) == ["a"]
