"""Models that no node holds alone: over which nodes they go, who leaves for them, and when they leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packtrain.broker.beats import InstanceBeat, NodeBeat, NodeLink
from packtrain.broker.errors import ModelLoadFailed, ModelTooLarge
from packtrain.broker.ids import ModelId, Route
from packtrain.broker.journal import decisions_of
from packtrain.broker.model_info import BufferMemory, ModelInfo, ModelMemory
from packtrain.broker.orders import Desired
from packtrain.broker.placement import (
    LOAD_BACKOFF_MS,
    MAX_LOAD_FAILURES,
    MAX_WAIT_MS,
    MIB,
    MIN_RESIDENCY_MS,
    OFFER_WAIT_MS,
    Load,
    Plan,
    Snapshot,
    numerics_classes,
    plan,
    serving,
    unserved_since,
)
from packtrain.broker.placement.packing import pack, unpack
from packtrain.broker.placement.split_speed import HAND_OFF_S, STEP_BYTES
from packtrain.broker.placement.worth import held_bytes
from packtrain.broker.states import InstanceState
from tests.support.factories import instance_beat, model_info, node_beat

pytestmark = pytest.mark.unit

NOW = 10_000_000
LONG_AGO = NOW - 100_000
NODES = ("a", "b", "c")
BIG, SMALL = Route("big"), Route("small")
READY, HOLDING, DRAINING = InstanceState.READY, InstanceState.HOLDING, InstanceState.DRAINING
FAILED, LOST = InstanceState.FAILED, InstanceState.LOST


def big(name: str = "big", **fields: Any) -> ModelInfo:
    """Eight layers of 50 MiB: 680 MiB on one node; a head takes 100 MiB beside its layers, a shard 142."""
    defaults: dict[str, Any] = {
        "n_layer": 8, "n_embd": 1000, "weights_bytes": 420 * MIB, "layer_bytes": (50 * MIB,) * 8,
        "required_bytes": 680 * MIB, "n_slots": 4, "n_ctx": 512,
        "memory": ModelMemory(process_bytes=60 * MIB, buffers=(BufferMemory(weights=420 * MIB, compute=20 * MIB),)),
    }  # fmt: skip
    return model_info(name, **{**defaults, **fields})


def node(name: str, mib: int = 450, **fields: Any) -> NodeBeat:
    """One that takes part, with links to all others. It has the file of `small`, and `a` that of `big`."""
    links = {other: NodeLink(bytes_per_s=1e8, round_trip_s=0.001, at_ms=NOW - 1000) for other in NODES if other != name}
    defaults: dict[str, Any] = {
        "memory_budget": mib * MIB, "memory_free": 10_000 * MIB, "models": ("big", "small") if name == "a" else
        ("small",), "build": "b1", "cpu": "avx2", "split": True, "certificate": f"PEM of {name}", "links": links,
    }  # fmt: skip
    return node_beat(name, **{**defaults, **fields})


def fleet(
    *nodes: NodeBeat, instances: Sequence[InstanceBeat] = (), models: Sequence[ModelInfo] = (), **fields: Any
) -> Snapshot:
    """Three nodes of 450 MiB, of which two are too small for it, and a job for `big`."""
    infos = models or (big(), model_info("small"))
    defaults: dict[str, Any] = {
        "now_ms": NOW, "nodes": nodes or [node(name) for name in NODES], "instances": instances,
        "models": {ModelId(info.id): info for info in infos}, "waiting": {BIG: 1},
    }  # fmt: skip
    return Snapshot(**{**defaults, **fields})


def idle(name: str, on: str, mib: int = 400, **fields: Any) -> InstanceBeat:
    """One that nobody has wanted for a while."""
    defaults: dict[str, Any] = {
        "model": "small", "node": on, "reserved_bytes": mib * MIB, "resident_bytes": mib * MIB,
        "ready_ms": LONG_AGO, "last_used_ms": LONG_AGO,
    }  # fmt: skip
    return instance_beat(name, **{**defaults, **fields})


def group(name: str = "g", *, over: str = "ab", mib: int = 400, **fields: Any) -> list[InstanceBeat]:
    """A group of `big` that is up: its head and its shards."""
    common: dict[str, Any] = {"model": "big", "group": name, "mib": mib}
    head = idle(name, over[0], **{**common, "layers": 4, **fields})
    alive: dict[str, Any] = {"state": HOLDING, "ready_ms": 0, "n_slots": 0, "layers": 4}
    return [head, *(idle(f"{name}-{on}", on, **{**common, **alive}) for on in over[1:])]


def unloads(result: Plan) -> list[tuple[str, str]]:
    return [(unload.instance, unload.node) for unload in result.unloads]


def for_room(result: Plan) -> list[tuple[str, str]]:
    """Unloads for the sake of another model."""
    return [(unload.instance, unload.node) for unload in result.unloads if "makes room" in unload.reason]


def parts(load: Load) -> dict[str, tuple[int, int]]:
    """Layers and MiB by node, the head first."""
    head = {str(load.node): (load.layers, load.reserved_bytes // MIB)}
    return head | {str(shard.node): (shard.layers, shard.reserved_bytes // MIB) for shard in load.shards}


def error_of(result: Plan, kind: type[Exception]) -> str:
    (reject,) = result.rejects
    assert isinstance(reject.error, kind)
    return str(reject.error)


# --- loading


def test_what_no_node_holds_alone_is_loaded_over_as_few_as_hold_it() -> None:
    (load,) = plan(fleet()).loads

    assert parts(load) == {"a": (3, 250), "b": (3, 292), "c": (2, 242)}
    assert (load.model, load.numerics, load.n_slots, load.n_ctx) == ("big", "fast", 4, 512)
    assert load.reason == "1 jobs wait; over 3 nodes: 3 layers on a, 3 layers on b, 2 layers on c"
    assert [(c.node, c.verdict) for c in load.candidates] == [("a", "head"), ("b", "shard"), ("c", "shard")]


def test_what_fits_one_node_is_not_divided() -> None:
    (load,) = plan(fleet(node("a", 700), node("b", 700))).loads

    assert (load.node, load.shards, load.layers) == ("a", (), 0)


def test_a_forecast_comes_with_the_load_where_all_members_have_shown_their_speed() -> None:
    (load,) = plan(fleet(*(node(name, weights_per_s=1e9) for name in NODES))).loads

    assert load.forecast_tokens_per_s == pytest.approx(
        1 / (8 * 50 * MIB / 1e9 + 2 * (0.001 + (12_000 + STEP_BYTES) / 1e8 + HAND_OFF_S))
    )
    assert "; forecast 2.3 tokens/s for one job alone" in load.reason


def test_an_operator_has_it_loaded_too_but_no_backlog_gets_it_a_second_group() -> None:
    asked = fleet(waiting={}, desired={ModelId("big"): Desired(replicas=1, asked_ms=NOW)})
    busy = [i.model_copy(update={"slots_used": 4, "job_s": 10}) if i.state is READY else i for i in group()]
    nodes = [node(name, 1000 if name == "c" else 2000, models=("big",)) for name in NODES]

    assert len(plan(asked).loads) == 1
    assert not plan(fleet(*nodes, instances=busy, waiting={BIG: 1000}, models=[big(required_bytes=3000 * MIB)])).loads


def test_nodes_that_take_no_part_lack_a_label_or_drain_are_left_out() -> None:
    changes: list[dict[str, Any]] = [{"split": False}, {"labels": {}}, {"draining": True}, {"certificate": ""}]
    for change in changes:
        nodes = [node(name, 700, labels={"zone": "x"}) for name in NODES]
        nodes[1] = nodes[1].model_copy(update=change)
        (load,) = plan(fleet(*nodes, models=[big(nodes={"zone": "x"}, required_bytes=900 * MIB)])).loads
        assert parts(load).keys() == {"a", "c"}


def test_a_deterministic_group_has_nodes_of_one_kind_that_can_be_so() -> None:
    route = Route("big@deterministic")
    changes: list[dict[str, Any]] = [{"cpu": "sse"}, {"not_deterministic": {"big": "its matrices"}}]
    for change in changes:
        nodes = [node("a", 700), node("b", 700, **change), node("c", 700)]
        infos = [big(required_bytes=900 * MIB)]
        (load,) = plan(fleet(*nodes, models=infos, waiting={route: 1})).loads
        assert (set(parts(load)), load.numerics) == ({"a", "c"}, "deterministic")
        assert parts(plan(fleet(*nodes, models=infos)).loads[0]).keys() == {"a", "b"}

    differing = fleet(node("a", 700), node("b", 700, cpu="sse"), models=infos, waiting={route: 1})
    assert "b has another kind of CPU (sse) than a (avx2)" in error_of(plan(differing), ModelTooLarge)


def test_a_model_that_is_split_over_certain_nodes_lies_there_though_it_would_fit_alone() -> None:
    nodes = [node(name, 3000) for name in NODES]
    said = [big(split_over=("a", "b", "c"))]

    assert parts(plan(fleet(*nodes, models=said)).loads[0]).keys() == {"a", "b", "c"}
    late = plan(fleet(*nodes[:2], models=said))
    assert (late.loads, late.rejects) == ([], [])
    assert "packtrain.toml splits it over a, b, c, and of these c does not take part; start what" in late.waits[BIG]
    for_long = fleet(*nodes[:2], models=said, unserved_since={BIG: NOW - OFFER_WAIT_MS})
    assert "'big' cannot be loaded over a, b, c: " in error_of(plan(for_long), ModelTooLarge)


# --- making room


def test_idle_instances_make_room_on_all_its_nodes_and_it_waits_until_they_are_gone() -> None:
    two = [node("a", 700), node("b", 700)]
    infos = [big(required_bytes=900 * MIB), model_info("small")]
    both = [idle("x", "a"), idle("y", "b")]

    result = plan(fleet(*two, instances=both, models=infos))
    assert unloads(result) == [("x", "a"), ("y", "b")]
    assert not result.loads
    assert result.waits[BIG] == "waits until small is unloaded from a, b"
    leaving = [i.model_copy(update={"state": DRAINING}) for i in both]
    again = plan(fleet(*two, instances=leaving, models=infos))
    assert (again.loads, again.unloads, again.waits) == ([], [], result.waits)


def test_what_is_leaving_already_is_enough() -> None:
    leaving = idle("x", "c", 450, state=DRAINING)

    result = plan(fleet(instances=[leaving, idle("y", "c", 0)]))
    assert (result.loads, unloads(result)) == ([], [])
    assert result.waits[BIG] == "waits until small is unloaded from a, b, c"


def test_only_as_many_leave_as_it_needs() -> None:
    two = [node("a", 700), node("b", 700)]
    small = [idle(f"on-{on}-{number}", on, 100) for on in "ab" for number in range(4)]

    result = plan(fleet(*two, instances=small, models=[big(required_bytes=900 * MIB), model_info("small")]))
    assert result.waits[BIG] == "waits until small is unloaded from a, b"
    assert Counter(on for _, on in for_room(result)) == {"a": 1, "b": 2}


def test_those_with_work_are_driven_out_only_for_what_has_waited_too_long() -> None:
    working = [idle("x", "b", slots_used=1), idle("y", "c", slots_used=1)]
    now = fleet(instances=working, waiting={BIG: 1, SMALL: 9})

    assert not unloads(plan(now))
    assert plan(now).waits[BIG].startswith("a shard needs 142 MiB besides its layers, and b, c can give no more;")
    late = plan(replace(now, unserved_since={BIG: NOW - MAX_WAIT_MS}))
    assert unloads(late) == [("x", "b"), ("y", "c")]
    assert "makes room for big, whose jobs have waited 60 s" in late.unloads[0].reason


def test_what_operators_want_kept_does_not_leave_not_even_from_two_nodes_at_once() -> None:
    twins = [idle("x", "b"), idle("y", "c")]
    kept = {ModelId("small"): Desired(replicas=1)}

    assert not for_room(plan(fleet(instances=twins, desired=kept)))
    assert for_room(plan(fleet(instances=twins))) == [("x", "b"), ("y", "c")]


# --- a group that is loaded


def test_a_shard_counts_for_memory_and_for_nothing_else() -> None:
    members = group()
    now = fleet(instances=members, waiting={BIG: 1})

    assert not plan(now).loads
    assert serving(BIG, now) == {"g", "a"}
    assert unserved_since(now, {}) == {}
    classes = [i.model_copy(update={"numerics": "deterministic", "numerics_class": "n" * i.is_head}) for i in members]
    route = Route("big@deterministic")
    assert numerics_classes(route, replace(now, instances=classes, waiting={route: 1})) == {
        ("", "n"), ("g", "n"), ("a", "n")
    }  # fmt: skip
    orphan = replace(now, instances=members[1:])
    assert serving(BIG, orphan) == {"a", "b", "c"}
    assert unserved_since(orphan, {}) == {BIG: NOW}


def test_to_have_the_room_of_a_shard_its_head_is_unloaded() -> None:
    rest = [node(name) for name in NODES[:2]]
    infos = [big(), model_info("small", required_bytes=450 * MIB)]
    nodes = [rest[0].model_copy(update={"models": ("big",)}), rest[1]]
    now = fleet(*nodes, instances=group(), waiting={SMALL: 1}, models=infos)

    result = plan(now)
    assert unloads(result) == [("g", "a")]
    assert result.waits[SMALL] == "waits until big is unloaded from b"
    for keeps in (
        replace(now, waiting={SMALL: 1, BIG: 1}),
        replace(now, desired={ModelId("big"): Desired(replicas=1)}),
        replace(now, models={**now.models, ModelId("big"): big(pinned=True)}),
        replace(now, instances=[i.model_copy(update={"slots_used": 1}) if i.is_head else i for i in group()]),
        replace(now, instances=group(last_used_ms=NOW - MIN_RESIDENCY_MS + 1)),
    ):
        assert not unloads(plan(keeps))


def test_the_memory_of_all_members_is_counted_on_once_their_head_leaves() -> None:
    now = fleet(instances=group(state=DRAINING), waiting={SMALL: 1, BIG: 0})
    nodes = [n.model_copy(update={"models": ("small",) if n.node == "b" else ()}) for n in now.nodes]
    infos = {ModelId("small"): model_info("small", required_bytes=450 * MIB), ModelId("big"): big()}

    result = plan(replace(now, nodes=nodes, models=infos))
    assert (unloads(result), result.waits[SMALL]) == ([], "waits until big is unloaded from b")
    fallen = [i.model_copy(update={"state": FAILED, "ready_ms": 1}) if i.is_head else i for i in group()]
    assert plan(replace(now, nodes=nodes, models=infos, instances=fallen)).waits == result.waits


def test_one_group_makes_room_for_another_only_once() -> None:
    infos = [big(), big("other", required_bytes=690 * MIB)]
    nodes = [node(name, models=("big", "other")) for name in NODES]

    result = plan(fleet(*nodes, instances=group(over="abc"), models=infos, waiting={Route("other"): 1}))
    assert unloads(result) == [("g", "a")]
    assert result.waits[Route("other")] == "waits until big is unloaded from a, b, c"


def test_idle_past_its_keep_alive_the_head_is_unloaded() -> None:
    old = group(last_used_ms=NOW - 400_000, ready_ms=NOW - 400_000)

    assert unloads(plan(fleet(instances=old, waiting={}))) == [("g", "a")]


# --- what fails


def failed(on: str, *, number: int = 0, role: str = "shard", ended_ms: int = NOW, **fields: Any) -> InstanceBeat:
    """A member that failed to load."""
    name = f"f{number}"
    own = name if role == "head" else f"{name}-{on}"
    times = {"ready_ms": 0, "requested_ms": LONG_AGO, "ended_ms": ended_ms}
    more = {"reason": f"no luck on {on}", "group": name, "model": "big"}
    return idle(own, on, 0, **{"state": FAILED, **times, **more, **fields})


def test_a_node_whose_part_failed_just_now_is_left_out_and_its_head_is_not_blamed() -> None:
    nodes = [node(name, 700) for name in NODES]
    infos = [big(required_bytes=900 * MIB)]
    fell = [failed("b"), failed("a", role="head", reason="its shard on b is FAILED")]

    assert parts(plan(fleet(*nodes, models=infos, instances=fell)).loads[0]).keys() == {"a", "c"}
    later = [i.model_copy(update={"ended_ms": NOW - LOAD_BACKOFF_MS}) for i in fell]
    assert parts(plan(fleet(*nodes, models=infos, instances=later)).loads[0]).keys() == {"a", "b"}


def test_with_nobody_else_it_waits_twice_as_long_after_each_failure_and_is_given_up_with_the_cause() -> None:
    nodes = [node(name, 700) for name in "ab"]
    infos = [big(required_bytes=900 * MIB)]
    fell: list[InstanceBeat] = []
    for number in range(MAX_LOAD_FAILURES - 1):
        fell.append(failed("b", number=number))
        wait_s = LOAD_BACKOFF_MS * 2**number / 1000
        said = f"its last load on b failed (no luck on b); next try in {wait_s:.0f} s"
        assert plan(fleet(*nodes, models=infos, instances=fell)).waits == {BIG: said}
    fell.append(failed("b", number=9))

    assert "3 tries, on b: no luck on b;" in error_of(
        plan(fleet(*nodes, models=infos, instances=fell)), ModelLoadFailed
    )


def test_a_shard_that_dies_once_its_head_was_ready_is_no_failed_load() -> None:
    nodes = [node(name, 700) for name in "ab"]
    head, shard = failed("a", role="head", ready_ms=LONG_AGO), failed("b")

    assert plan(fleet(*nodes, models=[big(required_bytes=900 * MIB)], instances=[head, shard])).loads


def test_a_head_that_failed_by_itself_counts_on_its_node() -> None:
    nodes = [node(name, 700, models=("big",)) for name in NODES]
    followed = failed("b", state=InstanceState.STOPPED)
    fell = [failed("a", role="head"), followed]

    (load,) = plan(fleet(*nodes, models=[big(required_bytes=900 * MIB)], instances=fell)).loads
    assert parts(load).keys() == {"b", "c"}


def test_what_ran_out_of_memory_is_given_more() -> None:
    nodes = [node(name, 900) for name in "ab"]
    infos = [big(required_bytes=950 * MIB)]
    fell = [failed("b", ended_ms=NOW - 60_000, out_of_memory=True)]

    (before,), (after,) = (plan(fleet(*nodes, models=infos, instances=i)).loads for i in ((), fell))
    assert sum(mib for _, mib in parts(after).values()) == pytest.approx(
        1.2 * sum(mib for _, mib in parts(before).values()), abs=3
    )


# --- where there is no way


def test_links_and_builds_that_are_not_known_yet_are_waited_for_and_not_for_ever() -> None:
    changes: list[dict[str, Any]] = [{"links": {}}, {"build": ""}, {"certificate": ""}]
    for change in changes:
        nodes = [node(name, 700, **change) for name in "ab"]
        now = fleet(*nodes, models=[big(required_bytes=900 * MIB)])

        result = plan(now)
        assert not result.rejects
        assert "; its jobs fail in 600 s" in result.waits[BIG]
        assert any(why in result.waits[BIG] for why in ("is not measured", "has not told yet", "no certificate"))
        assert plan(replace(now, unserved_since={BIG: NOW - OFFER_WAIT_MS})).rejects


def test_too_large_for_all_together_is_said_at_once_with_who_takes_part_and_what_would_help() -> None:
    alone = [node("a", 500, split=False), node("b", 500, split=False)]
    said = error_of(plan(fleet(*alone)), ModelTooLarge)
    assert "or let several nodes hold it together, of which now: a, b do not take part in splits" in said
    assert said.endswith("set PACKTRAIN_SPLIT=1 for the agent there")

    assert "which can give 300 MiB together" in error_of(plan(fleet(node("a", 200), node("b", 200))), ModelTooLarge)
    (reject,) = plan(fleet(node("a", 500))).rejects
    assert "several" not in str(reject.error)
    assert reject.error.data["short_bytes"] == 180 * MIB


def test_a_node_that_was_there_is_waited_for() -> None:
    nodes = [node("a", 700), node("b", 700, quarantine="three loads failed")]
    infos = [big(required_bytes=900 * MIB)]
    fell = [i.model_copy(update={"state": LOST}) for i in group()]

    assert not plan(fleet(*nodes, models=infos)).rejects
    assert not plan(fleet(nodes[0], models=infos, instances=fell)).rejects
    assert plan(fleet(nodes[0], models=infos)).rejects


def test_models_that_are_never_split_are_too_large_at_once() -> None:
    said = error_of(plan(fleet(models=[big(embeds_only=True)])), ModelTooLarge)

    assert said.endswith("of which now: it only embeds, and such models are not split")


# --- whatever the fleet

_SIZES = st.integers(0, 12).map(lambda n: n * 100 * MIB)
_TIMES = st.sampled_from([0, LONG_AGO, NOW - MIN_RESIDENCY_MS, NOW - 1])
_ALIVE = [READY, InstanceState.LOADING, DRAINING, FAILED, LOST]


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Three nodes that take part, or not; up to three groups, whole or falling, and instances of another model."""
    flags = st.sampled_from([True, True, True, False])
    nodes = [
        node(
            name, memory_budget=draw(_SIZES), memory_free=draw(_SIZES), split=draw(flags), draining=not draw(flags),
            models=("big", "small") if draw(flags) else ("small",),
            build=draw(st.sampled_from(["b1", "b1", "b2"])),
        )
        for name in NODES
    ]  # fmt: skip
    instances: list[InstanceBeat] = []
    for number in range(draw(st.integers(0, 3))):
        over = draw(st.permutations("abc"))[: draw(st.integers(2, 3))]
        head, *shards = group(f"g{number}", over="".join(over))
        state = draw(st.sampled_from(_ALIVE))
        ready_ms = draw(_TIMES) if state is READY else 0
        size = {"reserved_bytes": draw(_SIZES), "resident_bytes": draw(_SIZES)}
        told = {"state": state, "ready_ms": ready_ms, "last_used_ms": ready_ms, "slots_used": draw(st.integers(0, 1))}
        instances.append(head.model_copy(update={**size, **told}))
        for shard in shards:
            held = st.sampled_from([HOLDING, HOLDING, InstanceState.LOADING, DRAINING, FAILED])
            instances.append(shard.model_copy(update={**size, "state": draw(held)}))
    small = st.builds(
        idle, st.uuids().map(lambda u: f"s-{u.hex}"), st.sampled_from(NODES), st.integers(0, 6).map(lambda n: n * 100),
        slots_used=st.integers(0, 1), ready_ms=_TIMES,
    )  # fmt: skip
    instances += draw(st.lists(small, max_size=3))
    over_two = draw(st.sampled_from([(), (), ("a", "b")]))
    infos = [
        big(required_bytes=draw(st.integers(6, 20)) * 100 * MIB, split_over=over_two, pinned=not draw(flags)),
        model_info("small", required_bytes=draw(st.integers(1, 9)) * 100 * MIB),
    ]
    wants = st.builds(Desired, replicas=st.integers(0, 2), unload_before_ms=st.sampled_from([0, NOW]))
    waiting = draw(st.dictionaries(st.sampled_from([BIG, SMALL, Route("big@deterministic")]), st.integers(0, 5)))
    waited = st.sampled_from([NOW, NOW - MAX_WAIT_MS, NOW - OFFER_WAIT_MS])
    return fleet(
        *nodes, instances=instances, models=infos, waiting=waiting,
        desired=draw(st.dictionaries(st.sampled_from(["big", "small"]).map(ModelId), wants)),
        unserved_since={route: draw(waited) for route, count in waiting.items() if count},
    )  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(now=snapshots())
