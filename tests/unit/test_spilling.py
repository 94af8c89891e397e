"""Which waiting jobs of a name with several targets go to another, and how the coordinator moves them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker import hops
from packtrain.broker.beats import InstanceBeat
from packtrain.broker.errors import FleetLoop
from packtrain.broker.ids import JobId, ModelId, Route, route_of
from packtrain.broker.job_spec import MAX_VIA
from packtrain.broker.jobs import Movable
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.placement import MIB, Snapshot
from packtrain.broker.placement.view import View
from packtrain.broker.rates import Rate
from packtrain.broker.spilling import Outlook, choose, outlook_of, spill
from packtrain.broker.states import InstanceState
from tests.support.factories import instance_beat, model_info, node_beat

pytestmark = pytest.mark.unit

NEAR, FAR, LAST = TARGETS = (ModelId("near"), ModelId("far"), ModelId("last"))
IDLE = Outlook(num_free=8)


def job(
    ahead: int = 0, *, waited_s: float = 0, spill_s: float | None = 20, failed: set[ModelId] | None = None
) -> Movable:
    spill_ms = None if spill_s is None else int(spill_s * 1000)
    return Movable(
        JobId(f"j{ahead}"), "interactive", ahead, int(waited_s * 1000), spill_ms, TARGETS, frozenset(failed or ())
    )


def target(moved: Movable, near: Outlook, far: Outlook = IDLE, last: Outlook = IDLE) -> ModelId | None:
    found = choose(moved, NEAR, {NEAR: near, FAR: far, LAST: last})
    return found.target if found else None


def test_a_job_stays_while_its_wait_keeps_to_the_bound() -> None:
    busy = Outlook(num_free=0, gap_s=2)
    assert target(job(9), busy) is None
    assert target(job(10), busy) == FAR
    assert target(job(10, spill_s=None), busy) is None
    assert target(job(1000), Outlook(num_free=4)) is None  # nobody knows how fast


def test_a_job_that_has_waited_its_bound_goes_whatever_was_expected() -> None:
    assert target(job(3, waited_s=21), Outlook(num_free=0)) == FAR
    assert target(job(3, waited_s=21), Outlook(load_s=None)) == FAR
    assert target(job(3, waited_s=19), Outlook(load_s=None)) is None
    assert target(job(0, waited_s=21), Outlook(num_free=1)) is None  # its turn comes now


def test_a_load_counts_as_a_wait() -> None:
    assert target(job(), Outlook(load_s=19)) is None
    assert target(job(), Outlook(load_s=21)) == FAR


def test_a_job_whose_model_nobody_offers_goes_at_once() -> None:
    gone = Outlook(is_offered=False)
    assert target(job(spill_s=None), gone) == FAR
    assert target(job(), gone, far=gone) == LAST
    assert target(job(), gone, far=gone, last=gone) is None


def test_no_job_goes_where_it_would_wait_longer_or_has_failed() -> None:
    busy, full = Outlook(num_free=0, gap_s=3), Outlook(num_free=0, gap_s=3, num_waiting=50)
    assert target(job(10), busy, far=full) == LAST
    assert target(job(10), busy, far=full, last=full) is None
    assert target(job(10), busy, far=Outlook(gap_s=3, num_waiting=8)) == LAST  # 27 s; the other one 0
    assert target(job(10), busy, far=Outlook(gap_s=3, num_waiting=8), last=full) == FAR  # better than here
    assert target(job(10, failed={FAR}), busy) == LAST


def test_those_that_go_count_for_those_that_follow() -> None:
    waiting = [job(ahead) for ahead in range(29, -1, -1)]
    moved = spill(
        waiting, NEAR, {NEAR: Outlook(num_free=0, gap_s=2), FAR: Outlook(num_free=2, gap_s=5), LAST: Outlook(False)}
    )

    # Ten keep to 20 s here. Of the others those go that would wait less there than here, last ones first.
    assert [each.job.ahead for each in moved] == [*range(29, 29 - len(moved), -1)]
    assert 5 <= len(moved) < 20


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=40, unique=True), st.integers(0, 8),
    st.none() | st.floats(0.01, 10), st.integers(0, 50), st.booleans(), st.floats(0, 60),
)  # fmt: skip
def test_every_move_is_for_the_better(
    places: list[int], free: int, gap_s: float | None, waiting: int, offered: bool, waited_s: float
) -> None:
    near = Outlook(is_offered=offered, num_free=free, gap_s=1.5)
    far = Outlook(num_free=free, gap_s=gap_s, num_waiting=waiting)
    found = spill([job(p, waited_s=waited_s) for p in sorted(places, reverse=True)], NEAR, {NEAR: near, FAR: far})

    for count, moved in enumerate(found):
        here, there = near.wait_s(moved.job.ahead), far.wait_s(waiting + count)
        assert moved.target == FAR
        assert here is not None
        assert there is None or there < here
        assert not offered or here > 20 or waited_s > 20


# What is known of a target.


def outlook(
    info: ModelInfo, *instances: InstanceBeat, held_up: bool = False, rate: Rate | None = None, **more: Any
) -> Outlook:
    now = Snapshot(
        now_ms=100_000, nodes=[node_beat(models=(info.id,), **more)], instances=instances,
        models={ModelId(info.id): info}, waiting={Route(info.id): 5},
    )  # fmt: skip
    return outlook_of(Route(info.id), View(now), rate, is_held_up=held_up)


def test_the_outlook_is_made_of_what_is_measured() -> None:
    near = model_info("near", required_bytes=1000 * MIB)
    up = instance_beat("near-1", model="near", slots_used=3)
    assert outlook(near, up, rate=Rate(1, 2000, 9000)) == Outlook(num_free=1, gap_s=2, load_s=0, num_waiting=5)

    loading = instance_beat("near-1", model="near", state=InstanceState.LOADING, requested_ms=99_000, resident_bytes=0)
    assert 1 < (outlook(near, loading).load_s or 0) < 2
    assert 4 < (outlook(near).load_s or 0) < 5
    assert outlook(near, held_up=True).load_s is None
    before = instance_beat("near-1", model="near", state=InstanceState.STOPPED, requested_ms=1000, ready_ms=31_000)
    assert outlook(near, before).load_s == 30
    assert not outlook(near, draining=True).is_offered
    assert not outlook(model_info("near", nodes={"gpu": "yes"})).is_offered


def test_a_remote_model_offers_nothing_to_deterministic_jobs() -> None:
    info = model_info("far", remote="api.example.com big")
    now = Snapshot(
        now_ms=0, nodes=[node_beat(models=("far",), not_deterministic={"far": "no proof"})], models={FAR: info}
    )
    assert outlook_of(route_of(FAR), View(now), None, is_held_up=False).is_offered
    assert not outlook_of(route_of(FAR, deterministic=True), View(now), None, is_held_up=False).is_offered


def test_an_unknown_wait_is_no_number_and_no_offer_is_for_ever() -> None:
    assert Outlook(gap_s=None).wait_s(3) is None
    assert Outlook(is_offered=False).wait_s(0) == math.inf


# Trails.


def test_a_job_goes_through_a_fleet_once_and_through_few() -> None:
    ours, other = hops.fleet_id("a"), hops.fleet_id("b")
    assert hops.trail_from(ours, (other,), model="far") == (other, ours)
    assert hops.parse_trail(", ".join((other, ours))) == (other, ours)
    with pytest.raises(FleetLoop, match="each other's remote"):
        hops.trail_from(ours, (ours, other), model="far")
    many = tuple(hops.fleet_id(str(number)) for number in range(MAX_VIA))
    with pytest.raises(FleetLoop, match="8 is the most"):
        hops.trail_from(ours, many, model="far")
    with pytest.raises(FleetLoop):
        hops.parse_trail(", ".join((*many, ours)))


@pytest.mark.parametrize("header", [None, "", "x", "0123", "0123456789abcdef, x\r\n"])
def test_a_trail_that_no_packtrain_wrote_is_none(header: str | None) -> None:
    assert hops.parse_trail(header) == ()
