"""Head and node in containers, as users run them: `make test-compose`. In the order of the file, on one fleet.

A real engine, our image as deploy/Dockerfile builds it, the compose files as they are, the real model.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Self, TypeVar

import pytest

from packtrain.broker.errors import TryLater
from packtrain.broker.states import JobState
from packtrain.client import Job, Packtrain, Result
from tests.compose import images
from tests.compose.conftest import ATTIC_MEMORY, HEAD_MEMORY, TwoHosts, tell
from tests.compose.engine import Engine
from tests.compose.projects import Project
from tests.support.fleets import eventually

T = TypeVar("T")

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

MODEL = "smollm2"
#: So long that a container can be ended meanwhile.
TOKENS = 48


def test_the_image_is_small_and_runs_as_nobody(engine: Engine) -> None:
    image, base = json.loads(engine.run("image", "inspect", images.IMAGE, images.BASE).stdout)
    ours = image["Size"] - base["Size"]
    tell(f"the image has {ours / 1e6:.0f} MB more than its base of {base['Size'] / 1e6:.0f} MB")

    assert ours < 300e6
    assert image["Config"]["User"] == "packtrain"
    assert engine.run("run", "--rm", images.IMAGE, "version").stdout.startswith("packtrain ")


def test_every_part_says_that_it_is_well(fleet: TwoHosts) -> None:
    found = fleet.until_healthy()

    assert {"broker", "coordinator", "gateway", "pairing", "flower", "node", "attic"} <= found.keys()


def test_the_limits_of_a_container_are_the_budget_of_its_node(client: Packtrain) -> None:
    nodes = {node.node: node for node in client.nodes()}

    assert nodes["head"].memory_total == HEAD_MEMORY
    assert nodes["attic"].memory_total == ATTIC_MEMORY
    for node in nodes.values():
        assert node.cores == 1
        assert node.memory_budget == int(node.memory_total * 0.8)


def test_jobs_run_on_both_hosts_and_the_second_fetches_the_model(client: Packtrain) -> None:
    """Its folder of models is empty: the file comes from the head's container, over published ports."""
    client.set_node("head", memory=256 * 2**20)  # too little for it, so the second host must have it
    eventually(lambda: budget_of(client, "head") == 256 * 2**20, "the head's smaller budget", 30)
    client.load(MODEL)
    eventually(lambda: ready_on(client) == {"attic"}, "an instance on the second host", 120)
    client.set_node("head", memory=0)  # as it was started
    eventually(lambda: budget_of(client, "head") > 2**30, "the head's old budget", 30)
    client.load(MODEL, replicas=2)
    eventually(lambda: ready_on(client) == {"head", "attic"}, "an instance on each host", 120)

    results: list[Result] = []
    for _ in range(5):  # who hears a bell first takes the job: a quick instance may take all of one round
        results += client.map(MODEL, [f"Count to {n}." for n in range(16)], max_tokens=24)
        if {result.node for result in results} == {"head", "attic"}:
            break

    assert {result.node for result in results} == {"head", "attic"}
    assert all(result.usage.completion_tokens for result in results)