def test_no_plan_claims_more_than_there_is_loads_half_a_group_or_unloads_a_shard(now: Snapshot) -> None:
    result = plan(now)

    claimed: Counter[str] = Counter()
    nodes = {n.node: n for n in now.nodes}
    info = now.models[ModelId("big")]
    for load in result.loads:
        claimed[load.node] += load.reserved_bytes
        for shard in load.shards:
            claimed[shard.node] += shard.reserved_bytes
        if load.shards:
            members = [load.node, *(shard.node for shard in load.shards)]
            assert load.layers + sum(shard.layers for shard in load.shards) == info.n_layer
            assert all(shard.layers for shard in load.shards)
            assert len(set(members)) == len(members)
            assert len({nodes[member].build for member in members}) == 1
            assert all(nodes[member].split for member in members)
            assert "big" in nodes[load.node].models
            assert not info.split_over or set(members) == set(info.split_over)
        else:
            assert load.model == "small" or not info.split_over
    for name, size in claimed.items():
        here = [i for i in now.instances if i.node == name and not i.state.is_terminal]
        coming = sum(max(0, i.reserved_bytes - i.resident_bytes) for i in here if i.state.is_coming_up)
        assert sum(map(held_bytes, here)) + size <= nodes[name].memory_budget
        assert coming + size <= nodes[name].memory_free
        assert not nodes[name].draining

    by_id = {i.instance: i for i in now.instances}
    assert len(unloads(result)) == len(set(unloads(result)))
    ready = Counter(i.model for i in now.instances if i.state is READY)
    for name, _ in unloads(result):
        assert not by_id[name].is_shard
        assert by_id[name].state is READY
        ready[by_id[name].model] -= 1
    for unload in result.unloads:
        wanted = now.desired.get(unload.model, Desired())
        if by_id[unload.instance].requested_ms >= wanted.unload_before_ms:
            assert ready[unload.model] >= wanted.replicas
            assert not now.models[unload.model].pinned


@settings(deadline=None)
@given(now=snapshots())
def test_the_same_snapshot_has_the_same_plan_also_from_the_journal_and_in_any_order(now: Snapshot) -> None:
    result = plan(now)

    for again in (plan(now), plan(unpack(pack(now)))):
        assert (decisions_of(again), again.waits) == (decisions_of(result), result.waits)
    other = replace(now, nodes=now.nodes[::-1], instances=now.instances[::-1])
    assert {repr(parts(load)) for load in plan(other).loads} == {repr(parts(load)) for load in result.loads}


@settings(deadline=None)
@given(now=snapshots())
def test_whoever_waits_for_what_is_not_up_meets_a_verdict(now: Snapshot) -> None:
    result = plan(now)

    up = {i.model for i in now.instances if not (i.state.is_terminal or i.state is DRAINING or i.is_shard)}
    said = {str(load.model) for load in result.loads} | {str(r).partition("@")[0] for r in result.waits}
    said |= {str(reject.route).partition("@")[0] for reject in result.rejects}
    for route, count in now.waiting.items():
        model = str(route).partition("@")[0]
        assert not count or model in up | said
