"""Placement over time: fleets that obey the planner for hours of virtual time keep their promises all along."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packtrain.broker.ids import ModelId
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.orders import Desired
from packtrain.broker.placement import MAX_LOAD_FAILURES, MAX_WAIT_MS, MIB, Plan, Snapshot
from packtrain.broker.states import InstanceState
from tests.support.factories import model_info
from tests.support.world import START_MS, Job, World

pytestmark = pytest.mark.unit

NAMES = ("a", "b", "c", "d", "e")


def model(name: str, mib: int = 600, **fields: object) -> ModelInfo:
    return model_info(name, **{"required_bytes": mib * MIB, "n_slots": 2, **fields})


def jobs(names: str, *, run_ms: int = 2000, every_ms: int = 0) -> list[Job]:
    """One after another, each for the model of its letter."""
    return [Job(ModelId(name), START_MS + n * every_ms, run_ms) for n, name in enumerate(names)]


def test_jobs_that_come_by_turns_run_model_by_model() -> None:
    world = World({"n1": 1000}, [model("a"), model("b"), model("c")], jobs("abc" * 10))

    assert world.run(600)
    assert len(world.loads) == 3


def test_models_with_endless_work_take_turns_in_one_place() -> None:
    world = World({"n1": 1000}, [model("a"), model("b"), model("c")], jobs("abc" * 400, run_ms=5000))
    world.run(900)

    begun = {name: sorted(j.begun_ms for j in world.jobs if j.model == name and j.begun_ms) for name in "abc"}
    for name, times in begun.items():
        gaps = [later - earlier for earlier, later in zip([START_MS, *times], [*times, world.now_ms], strict=True)]
        # Of three that share a place each waits for the two others, and for three loads of 5 s and drains of 5 s.
        assert max(gaps) <= 2 * MAX_WAIT_MS + 30_000, name
    swaps = len(world.loads)
    assert swaps <= 900_000 / (MAX_WAIT_MS / 2) + 3, "no turn is much shorter than half the longest wait"


def test_a_cold_burst_loads_its_model_once() -> None:
    world = World({"n1": 1000, "n2": 1000, "n3": 1000}, [model("a", n_slots=8)], jobs("a" * 100, run_ms=500))

    assert world.run(60)
    assert len(world.loads) == 1


def test_a_long_backlog_spreads_over_the_nodes_and_what_is_spare_leaves() -> None:
    world = World({"n1": 1000, "n2": 1000, "n3": 1000}, [model("a")], jobs("a" * 300))

    assert world.run(400)
    assert sorted(load.node for _, load in world.loads) == ["n1", "n2", "n3"]
    for _ in range(100):
        world.tick()
    assert sum(u.beat.state is InstanceState.READY for u in world.units) == 1


def test_a_load_that_fails_everywhere_is_tried_on_each_node_and_its_jobs_end() -> None:
    world = World({"n1": 2000, "n2": 2000}, [model("a"), model("b")], jobs("aab"), broken={("n1", "a"), ("n2", "a")})

    assert world.run(120)
    assert [job.error for job in world.jobs] == ["model_load_failed", "model_load_failed", ""]
    tried = [load.node for _, load in world.loads if load.model == "a"]
    assert sorted(tried) == ["n1"] * MAX_LOAD_FAILURES + ["n2"] * MAX_LOAD_FAILURES
    assert tried[0] != tried[1], "the next try is on the next node"


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Up to three nodes, five models and forty jobs; some loads fail."""
    nodes = {f"n{n}": draw(st.integers(4, 12)) * 100 for n in range(draw(st.integers(1, 3)))}
    models = [
        model(
            name,
            draw(st.integers(1, 9)) * 100,
            n_slots=draw(st.integers(1, 3)),
            keep_alive_s=draw(st.sampled_from([1.0, 300.0, -1.0])),
            pinned=draw(st.integers(0, 9)) == 0,
            max_replicas=draw(st.integers(0, 2)),
        )
        for name in NAMES[: draw(st.integers(1, 5))]
    ]
    names = st.sampled_from([ModelId(info.id) for info in models])
    job = st.builds(
        Job,
        names,
        st.integers(0, 120).map(lambda s: START_MS + s * 1000),
        st.sampled_from([100, 2000, 30_000]),
    )
    load_ms = {info.id: draw(st.sampled_from([1000, 8000, 40_000])) for info in models}
    broken = draw(st.sets(st.tuples(st.sampled_from(list(nodes)), st.sampled_from(NAMES)), max_size=3))
    wanted = draw(
        st.dictionaries(st.sampled_from([ModelId(i.id) for i in models]), st.just(Desired(replicas=1)), max_size=1)
    )
    return World(
        nodes,
        models,
        draw(st.lists(job, min_size=1, max_size=40)),
        load_ms=load_ms.__getitem__,
        broken=broken,
        desired=wanted,
    )


@settings(deadline=None, max_examples=25)
@given(world=worlds())
def test_no_fleet_exceeds_a_budget_or_unloads_what_must_stay_and_every_job_that_can_run_does(world: World) -> None:
    def check(snapshot: Snapshot, result: Plan) -> None:
        by_id = {beat.instance: beat for beat in snapshot.instances}
        for name, node in world.nodes.items():
            assert world.held(name) <= node.memory_budget
        for unload in result.unloads:
            victim = by_id[unload.instance]
            assert victim.state is InstanceState.READY
            assert not world.models[unload.model].pinned
            if victim.slots_used or world.waiting(unload.model):
                assert "have waited" in unload.reason, "work is driven out only by those that waited too long"

    # Pinned models and those that an operator wants never leave, so others may wait for ever; else all jobs end.
    stays = any(info.pinned for info in world.models.values()) or world.desired
    ended = world.run(400 if stays else 3000, check)
    assert ended or stays, [job for job in world.jobs if job.ended_ms is None]

    largest = max(node.memory_budget for node in world.nodes.values())
    for job in world.jobs:
        if job.error == "model_too_large":
            assert world.models[job.model].required_bytes > largest
        elif job.error:
            assert job.error == "model_load_failed"
            assert any(name == job.model for _, name in world.broken)
