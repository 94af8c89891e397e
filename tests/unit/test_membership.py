"""What becomes of a part of a group when the others of it live, leave or die."""

from __future__ import annotations

import pytest

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.ids import InstanceId
from packtrain.broker.orders import ShardOrder
from packtrain.broker.states import InstanceState
from packtrain.workers.shards.membership import GATHER_S, GO, GONE_S, WAIT, fate_of_head, fate_of_shard, progress
from tests.support.factories import instance_beat

pytestmark = pytest.mark.unit

ORDERS = [ShardOrder(instance=f"s{n}", node=f"n{n}", layers=2, certificate="") for n in (1, 2)]
UP = ("STARTING", "LOADING", "WARMING")


def shard(number: int, state: str = "LOADING", **more: object) -> InstanceBeat:
    said = {"address": f"10.0.0.{number}:7", "group": "h", "state": InstanceState(state), "node": f"n{number}", **more}
    return instance_beat(f"s{number}", **said)


def fate(*shards: InstanceBeat, missing_s: float = 0, waited_s: float = 0) -> tuple[str, str]:
    known = {InstanceId(beat.instance): beat for beat in shards}
    missing = {InstanceId(order.instance): missing_s for order in ORDERS if order.instance not in known}
    found = fate_of_head(ORDERS, known, missing_s=missing, waited_s=waited_s)
    return found.shall, found.reason


@pytest.mark.parametrize("state", InstanceState)
def test_a_shard_lives_as_long_as_its_head(state: InstanceState) -> None:
    found = fate_of_shard(instance_beat("h", state=state, node="attic", reason="why"), missing_s=0)

    if state.is_terminal:
        assert (found.shall, found.reason) == ("end", f"its head on attic is {state}: why")
    else:
        assert found == (GO if state in ("READY", "DRAINING") else WAIT)


def test_a_shard_whose_head_is_not_known_waits_for_the_life_of_a_beat() -> None:
    assert fate_of_shard(None, missing_s=GONE_S) == WAIT
    assert fate_of_shard(None, missing_s=GONE_S + 1).shall == "end"


def test_a_head_begins_when_all_its_shards_wait_for_it() -> None:
    assert fate(shard(1), shard(2)) == ("go", "")
    assert fate(shard(1), shard(2, "STARTING")) == ("wait", "waits for its shard on n2")
    assert fate(shard(1), shard(2, address="")) == ("wait", "waits for its shard on n2")
    assert fate(shard(2)) == ("wait", "waits for its shard on n1")
    assert fate(shard(1, "HOLDING"), shard(2, "HOLDING")) == ("go", "")


def test_a_head_that_waits_in_vain_ends_and_names_the_node() -> None:
    assert fate(shard(1), shard(2, "STARTING"), waited_s=GATHER_S + 1) == (
        "end", f"its shard on n2 did not come within {GATHER_S:.0f} s; see to that node",
    )  # fmt: skip
    assert fate(shard(1), missing_s=GONE_S + 1) == ("end", "nothing is known of its shard on n2 any more")
    assert fate(shard(1), shard(2), waited_s=GATHER_S + 1)[0] == "go"


@pytest.mark.parametrize("state", [state for state in InstanceState if state.is_terminal])
def test_a_shard_that_ended_ends_its_head_whatever_the_others_do(state: InstanceState) -> None:
    assert fate(shard(1, "DRAINING"), shard(2, state, reason="why")) == ("end", f"its shard on n2 is {state}: why")


def test_a_shard_that_must_leave_makes_its_head_drain() -> None:
    assert fate(shard(1, "HOLDING"), shard(2, "DRAINING", reason="the node drains")) == (
        "drain", "its shard on n2 must leave: the node drains",
    )  # fmt: skip


def test_progress_names_each_node() -> None:
    beats = [shard(1, resident_bytes=30 * 2**20, reserved_bytes=90 * 2**20), shard(2)]

    said = progress(ORDERS, {InstanceId(beat.instance): beat for beat in beats})

    assert said.startswith("n1 has 30 of at most 90 MiB; n2 has ")