def test_a_model_that_neither_host_can_hold_runs_over_both(fleet: TwoHosts, client: Packtrain) -> None:
    """Its tunnel goes from one container over a published port into the other."""
    ask = partial(
        client.generate,
        MODEL,
        "Tell me about Paris.",
        max_tokens=16,
        temperature=0,
        seed=1,
        deterministic=True,
        timeout=240,
    )
    on_one_host = ask()
    client.unload(MODEL)
    eventually(lambda: not ready_on(client), "an empty fleet", 60)
    alone = next(model.required_bytes for model in client.models() if model.id == MODEL)
    for name in ("head", "attic"):
        client.set_node(name, memory=alone * 9 // 10)
    eventually(lambda: all(n.memory_budget < alone and n.links for n in client.nodes()), "small budgets, links", 60)

    result = ask()
    head, shard = sorted((i for i in client.instances() if not i.state.is_terminal), key=lambda i: i.is_shard)
    tell(f"{head.layers} layers on {head.node}, {shard.layers} on {shard.node}: {result.text!r}")

    assert (result.text, result.receipt) == (on_one_host.text, on_one_host.receipt)
    assert {head.node, shard.node} == {"head", "attic"}  # the second may have the file by now, and be the head
    assert (head.is_head, shard.group) == (True, head.instance)
    holding = fleet.containers["attic" if shard.node == "attic" else "node"]
    assert "confined by limits, no_new_privs" in fleet.logs(holding)
    client.unload(MODEL)
    eventually(lambda: all(i.state.is_terminal for i in client.instances()), "the group to leave", 60)
    for name in ("head", "attic"):
        client.set_node(name, memory=0)
    eventually(lambda: all(n.memory_budget > alone for n in client.nodes()), "the old budgets", 30)
    client.load(MODEL, replicas=2)


def test_http_asks_for_the_key_that_was_made_before_the_fleet(fleet: TwoHosts) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 8}
    request = urllib.request.Request(f"{fleet.gateway}/v1/chat/completions", json.dumps(body).encode())

    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=30)
    request.add_header("Authorization", f"Bearer {fleet.secrets['api_key']}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["choices"][0]["message"]["content"]


def test_no_secret_is_in_what_the_engine_tells_or_a_part_logs(fleet: TwoHosts) -> None:
    seen = {}
    for name, container in fleet.containers.items():
        seen[f"inspect {name}"] = json.dumps(container.facts)
        seen[f"log {name}"] = fleet.logs(container)
        if container.facts["State"]["Running"]:
            seen[f"processes of {name}"] = fleet.engine.run("top", container.id, "-eo", "pid,args").stdout
    seen["history"] = fleet.engine.run("history", "--no-trunc", images.IMAGE).stdout

    assert all(text for where, text in seen.items() if not where.startswith("log "))
    for secret, value in fleet.secrets.items():
        assert [where for where, text in seen.items() if value in text] == [], secret


def test_containers_may_do_little(fleet: TwoHosts) -> None:
    for name, container in fleet.containers.items():
        host = container.facts["HostConfig"]
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert container.facts["Config"]["User"] not in ("", "root", "0"), name
    node = fleet.containers["node"].id
    for path in ("/opt/packtrain/x", "/models/x"):
        refused = fleet.engine.run("exec", node, "touch", path, check=False)
        assert "Read-only file system" in refused.stderr


def test_a_host_dies_and_its_jobs_go_on(fleet: TwoHosts, client: Packtrain) -> None:
    """SIGKILL to the container's first process, as when memory runs out. The engine starts it again."""
    eventually(lambda: ready_on(client) == {"head", "attic"}, "an instance on each host", 120)
    attic = fleet.containers["attic"]
    jobs = [client.submit(MODEL, f"Tell me about {n}.", max_tokens=TOKENS, ignore_eos=True) for n in range(8)]
    eventually(lambda: any(runs_on(job, "attic") for job in jobs), "a job on the second host", 60)

    os.kill(attic.pid, signal.SIGKILL)
    died = time.monotonic()
    results = [job.result(timeout=240) for job in jobs]
    tell(f"8 jobs were done {time.monotonic() - died:.1f} s after the second host died")

    assert [result.usage.completion_tokens for result in results] == [TOKENS] * 8
    eventually(lambda: fleet.containers["attic"].facts["RestartCount"] == 1, "the engine's restart", 60)
    eventually(lambda: {node.node for node in client.nodes()} == {"head", "attic"}, "the second host's return", 60)


def test_a_rolling_upgrade_loses_no_job(fleet: TwoHosts) -> None:
    """Each container is made anew from another image, one by one, the broker last; four clients ask meanwhile."""
    before = fleet.containers
    with Asking(fleet.url, clients=4) as asking:
        for project, service in (
            (fleet.attic, "node"), (fleet.head, "node"), (fleet.head, "coordinator"), (fleet.head, "gateway"),
            (fleet.head, "pairing"), (fleet.head, "flower"),
        ):  # fmt: skip
            project.env["PACKTRAIN_IMAGE"] = images.NEXT
            project.run("up", "--detach", "--no-build", "--no-deps", service)
            until_well(project, service)
        fleet.head.run("up", "--detach", "--no-build", "--no-deps", "--force-recreate", "broker")
        asked = len(asking.answered)
        eventually(lambda: len(asking.answered) >= asked + 4, "answers after the broker came back", 90)
    after = fleet.containers
    tell(f"{len(asking.answered)} jobs were asked for and answered during the upgrade of 7 containers")

    assert asking.failures == []
    assert [result.usage.completion_tokens for result in asking.answered] == [Asking.TOKENS] * len(asking.answered)
    for name in ("attic", "node", "coordinator", "gateway", "pairing", "flower", "broker"):
        assert before[name].id != after[name].id, name
    assert {after[name].facts["Config"]["Image"] for name in ("attic", "node", "coordinator")} == {images.NEXT}


def test_a_stop_drains(fleet: TwoHosts, client: Packtrain) -> None:
    """SIGTERM ends a node by itself, in time, and what it ran goes on elsewhere."""
    jobs = [client.submit(MODEL, f"Tell me about {n}.", max_tokens=TOKENS, ignore_eos=True) for n in range(8)]
    eventually(lambda: any(runs_on(job, "attic") for job in jobs), "a job on the second host", 90)

    fleet.attic.run("stop", "node")

    state = fleet.containers["attic"].facts["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    assert [job.result(timeout=120).usage.completion_tokens for job in jobs] == [TOKENS] * 8


def budget_of(client: Packtrain, name: str) -> int:
    return next(node.memory_budget for node in client.nodes() if node.node == name)


def ready_on(client: Packtrain) -> set[str]:
    return {instance.node for instance in client.instances() if instance.state.value == "READY"}


def runs_on(job: Job, node: str) -> bool:
    status = job.status()
    return status.state is JobState.RUNNING and status.node == node


def until_well(project: Project, service: str) -> None:
    """As the container's own check says, which the engine asks less often."""
    words = ("exec", "--no-TTY", service, "python", "-m", "packtrain.broker.health")
    eventually(lambda: project.run(*words, check=False).returncode == 0, f"health of {service}", 90)


class Asking:
    """Clients that each ask for a job, wait for its answer, and ask for the next."""

    TOKENS = 16

    def __init__(self, url: str, *, clients: int) -> None:
        self.answered: list[Result] = []
        self.failures: list[str] = []
        self._url = url
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(180)
        self.failures += ["a client still waits" for thread in self._threads if thread.is_alive()]

    def _ask(self, number: int) -> None:
        asked = 0
        with Packtrain(self._url) as client:
            while not self._ending.is_set():
                asked += 1
                try:
                    job = patiently(
                        partial(
                            client.submit, MODEL, f"Job {asked}", max_tokens=self.TOKENS, ignore_eos=True,
                            idempotency_key=f"{number}-{asked}",
                        )
                    )  # fmt: skip
                    self.answered.append(patiently(partial(job.result, timeout=120)))
                except Exception as error:
                    self.failures.append(f"{type(error).__name__}: {error}")


def patiently(ask: Callable[[], T]) -> T:
    """Again while the broker is away for longer than a client tries by itself, as the error asks."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return ask()
        except TryLater:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
