"""Faults between hosts that take long to show: `make faults` runs them, `make test` does not."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from packtrain.broker.celery_app import Doorbell, make_app
from packtrain.broker.ids import NodeId
from packtrain.broker.orders import NodeCommand
from packtrain.broker.states import InstanceState
from packtrain.client import Job, JobState
from tests.support.fault_table import LOAD_S, Load, answer, inject, start_load, until_on_file, watch
from tests.support.fleets import eventually, until_first_text
from tests.support.host_fleet import LEASE_MS, HostFleet, Node, host_fleet

pytestmark = pytest.mark.faults

LEASE_S = LEASE_MS / 1000
NODE_TTL_S = 10
TICK_S = 1
#: A read or write on a connection that says nothing gives up after this long.
SOCKET_S = 5
RETRY_S = 1
MODELS: dict[str, dict[str, Any]] = {"steady": {"n_slots": 8, "n_ctx": 512, "step_ms": 30}}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostFleet]:
    with host_fleet(tmp_path_factory.mktemp("fleet"), MODELS, "n1", "n2") as running:
        running.client.generate("steady", "warm up")
        yield running


def start(fleet: HostFleet, num_tokens: int = 100) -> tuple[Load, Node]:
    """Jobs on one node, which is the only one that has their model."""
    eventually(lambda: len(fleet.alive()) == 2, "both nodes")
    running = {i.node for i in fleet.instances("steady", state=InstanceState.READY)}
    for node in sorted(running)[1:]:
        # What an earlier test left behind: one READY instance is what these tests begin with.
        (extra,) = fleet.instances("steady", node, InstanceState.READY)
        order = NodeCommand(id="x", term=fleet.term(), verb="unload", instance=extra.instance, model="steady")
        doorbell(fleet).command(NodeId(node), order)
        eventually(lambda extra=extra: fleet.beat(extra.instance).state.is_terminal, "the spare instance to end")  # type: ignore[misc,union-attr]
    load = start_load(fleet.client, fleet.redis, num_tokens=num_tokens)
    return load, fleet.nodes[str(load.jobs[0].status().node)]


def doorbell(fleet: HostFleet) -> Doorbell:
    return Doorbell(make_app(fleet.outer_url, name="test"))


def assert_undisturbed(load: Load) -> None:
    assert {(job.status().epoch, job.status().attempts) for job in load.jobs} == {(1, 0)}


def test_a_short_cut_moves_no_job(fleet: HostFleet) -> None:
    load, node = start(fleet)

    with inject("node's cable cut for 2 s, and healed", load, SOCKET_S + 2 * RETRY_S) as fault:
        node.host.cut()
        time.sleep(2)
        node.host.heal()
        fault.is_over(load)

    assert_undisturbed(load)


def test_jobs_of_a_node_whose_cable_is_cut_go_on_elsewhere_and_its_late_writes_are_refused(fleet: HostFleet) -> None:
    load, cut_off = start(fleet)

    with inject("node's cable cut both ways", load, NODE_TTL_S + 2 * TICK_S + LOAD_S):
        cut_off.host.cut()
        eventually(lambda: fleet.instances(node=cut_off.host.name, state=InstanceState.LOST), "the loss", 30)
    cut_off.host.heal()

    eventually(lambda: all(cut_off.said(f"{job.id} was lost to epoch 1") for job in load.jobs), "the refusals", 60)
    eventually(lambda: len(fleet.alive()) == 2, "the node to take part again")
    assert load.doubled() == 0


def test_a_node_that_hears_nothing_loses_its_jobs(fleet: HostFleet) -> None:
    load, node = start(fleet)

    with inject("node hears the broker no more (one way)", load, NODE_TTL_S + SOCKET_S + 2 * TICK_S + LOAD_S):
        fleet.head.mute(node.host)
        eventually(lambda: fleet.instances(node=node.host.name, state=InstanceState.LOST), "the loss", 40)
    fleet.head.unmute(node.host)


def test_a_node_that_is_not_heard_loses_its_jobs(fleet: HostFleet) -> None:
    load, node = start(fleet)

    with inject("broker hears the node no more (one way)", load, NODE_TTL_S + 2 * TICK_S + LOAD_S):
        node.host.mute(fleet.head)
        eventually(lambda: fleet.instances(node=node.host.name, state=InstanceState.LOST), "the loss", 40)
    node.host.unmute(fleet.head)


def test_the_brokers_own_cable_cut_loses_nothing(fleet: HostFleet) -> None:
    load, _ = start(fleet)

    with inject("broker's cable cut for 8 s, and healed", load, LEASE_S + SOCKET_S + 2 * RETRY_S) as fault:
        fleet.head.cut()
        time.sleep(8)
        fleet.head.heal()
        fault.is_over(load)


def test_a_frozen_agent_disturbs_no_running_job_and_takes_part_again(fleet: HostFleet) -> None:
    load, node = start(fleet, num_tokens=400)
    assert node.agent is not None

    with inject("agent frozen until its node is given up", load, TICK_S):
        node.agent.send_signal(signal.SIGSTOP)
    eventually(lambda: fleet.instances(node=node.host.name, state=InstanceState.LOST), "the loss", 30)
    node.agent.send_signal(signal.SIGCONT)

    assert_undisturbed(load)
    fleet.ready("steady", node=node.host.name)


def test_a_frozen_coordinator_is_succeeded_and_harmless_when_it_wakes(fleet: HostFleet) -> None:
    fleet.start_coordinator(fleet.laptop)
    load, node = start(fleet)
    frozen, term = eventually(fleet.leader, "somebody to lead"), fleet.term()

    with inject("coordinator frozen, a standby elsewhere", load, 6.5, until=lambda: fleet.term() > term):
        frozen.send_signal(signal.SIGSTOP)
    frozen.send_signal(signal.SIGCONT)

    with inject("two leaders: the older one commands", start_load(fleet.client, fleet.redis), TICK_S):
        instance = fleet.ready("steady", node=node.host.name).instance
        late = NodeCommand(id="late", term=term, verb="unload", instance=instance, model="steady")
        doorbell(fleet).command(NodeId(node.host.name), late)
        eventually(lambda: node.said(f"Refused late: term {term} is over"), "the refusal")
    assert fleet.leader() is not frozen
    frozen.kill()


def test_a_frozen_broker_loses_nothing(fleet: HostFleet) -> None:
    load, _ = start(fleet)
    assert fleet.broker is not None

    with inject("broker frozen for 8 s", load, LEASE_S + SOCKET_S + 2 * RETRY_S) as fault:
        fleet.broker.send_signal(signal.SIGSTOP)
        time.sleep(8)
        fleet.broker.send_signal(signal.SIGCONT)
        fault.is_over(load)


def test_a_broker_killed_on_its_host_loses_nothing(fleet: HostFleet) -> None:
    load, _ = start(fleet)
    assert fleet.broker is not None
    instance = fleet.ready("steady")
    until_on_file(fleet.redis)

    with inject("kill -9 of the broker, started again after 3 s", load, LEASE_S + 2 * RETRY_S) as fault:
        fleet.broker.kill()
        fleet.broker.wait()
        time.sleep(3)
        fleet.start_broker()
        fault.is_over(load)

    assert_undisturbed(load)
    # Whose consumer finds it again by itself.
    assert fleet.client.generate("steady", "again", timeout=30).instance == instance.instance


def test_a_power_loss_that_takes_the_last_writes_costs_no_token(fleet: HostFleet) -> None:
    """What `everysec` may lose: the end of the append-only file, cut off in the middle of a write."""
    load, _ = start(fleet, num_tokens=200)
    assert fleet.broker is not None
    begun = fleet.redis.info("persistence")["aof_current_size"]
    eventually(lambda: fleet.redis.info("persistence")["aof_current_size"] > begun + 20_000, "more writes")

    with inject("power loss of the broker, its last writes gone", load, 2 * LEASE_S + 2 * TICK_S) as fault:
        fleet.broker.kill()
        fleet.broker.wait()
        (log,) = (fleet.data / "appendonlydir").glob("*.incr.aof")
        with open(log, "r+b") as file:
            file.truncate(log.stat().st_size - 10_001)
        fleet.start_broker()
        fault.is_over(load)


def test_a_node_that_sleeps_and_returns_takes_part_again(fleet: HostFleet) -> None:
    load, node = start(fleet)

    with inject("node sleeps until it is given up", load, NODE_TTL_S + 2 * TICK_S + LOAD_S):
        node.host.signal_all(signal.SIGSTOP)
        eventually(lambda: fleet.instances(node=node.host.name, state=InstanceState.LOST), "the loss", 30)
    node.host.signal_all(signal.SIGCONT)

    eventually(lambda: len(fleet.alive()) == 2, "it to take part again")
    fleet.ready("steady", node=node.host.name)
    assert (load.lost(), load.doubled()) == (0, 0)


def test_a_job_outlives_its_client(fleet: HostFleet) -> None:
    program = (
        "from packtrain.client import Packtrain\n"
        "for text in Packtrain().submit('steady', 'orphan !long', max_tokens=100).stream(): pass\n"
    )
    client = fleet.laptop.start([sys.executable, "-c", program], fleet.env, fleet.folder / "client.log")

    def submitted() -> Job | None:
        newest = fleet.client.jobs(1)[0]
        return fleet.client.job(newest.id) if newest.model == "steady" and newest.finished_ms is None else None

    job = eventually(submitted, "the job")
    until_first_text(job)
    load = watch(fleet.redis, [job], [answer("orphan !long", 100)])  # somebody else, who reads it, too

    with inject("kill -9 of a client that reads", load, TICK_S):
        client.kill()
        client.wait()


def test_an_agent_that_is_killed_gives_its_jobs_back(fleet: HostFleet) -> None:
    load, node = start(fleet)
    assert node.agent is not None
    drain_s = float(node.env["PACKTRAIN_DRAIN_S"])

    with inject("kill -9 of an agent, started again at once", load, drain_s + NODE_TTL_S + TICK_S + LOAD_S):
        node.agent.kill()
        node.agent.wait()
        node.start()

    eventually(lambda: node.host.name in fleet.alive(), "the new agent")


def test_a_poison_job_amid_a_full_batch_ends_alone(fleet: HostFleet) -> None:
    eventually(lambda: len(fleet.alive()) == 2, "both nodes")
    load = start_load(fleet.client, fleet.redis, count=7, num_tokens=40)

    def is_over() -> bool:
        return poison.status().state.is_terminal

    # Two crashes hit the whole batch. Then each of it is a suspect and runs alone, 1.2 s, and so does the poison.
    with inject("poison job amid a full batch", load, 3 * (LOAD_S + TICK_S) + 8 * 1.2, until=is_over):
        poison = fleet.client.submit("steady", "!crash")

    assert poison.status().state is JobState.DEAD
    assert all(job.status().attempts <= 2 for job in load.jobs)
