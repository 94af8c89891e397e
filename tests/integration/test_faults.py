"""Faults on real processes: kill -9, SIGSTOP, a broker that restarts. Every job finishes exactly once in effect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from packtrain.broker import keys
from packtrain.broker.celery_app import Doorbell, make_app
from packtrain.broker.connection import connect
from packtrain.broker.ids import NodeId, Route, new_job_id
from packtrain.broker.orders import NodeCommand
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.client import JobState
from tests.support.factories import spec
from tests.support.fault_table import LOAD_S, PROMPT, answer, inject, start_load, until_on_file
from tests.support.fleets import LEASE_MS, Fleet, eventually, scripted_fleet, until_first_text

pytestmark = pytest.mark.integration

#: 30 ms a step: an answer of 100 tokens takes 3 s, long enough for a fault to hit the middle of it.
MODELS: dict[str, dict[str, Any]] = {"steady": {"n_slots": 8, "n_ctx": 512, "step_ms": 30}}
ANSWER = answer(PROMPT, 100)
#: An agent sees an exit within 0.25 s, a coordinator plans each second, a broker takes 2 s to come back.
SEEN_S, TICK_S, BROKER_S = 0.25, 1.0, 5.0
LEASE_S = LEASE_MS / 1000


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with scripted_fleet(tmp_path, MODELS) as running:
        running.client.generate("steady", "warm up")
        yield running


@pytest.fixture
def redis(fleet: Fleet) -> Iterator[Redis]:
    client = connect(fleet.url, name="test")
    yield client
    client.close()


def test_killing_an_instance_in_mid_generation_costs_time_but_no_token(fleet: Fleet, redis: Redis) -> None:
    load = start_load(fleet.client, redis)

    with inject("kill -9 of an instance", load, SEEN_S + 2 * TICK_S + LOAD_S):
        fleet.kill(fleet.instance("steady").pid)

    assert {job.status().attempts for job in load.jobs} == {1}


def test_killing_an_instance_in_mid_generation_costs_no_logprob(fleet: Fleet) -> None:
    streamed, unread = (
        fleet.client.submit("steady", PROMPT, max_tokens=100, logprobs=1, stream=stream) for stream in (True, False)
    )
    for job in (streamed, unread):
        until_first_text(job)

    fleet.kill(fleet.instance("steady").pid)

    for job in (streamed, unread):
        result = job.result(timeout=60)
        told = [entry for delta in job.deltas() for entry in delta.logprobs]
        assert "".join(entry.text for entry in result.logprobs) == ANSWER
        assert tuple(told) == result.logprobs
        assert job.status().attempts == 1


def test_late_writes_of_a_frozen_instance_are_refused(fleet: Fleet, redis: Redis) -> None:
    load = start_load(fleet.client, redis)
    frozen, jobs = fleet.instance("steady"), load.jobs

    with inject("instance frozen, and awake again", load, LEASE_S + 2 * TICK_S):
        fleet.kill(frozen.pid, signal.SIGSTOP)
        eventually(lambda: all(j.status().state is JobState.QUEUED for j in jobs), "the leases to lapse", LEASE_S + 10)
        # It wakes up in the middle of a step and writes what it has.
        fleet.kill(frozen.pid, signal.SIGCONT)

    log = fleet.running.home / "logs" / "agent.log"
    eventually(lambda: all(f"{job.id} was lost to epoch 1" in log.read_text() for job in jobs), "the refusals")
    assert all(job.status().epoch > 1 for job in jobs)


def test_a_broker_killed_and_restarted_loses_nothing(fleet: Fleet, redis: Redis) -> None:
    load = start_load(fleet.client, redis)
    waiting = [fleet.client.submit("steady", f"waiting {i}") for i in range(20)]

    until_on_file(redis)

    with inject("kill -9 of the broker", load, BROKER_S):
        broker_process(redis).kill()

    assert [job.result(timeout=60).text for job in waiting] == [f"waiting {i}"[::-1] for i in range(20)]


def test_a_lost_doorbell_is_rung_again(fleet: Fleet, redis: Redis) -> None:
    instance = fleet.instance("steady")
    # A stopped worker's blocked pop still takes the bell off the list; killed, it takes the bell with it.
    fleet.kill(instance.pid, signal.SIGSTOP)
    jobs = [fleet.client.submit("steady", f"lost bell {i}") for i in range(3)]
    eventually(lambda: redis.llen("model.steady") == 2, "one bell to be popped")
    fleet.kill(instance.pid)

    assert [job.result(timeout=60).text for job in jobs] == [f"lost bell {i}"[::-1] for i in range(3)]


def test_a_job_whose_bell_was_never_rung_runs(fleet: Fleet, redis: Redis) -> None:
    job_id = new_job_id()

    RedisJobs(redis).submit(job_id, spec("no bell", model="steady"), max_waiting=10)  # the client died right here

    assert fleet.client.job(job_id).result(timeout=20).text == "lleb on"


def test_spare_doorbells_do_no_harm(fleet: Fleet) -> None:
    Doorbell(make_app(fleet.url, name="test")).ring(Route("steady"), 50)

    assert fleet.client.generate("steady", "after many bells").text == "slleb ynam retfa"


def test_connections_cut_by_the_broker_run_no_job_twice(fleet: Fleet, redis: Redis) -> None:
    load = start_load(fleet.client, redis)

    with inject("all connections cut by the broker", load, 2 * TICK_S):
        redis.client_kill_filter(_type="normal", skipme=True)

    assert {job.status().epoch for job in load.jobs} == {1}


def test_killing_the_agent_costs_time_but_no_token(fleet: Fleet, redis: Redis) -> None:
    load = start_load(fleet.client, redis)
    instance = fleet.instance("steady")

    # Its instances drain, 5 s here, and finish what they can in that time.
    with inject("kill -9 of an agent", load, 2 * TICK_S + LOAD_S):
        fleet.kill(fleet.running.pids["agent"])

    eventually(lambda: not psutil.pid_exists(instance.pid), "the orphaned instance to end")
    assert fleet.client.generate("steady", "again", timeout=60).text == "niaga"


def test_killing_the_coordinator_disturbs_no_running_job(fleet: Fleet, redis: Redis) -> None:
    load = start_load(fleet.client, redis)
    term = int(str(redis.get(keys.TERM)))

    # The restarted one is another candidate: the leadership of the dead one has to lapse, 5 s.
    with inject("kill -9 of the coordinator", load, 6.5, until=lambda: int(str(redis.get(keys.TERM))) > term):
        fleet.kill(fleet.running.pids["coordinator"])


def test_a_busy_instance_outlives_neither_its_agent_nor_its_broker(fleet: Fleet, redis: Redis) -> None:
    load = [fleet.client.submit("steady", PROMPT, max_tokens=100) for _ in range(4)]
    until_first_text(load[0])
    instance = psutil.Process(fleet.instance("steady").pid)
    broker, up = broker_process(redis), fleet.running.supervisor

    up.kill()
    broker.wait(10)

    eventually(lambda: not instance.is_running(), "the instance to end without anybody's help", 40)


def test_a_command_of_an_older_term_is_refused(fleet: Fleet) -> None:
    instance = fleet.instance("steady")
    stale = NodeCommand(id="old", term=0, verb="unload", instance=instance.instance, model="steady")

    Doorbell(make_app(fleet.url, name="test")).command(NodeId("n1"), stale)

    log = fleet.running.home / "logs" / "agent.log"
    eventually(lambda: "term 0 is over" in log.read_text(), "the refusal")
    assert fleet.instance("steady").instance == instance.instance


def test_a_second_agent_of_the_same_node_is_refused(fleet: Fleet) -> None:
    environment = {
        **os.environ,
        "PACKTRAIN_URL": fleet.url,
        "PACKTRAIN_HOME": str(fleet.running.home),
        "PACKTRAIN_NODE": "n1",
        "PACKTRAIN_SCRIPTED": "1",
    }
    instance = fleet.instance("steady")

    second = subprocess.run(
        [sys.executable, "-m", "packtrain.workers.agent_main"], env=environment, capture_output=True, timeout=60
    )

    assert second.returncode == 1
    assert b"already runs" in second.stderr
    assert psutil.pid_exists(instance.pid)


def test_an_instance_that_hangs_is_killed_and_its_job_is_given_up(tmp_path: Path) -> None:
    with scripted_fleet(tmp_path, {"h": {"n_slots": 2}}, PACKTRAIN_STALL_S="2") as fleet:
        fleet.client.generate("h", "warm up")
        job = fleet.client.submit("h", "!hang")

        eventually(lambda: job.status().state.is_terminal, "the job to be given up", 60)

        assert job.status().state is JobState.DEAD
        assert fleet.client.generate("h", "alive", timeout=60).text == "evila"


def test_unloading_a_busy_instance_gives_its_jobs_back_with_their_tokens(tmp_path: Path) -> None:
    with scripted_fleet(tmp_path, MODELS, PACKTRAIN_DRAIN_S="0.2") as fleet:
        redis = connect(fleet.url, name="test")
        fleet.client.generate("steady", "warm up")
        load = start_load(fleet.client, redis)

        with inject("busy instance unloaded", load, 0.2 + 2 * TICK_S + LOAD_S):
            fleet.client.unload("steady")

        assert {job.status().attempts for job in load.jobs} == {0}
        redis.close()


def test_killing_up_itself_leaves_nothing_behind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    (home / "models" / "m.scripted.json").write_text("{}")
    program = "import sys; from packtrain.client.cli.main import main; main()"
    arguments = ["up", "--home", str(home), "--port", "0", "--node", "n1", "--drain", "1", "--no-http", "--quiet"]
    environment = {"PACKTRAIN_SCRIPTED": "1", "PATH": "/usr/bin:/bin"}
    up = subprocess.Popen([sys.executable, "-c", program, *arguments], env=environment, stdin=subprocess.DEVNULL)
    try:
        eventually(lambda: (home / "fleet.json").exists(), "the fleet to be announced")
        children: list[psutil.Process] = []

        def all_are_up() -> bool:
            children[:] = psutil.Process(up.pid).children(recursive=True)
            return len(children) >= 4

        eventually(all_are_up, "all processes")
    finally:
        up.kill()
        up.wait()

    eventually(lambda: not any(child.is_running() for child in children), f"{children} to end", 30)


def broker_process(redis: Redis) -> psutil.Process:
    """The server behind a client."""
    return psutil.Process(int(redis.info("server")["process_id"]))


def test_the_same_home_serves_again_after_a_restart_with_its_jobs(tmp_path: Path) -> None:
    with scripted_fleet(tmp_path, MODELS) as fleet:
        waiting = fleet.client.submit("steady", "keep me", expires_in=3600)
        job_id = waiting.id
        redis = connect(fleet.url, name="test")
        broker_process(redis)
        redis.close()
    begin = time.monotonic()
    with scripted_fleet(tmp_path, MODELS) as fleet:
        assert fleet.client.job(job_id).result(timeout=30).text == "em peek"
    assert time.monotonic() - begin < 60
