"""Faults between hosts: cables that are cut, machines that vanish, coordinators that take over.

Bounds are those of the design, where a beat lives 10 s and a leadership 5; `make faults` adds more of them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from packtrain.broker.states import InstanceState
from tests.support.fault_table import LOAD_S, inject, start_load
from tests.support.fleets import eventually
from tests.support.host_fleet import HostFleet, host_fleet

pytestmark = pytest.mark.integration

NODE_TTL_S = 10
TICK_S = 1
MODELS: dict[str, dict[str, Any]] = {
    "steady": {"n_slots": 8, "n_ctx": 512, "step_ms": 30},
    "not-on-n1": {},
    "not-on-n2": {},
}
DIES = {"dies": signal.SIGKILL}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostFleet]:
    scripts = {"n1": {"not-on-n1": DIES}, "n2": {"not-on-n2": DIES}}
    with host_fleet(tmp_path_factory.mktemp("fleet"), MODELS, "n1", "n2", scripts=scripts) as running:
        running.client.generate("steady", "warm up")
        yield running


def test_a_load_that_dies_by_memory_is_taken_over_by_the_next_node(fleet: HostFleet) -> None:
    load = start_load(fleet.client, fleet.redis)
    busy = str(load.jobs[0].status().node)
    (other,) = {"n1", "n2"} - {busy}  # it has more memory free, and so is asked first

    with inject("load dies by memory", load, TICK_S):
        job = fleet.client.submit(f"not-on-{other}", "large")

    assert job.result(timeout=60).node == busy
    (failed,) = fleet.instances(f"not-on-{other}", other, InstanceState.FAILED)
    assert "killed by SIGKILL" in failed.reason


def test_a_client_whose_cable_was_cut_for_a_while_reads_on_where_it_was(fleet: HostFleet) -> None:
    load = start_load(fleet.client, fleet.redis)

    # Its reads give up after 5 s without a word.
    with inject("client's cable cut, and healed", load, 6 + TICK_S, until=lambda: load.seen == load.expected) as fault:
        fleet.laptop.cut()
        eventually(lambda: min(load.progress()) >= 100, "the jobs to go on without it")
        fleet.laptop.heal()
        fault.is_over(load)

    assert {job.status().epoch for job in load.jobs} == {1}


def test_a_node_that_vanishes_for_good_costs_time_but_no_token(fleet: HostFleet) -> None:
    load = start_load(fleet.client, fleet.redis)
    (job, *_) = load.jobs
    lost = fleet.beat(str(job.status().instance))
    assert lost is not None
    node = fleet.nodes[lost.node]

    with inject("node vanishes for good", load, bound_s=NODE_TTL_S + 2 * TICK_S + LOAD_S):
        node.host.vanish()

    after = eventually(lambda: fleet.instances(node=lost.node, state=InstanceState.LOST), "the loss")
    assert (lost.instance, f"its node {lost.node} reports no more") in [(i.instance, i.reason) for i in after]
    assert fleet.alive() == {"n1", "n2"} - {lost.node}
    # The same machine, when somebody has found the plug.
    node.host.heal()
    node.start()
    eventually(lambda: lost.node in fleet.alive(), "it to come back", 90)


def test_a_standby_leads_when_the_coordinator_is_killed(fleet: HostFleet) -> None:
    fleet.start_coordinator(fleet.laptop)
    load, term = start_load(fleet.client, fleet.redis), fleet.term()
    leader = eventually(fleet.leader, "somebody to lead")

    with inject("kill -9 of the coordinator, a standby elsewhere", load, 6.5, until=lambda: fleet.term() > term):
        leader.kill()

    assert fleet.leader() not in (None, leader)
    assert {job.status().epoch for job in load.jobs} == {1}
