"""Placement over nodes that differ: what each says of a model, where loads failed, labels, files fetched, replicas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.errors import ModelLoadFailed, ModelTooLarge
from packtrain.broker.ids import ModelId, NodeId, Route
from packtrain.broker.orders import Desired
from packtrain.broker.placement import (
    CRASH_BACKOFF_MS,
    LOAD_BACKOFF_MS,
    MAX_LOAD_FAILURES,
    MIB,
    Plan,
    Snapshot,
    missing_since,
    plan,
)
from packtrain.broker.placement.packing import pack, unpack
from packtrain.broker.states import InstanceState
from tests.support.factories import DETERMINISTIC, MODEL, ROUTE, instance_beat, model_info, node_beat

pytestmark = pytest.mark.unit

NOW = 10_000_000
LONG_AGO = NOW - 100_000


def fleet(*names: str, said: dict[str, dict[str, Any]] | None = None, **fields: Any) -> Snapshot:
    """Nodes of 1000 MiB each that offer the one model a job waits for, each as it says."""
    offers = {NodeId(name): model_info(**(said or {}).get(name, {})) for name in names}
    nodes = [node_beat(name) for name in names]
    defaults: dict[str, Any] = {
        "now_ms": NOW,
        "nodes": nodes,
        "models": {MODEL: model_info(), ModelId("x"): model_info("x")},
        "offers": {MODEL: offers},
        "waiting": {ROUTE: 1},
    }
    return Snapshot(**{**defaults, **fields})


def failed(node: str, *, ended_ms: int = LONG_AGO, **fields: Any) -> InstanceBeat:
    """A load that failed there."""
    fields = {"reason": f"the disk of {node} is full", "instance": f"{node}-{ended_ms}-{len(fields)}", **fields}
    return instance_beat(
        node=node,
        state=InstanceState.FAILED,
        requested_ms=ended_ms - 5000,
        ended_ms=ended_ms,
        resident_bytes=0,
        **fields,
    )


def ready(node: str, **fields: Any) -> InstanceBeat:
    """A READY instance there, long loaded in 5 s, its slots idle."""
    times = {"requested_ms": LONG_AGO - 5000, "ready_ms": LONG_AGO, "last_used_ms": LONG_AGO}
    return instance_beat(f"tiny-{node}", node=node, **{**times, **fields})


def loads(result: Plan) -> list[tuple[str, str]]:
    return [(load.model, load.node) for load in result.loads]


def test_a_load_takes_slots_and_bytes_as_its_own_node_has_them() -> None:
    snapshot = fleet("n1", "n2", said={"n2": {"required_bytes": 300 * MIB, "n_slots": 16, "n_ctx": 1024}})
    nodes = [node_beat("n1"), node_beat("n2", memory_budget=1200 * MIB)]

    (load,) = plan(replace(snapshot, nodes=nodes)).loads

    assert (load.node, load.reserved_bytes, load.n_slots, load.n_ctx) == ("n2", 300 * MIB, 16, 1024)


def test_a_model_too_large_for_one_node_as_that_has_it_goes_to_another() -> None:
    snapshot = fleet("n1", "n2", said={"n1": {"required_bytes": 1100 * MIB}})

    assert loads(plan(snapshot)) == [(MODEL, "n2")]


def test_the_shortfall_is_that_of_the_largest_node_as_it_has_the_model() -> None:
    sizes = {"n1": {"required_bytes": 1100 * MIB}, "n2": {"required_bytes": 1700 * MIB}}
    nodes = [node_beat("n1"), node_beat("n2", memory_budget=1500 * MIB)]

    (reject,) = plan(replace(fleet("n1", "n2", said=sizes), nodes=nodes)).rejects

    assert isinstance(reject.error, ModelTooLarge)
    assert reject.error.data["short_bytes"] == 200 * MIB


def test_a_load_that_failed_goes_to_the_next_node_at_once() -> None:
    result = plan(fleet("n1", "n2", instances=[failed("n2", ended_ms=NOW - 1)]))

    assert loads(result) == [(MODEL, "n1")]


def test_a_node_whose_wait_is_over_is_tried_after_those_that_never_failed() -> None:
    nodes = [node_beat("n1"), node_beat("n2", memory_budget=1200 * MIB)]

    assert loads(plan(fleet("n1", "n2", nodes=nodes, instances=[failed("n2")]))) == [(MODEL, "n1")]


def test_a_node_is_tried_again_after_a_wait_that_doubles_with_its_own_failures() -> None:
    def after(milliseconds: int) -> Plan:
        given_up = [failed("n1", ended_ms=LONG_AGO - n) for n in range(MAX_LOAD_FAILURES)]
        twice = [failed("n2", ended_ms=LONG_AGO), failed("n2", ended_ms=NOW - milliseconds)]
        return plan(fleet("n1", "n2", instances=[*given_up, *twice]))

    assert "the disk of n2 is full" in after(2 * LOAD_BACKOFF_MS - 1).waits[ROUTE]
    assert loads(after(2 * LOAD_BACKOFF_MS)) == [(MODEL, "n2")]


def test_jobs_fail_with_the_cause_of_each_node_once_all_are_given_up() -> None:
    nodes = ("n1", "n2", "n3")
    tries = [failed(node, ended_ms=LONG_AGO - n) for node in nodes for n in range(MAX_LOAD_FAILURES)]

    assert loads(plan(fleet(*nodes, instances=tries[:-1]))) == [(MODEL, "n3")]
    (reject,) = plan(fleet(*nodes, instances=tries)).rejects

    assert isinstance(reject.error, ModelLoadFailed)
    for node in nodes:
        assert f"on {node}: the disk of {node} is full" in str(reject.error)
    assert "9 tries" in str(reject.error)


def test_what_failed_before_an_operator_asked_for_it_counts_no_more() -> None:
    tries = [failed("n1", ended_ms=LONG_AGO - n) for n in range(MAX_LOAD_FAILURES)]

    def asked(at_ms: int) -> Plan:
        return plan(fleet("n1", instances=tries, desired={MODEL: Desired(replicas=1, asked_ms=at_ms)}))

    assert loads(asked(LONG_AGO + 1)) == [(MODEL, "n1")]
    assert asked(0).rejects


def test_jobs_wait_for_the_replica_that_is_up_though_a_second_one_cannot_be_loaded() -> None:
    tries = [failed("n2", ended_ms=LONG_AGO - n) for n in range(MAX_LOAD_FAILURES)]
    instances = [ready("n1", slots_used=4), *tries]
    result = plan(fleet("n1", "n2", instances=instances, desired={MODEL: Desired(replicas=5)}))

    assert result.rejects == []


def test_a_load_that_ran_out_of_memory_is_given_a_fifth_more() -> None:
    short = failed("n2", ended_ms=NOW - 1, out_of_memory=True)

    (load,) = plan(fleet("n1", "n2", instances=[short])).loads

    assert (load.node, load.reserved_bytes) == ("n1", 120 * MIB)


def test_a_load_that_ran_out_of_memory_is_never_given_more_than_there_can_be() -> None:
    tries = [failed(f"n{n}", out_of_memory=True) for n in (2, 3, 4)]
    snapshot = fleet("n1", said={"n1": {"required_bytes": 900 * MIB}}, instances=tries)

    assert [load.reserved_bytes for load in plan(snapshot).loads] == [1000 * MIB]


def test_a_model_that_crashes_while_no_job_waits_comes_back_ever_more_slowly() -> None:
    def after(crashes: int, milliseconds: int) -> Plan:
        past = [failed("n1", ended_ms=NOW - milliseconds - n, ready_ms=LONG_AGO) for n in range(crashes)]
        return plan(fleet("n1", instances=past, waiting={}, desired={MODEL: Desired(replicas=1)}))

    assert loads(after(1, 0)) == [(MODEL, "n1")], "the first crash costs nothing"
    assert "crashes again and again" in after(2, CRASH_BACKOFF_MS - 1).waits[ROUTE]
    assert loads(after(2, CRASH_BACKOFF_MS)) == [(MODEL, "n1")]
    assert loads(after(3, 2 * CRASH_BACKOFF_MS - 1)) == []
    assert loads(after(3, 2 * CRASH_BACKOFF_MS)) == [(MODEL, "n1")]


def test_a_model_that_crashes_comes_back_at_once_for_a_job() -> None:
    past = [failed("n1", ended_ms=NOW - n, ready_ms=LONG_AGO) for n in range(5)]

    assert loads(plan(fleet("n1", instances=past, desired={MODEL: Desired(replicas=1)}))) == [(MODEL, "n1")]


def test_a_node_in_quarantine_gets_nothing_and_says_why() -> None:
    nodes = [node_beat("n1", quarantine="its disk fails")]
    result = plan(fleet("n1", nodes=nodes))

    assert loads(result) == []
    assert "its disk fails" in result.waits[ROUTE]
    assert missing_since(fleet("n1", nodes=nodes), {}) == {MODEL: NOW}


def test_a_model_is_loaded_only_where_the_labels_are_that_any_node_asks_for() -> None:
    said = {"n1": {"nodes": {"gpu": "yes"}}}
    nodes = [node_beat("n1"), node_beat("n2"), node_beat("n3", labels={"gpu": "yes"}, memory_budget=500 * MIB)]
    snapshot = fleet("n1", "n2", "n3", said=said)

    assert loads(plan(replace(snapshot, nodes=nodes))) == [(MODEL, "n3")]
    nowhere = replace(snapshot, nodes=nodes[:2])
    assert "the labels gpu=yes" in plan(nowhere).waits[ROUTE]
    assert missing_since(nowhere, {}) == {MODEL: NOW}


def fetching(**other: Any) -> Snapshot:
    """n1 has a file of 1000 MiB and no room, n2 has room and no file."""
    info = {"file_bytes": 1000 * MIB, "fetchable": True, "required_bytes": 600 * MIB}
    other = {"disk_free": 2024 * MIB, **other}
    nodes = [node_beat("n1", files_url="http://n1"), node_beat("n2", models=(), **other)]
    busy = instance_beat("busy", model="x", node="n1", slots_used=1, reserved_bytes=700 * MIB)
    return fleet("n1", said={"n1": info}, nodes=nodes, instances=[busy])


def saying(snapshot: Snapshot, **change: Any) -> Snapshot:
    """The same, n1 saying something else of the model."""
    n1 = NodeId("n1")
    return replace(snapshot, offers={MODEL: {n1: snapshot.offers[MODEL][n1].model_copy(update=change)}})


def test_a_file_is_fetched_to_a_node_with_room_when_no_node_that_has_it_has_room() -> None:
    (load,) = plan(fetching()).loads

    assert (load.node, load.fetch_from, load.reserved_bytes) == ("n2", "n1", 600 * MIB)


def test_a_snapshot_that_was_packed_gives_the_same_fetch() -> None:
    assert plan(unpack(pack(fetching()))) == plan(fetching())


@pytest.mark.parametrize(
    "other",
    [{"disk_free": 2023 * MIB}, {"memory_budget": 500 * MIB}, {"draining": True}, {"not_deterministic": {MODEL: "no"}}],
)
def test_a_file_is_fetched_only_to_where_it_can_be_kept_and_used(other: dict[str, Any]) -> None:
    snapshot = fetching(**other)
    waiting = {DETERMINISTIC: 1} if "not_deterministic" in other else snapshot.waiting
    result = plan(replace(snapshot, waiting=waiting))

    assert (loads(result), result.rejects) == ([], [])


@pytest.mark.parametrize(("where", "fetches"), [("here", True), ("there", False), ("", False)])
def test_a_file_served_on_loopback_is_fetched_by_nodes_of_that_machine_only(where: str, fetches: bool) -> None:
    snapshot = fetching(loopback=where)
    holder = node_beat("n1", files_url="http://127.0.0.1:5", loopback="here")

    assert bool(loads(plan(replace(snapshot, nodes=[holder, snapshot.nodes[1]])))) is fetches


@pytest.mark.parametrize("change", [{"fetchable": False}, {"file_bytes": 0}])
def test_a_file_that_cannot_be_fetched_is_not(change: dict[str, Any]) -> None:
    assert loads(plan(saying(fetching(), **change))) == []


def test_nothing_is_fetched_where_the_file_is_there_and_has_room() -> None:
    result = plan(replace(fetching(), instances=[]))

    assert [(load.node, load.fetch_from) for load in result.loads] == [("n1", "")]


@pytest.mark.parametrize(("file_mib", "fetches"), [(100, True), (10_000, False)])
def test_a_fetch_is_weighed_against_the_regret_of_unloading(file_mib: int, fetches: bool) -> None:
    snapshot = fetching(disk_free=10**12)
    # It took 5 s to load and was used 100 s ago: some 4 s of regret. 100 MiB are fetched in 1 s, 10,000 in 105 s.
    idle = [ready("n1", model="x", reserved_bytes=700 * MIB, resident_bytes=700 * MIB)]
    result = plan(replace(saying(snapshot, file_bytes=file_mib * MIB), instances=idle))

    assert (len(result.loads), len(result.unloads)) == ((1, 0) if fetches else (0, 1))


def test_a_model_too_large_for_those_that_have_it_is_fetched_to_one_that_is_large_enough() -> None:
    snapshot = fetching(memory_budget=3000 * MIB, memory_free=3000 * MIB)
    (load,) = plan(saying(snapshot, required_bytes=2000 * MIB)).loads

    assert (load.node, load.fetch_from) == ("n2", "n1")


def test_replicas_that_an_operator_wants_go_to_different_nodes() -> None:
    nodes = [node_beat("n1", memory_budget=1900 * MIB), node_beat("n2"), node_beat("n3")]
    snapshot = fleet("n1", "n2", "n3", nodes=nodes, waiting={}, desired={MODEL: Desired(replicas=3)})

    assert sorted(loads(plan(snapshot))) == [(MODEL, "n1"), (MODEL, "n2"), (MODEL, "n3")]
    missing_one = replace(snapshot, instances=[ready("n1"), ready("n3")])
    assert loads(plan(missing_one)) == [(MODEL, "n2")]


def test_replicas_share_a_node_where_there_are_not_enough_nodes() -> None:
    result = plan(fleet("n1", waiting={}, desired={MODEL: Desired(replicas=2)}))

    assert loads(result) == [(MODEL, "n1"), (MODEL, "n1")]


def test_replicas_that_the_file_of_a_node_asks_for_are_kept_loaded() -> None:
    minimum = {"n1": {"min_replicas": 2}}
    models = {MODEL: model_info(min_replicas=2)}
    result = plan(fleet("n1", "n2", said=minimum, models=models, waiting={}))

    assert sorted(loads(result)) == [(MODEL, "n1"), (MODEL, "n2")]


def test_of_a_wanted_number_of_replicas_only_those_beyond_may_leave() -> None:
    instances = [ready("n1"), ready("n2"), ready("n3")]
    snapshot = fleet("n1", "n2", "n3", instances=instances, waiting={}, desired={MODEL: Desired(replicas=2)})

    assert len(plan(snapshot).unloads) == 1


def backlog(waiting: int, *, job_s: float = 2.0, **fields: Any) -> Snapshot:
    """Three nodes; n1 works on the backlog with its four slots."""
    there = ready("n1", slots_used=4, n_slots=4, job_s=job_s)
    return fleet("n1", "n2", "n3", **{"instances": [there], "waiting": {ROUTE: waiting}, **fields})


def test_a_replica_is_added_when_the_backlog_outlasts_a_load_by_far() -> None:
    # A load takes 5 s; 31 jobs of 2 s for four slots take 15.5 s, 30 take 15.
    assert loads(plan(backlog(30))) == []
    result = plan(backlog(31))

    assert loads(result) in ([(MODEL, "n2")], [(MODEL, "n3")])
    assert "31 jobs of 2.0 s wait for 4 slots at work, which takes 16 s" in result.loads[0].reason


def test_as_many_replicas_are_added_at_once_as_the_backlog_is_worth() -> None:
    # 61 jobs take two instances 15.25 s.
    assert len(plan(backlog(60)).loads) == 1
    result = plan(backlog(61))

    assert sorted(node for _, node in loads(result)) == ["n2", "n3"]
    assert "4 slots at work (replicas to come: 1), which takes 15 s" in result.loads[1].reason


@pytest.mark.parametrize(
    "other",
    [ready("n2", state=InstanceState.LOADING, ready_ms=0), ready("n2", slots_used=0)],
    ids=["loading", "just loaded"],
)
def test_one_that_is_coming_counts_before_another_is_added(other: InstanceBeat) -> None:
    there = ready("n1", slots_used=4, n_slots=4, job_s=2.0)

    assert loads(plan(backlog(60, instances=[there, other]))) == []
    assert loads(plan(backlog(61, instances=[there, other]))) == [(MODEL, "n3")]


def test_no_more_replicas_are_added_than_an_operator_allows() -> None:
    offers = {MODEL: {NodeId(n): model_info(max_replicas=2) for n in ("n1", "n2", "n3")}}

    assert len(plan(backlog(1000, offers=offers)).loads) == 1


def test_a_backlog_of_bulk_jobs_that_leave_a_slot_to_others_counts_too() -> None:
    there = ready("n1", slots_used=3, n_slots=4, job_s=2.0)

    assert len(plan(backlog(31, instances=[there])).loads) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"instances": [ready("n1", slots_used=4, job_s=0)]},  # nothing is known of its jobs
        {"instances": [ready("n1", slots_used=1, job_s=9)]},  # most slots are free
        {"instances": [ready(f"n{n}", slots_used=4, job_s=9) for n in (1, 2, 3)]},  # each node has one
        {"offers": {MODEL: {NodeId(n): model_info(max_replicas=1) for n in ("n1", "n2", "n3")}}},
    ],
)
def test_no_replica_is_added_where_it_is_not_known_to_help(fields: dict[str, Any]) -> None:
    assert loads(plan(backlog(1000, **fields))) == []


def test_a_cold_burst_loads_a_model_once() -> None:
    snapshot = fleet("n1", "n2", "n3", waiting={ROUTE: 100})
    (load,) = plan(snapshot).loads
    coming = instance_beat("tiny-1", node=load.node, state=InstanceState.REQUESTED, resident_bytes=0)

    for state in (InstanceState.REQUESTED, InstanceState.STARTING, InstanceState.LOADING, InstanceState.WARMING):
        up = coming.model_copy(update={"state": state})
        assert loads(plan(replace(snapshot, instances=[up]))) == []


def test_no_replica_is_added_while_another_model_waits_for_memory() -> None:
    big = ModelId("big")
    snapshot = backlog(1000)
    offers = {**snapshot.offers, big: {NodeId("n1"): model_info(big, required_bytes=950 * MIB)}}
    models = {**snapshot.models, big: model_info(big)}
    result = plan(replace(snapshot, offers=offers, models=models, waiting={ROUTE: 1000, Route(big): 1}))

    assert loads(result) == []


def test_room_for_a_replica_is_made_only_when_it_gains_more_than_it_costs() -> None:
    # 1000 MiB are full on n2. What is idle there took 60 s to load and was just used: 60 s of regret.
    full = ready(
        "n2", model="x", reserved_bytes=950 * MIB, resident_bytes=950 * MIB, requested_ms=NOW - 75_000,
        ready_ms=NOW - 15_000, last_used_ms=NOW - 15_000,
    )  # fmt: skip
    there = ready("n1", slots_used=4, job_s=2.0)
    snapshot = fleet("n1", "n2", instances=[there, full], waiting={ROUTE: 100})

    assert plan(snapshot).unloads == [], "50 s of backlog: a second one would gain 22 s"
    assert [u.instance for u in plan(replace(snapshot, waiting={ROUTE: 300})).unloads] == ["tiny-n2"]


def test_a_replica_that_idles_beside_another_is_unloaded_before_its_keep_alive() -> None:
    def after(seconds: int, *others: InstanceBeat) -> list[str]:
        idle = ready("n1", last_used_ms=NOW - seconds * 1000)
        return [u.instance for u in plan(fleet("n1", "n2", instances=[idle, *others], waiting={})).unloads]

    busy = ready("n2", slots_used=1)
    assert after(61, busy) == ["tiny-n1"]
    assert after(60, busy) == []
    assert after(61) == [], "alone it stays"
    fast_beside_idle_deterministic = busy.model_copy(update={"numerics": "deterministic"})
    assert after(61, fast_beside_idle_deterministic) == ["tiny-n1"]


def test_of_replicas_that_idle_together_one_stays() -> None:
    def idle(node: str) -> InstanceBeat:
        return ready(node, last_used_ms=NOW - 61_000)

    assert len(plan(fleet("n1", "n2", "n3", instances=[idle("n1"), idle("n2"), idle("n3")], waiting={})).unloads) == 2


def test_a_node_pins_its_own_instance_only() -> None:
    def full(node: str) -> InstanceBeat:
        return ready(node, model="x", reserved_bytes=950 * MIB, resident_bytes=950 * MIB)

    both = {NodeId("n1"): model_info(), NodeId("n2"): model_info()}
    offers = {MODEL: both, ModelId("x"): {NodeId("n1"): model_info("x", pinned=True)}}
    result = plan(fleet("n1", "n2", offers=offers, instances=[full("n1"), full("n2")]))

    assert [u.instance for u in result.unloads] == ["tiny-n2"]
