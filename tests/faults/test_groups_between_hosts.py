"""A real model over three hosts of which each holds about a half: right answers, whatever dies in mid-generation, and
nothing for those who listen or knock."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from packtrain.broker.beats import InstanceBeat
from packtrain.client import Job, Packtrain, Result
from packtrain.workers.shards.messages import ShardConfig
from packtrain.workers.tunnel.forward import DEAD_S
from tests.support.demo_model import MODEL as DEMO_MODEL
from tests.support.demo_model import demo_model_folder
from tests.support.fleets import eventually, until_first_text
from tests.support.fleets import fleet as whole_fleet
from tests.support.group_hosts import GroupHosts, group_hosts
from tests.support.hosts import why_not
from tests.support.listeners import SNIFFER, STRANGER
from tests.support.quantised import quantised
from tests.support.split_hosts import listens

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
    pytest.mark.timeout(600),
]

MODEL = "smol-f16"
CONFIG = f"[models.{MODEL}]\nslots = 24\ncontext = 128\n"
#: On one node it needs 544 MiB. Of 450 a split may take 338: any two hosts hold it, and none alone.
MEMORY = dict.fromkeys(("a", "b", "c"), 450 * 2**20)
NUM_JOBS, NUM_TOKENS = 24, 16
#: From a death until the rest of its group has let go; longer where only silence tells of it.
GONE_S = 10.0
SILENT_S = DEAD_S + GONE_S
#: From jobs that wait until their group answers, and from a death until the next one does; 8 to 18 s were measured.
GROUP_S = 60.0
#: For all jobs: F16 is computed row by row in deterministic mode, all hosts on the cores of this machine.
JOBS_S = 300.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised(tmp_path_factory.mktemp("model"), demo_model_folder() / f"{DEMO_MODEL}.gguf", "f16")


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """What the model answers on one node."""
    home = tmp_path_factory.mktemp("whole")
    (home / "packtrain.toml").write_text(CONFIG)
    with whole_fleet(home, model.parent, PACKTRAIN_CORES="1") as fleet:
        answers = [job.result(JOBS_S) for job in submit(fleet.client)]
        assert not fleet.instance(MODEL).group
    return answers


@pytest.fixture(scope="module")
def fleet(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GroupHosts]:
    with group_hosts(tmp_path_factory.mktemp("hosts"), model, MEMORY, config=CONFIG) as running:
        yield running


def submit(client: Packtrain) -> list[Job]:
    options: dict[str, Any] = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "deterministic": True, "logprobs": 2}
    return [
        client.submit(MODEL, f"The number {n} is", raw=True, seed=n, temperature=0.8, **options)
        for n in range(NUM_JOBS)
    ]


def assert_same(jobs: Sequence[Job], expected: Sequence[Result]) -> None:
    """All are done, each once, to the bit."""
    answers = [job.result(JOBS_S) for job in jobs]
    assert [answer.usage.completion_tokens for answer in answers] == [NUM_TOKENS] * NUM_JOBS
    assert [(a.text, a.logprobs) for a in answers] == [(a.text, a.logprobs) for a in expected]
    assert [a.receipt for a in answers] == [a.receipt for a in expected]
    streamed = ["".join(job.stream()) for job in jobs]
    assert streamed == [answer.text for answer in answers]  # no token is there twice


def test_a_model_that_no_host_holds_answers_over_two_as_it_does_on_one(
    fleet: GroupHosts, expected: list[Result], model: Path, tmp_path: Path
) -> None:
    notes = {name: {at: tmp_path / f"{name}-{at}" for at in ("eth0", "lo")} for name in fleet.members}
    for name, places in notes.items():
        for interface, path in places.items():
            command = [sys.executable, "-c", SNIFFER, interface, str(path)]
            fleet.members[name].start(command, {}, tmp_path / "sniffer.log")
            eventually(path.exists, "a listener")

    jobs = submit(fleet.client)
    head, *shards = fleet.group(GROUP_S)
    assert_same(jobs, expected)

    assert head.node == "a"
    assert head.layers + sum(shard.layers for shard in shards) == 30
    assert all(beat.reserved_bytes <= 3 / 4 * MEMORY[beat.node] for beat in (head, *shards))
    for shard in shards:
        cable, inside = (notes[shard.node][interface].read_bytes() for interface in ("eth0", "lo"))
        assert min(len(cable), len(inside)) > shard.layers * 7e6  # its weights, among others
        secrets = [b"attn_q.weight", *pieces(model)]
        assert len([secret for secret in secrets if secret in inside]) > 10  # where nothing is encrypted
        assert not [secret for secret in secrets if secret in cable]
        assert_nobody_else_gets_in(fleet, shard, tmp_path / "stranger.log")


def pieces(model: Path) -> list[bytes]:
    """Of its weights, everywhere."""
    content = model.read_bytes()
    return [content[at : at + 32] for at in range(0, len(content), 1_000_003)]


def assert_nobody_else_gets_in(fleet: GroupHosts, shard: InstanceBeat, log: Path) -> None:
    """Knock at a shard and at its tunnel with llama.cpp's hello."""
    host = fleet.members[shard.node]
    (process,) = fleet.processes(shard.node, part="shard_main")
    port = ShardConfig.model_validate_json(process.cmdline()[-1]).port
    said = {}
    for name, number in (("shard", port), ("tunnel", int(shard.address.rpartition(":")[2]))):
        assert listens(process.pid, number), f"the {name} does not listen"
        log.unlink(missing_ok=True)
        command = [sys.executable, "-c", STRANGER, host.address, str(number)]
        fleet.stranger.start(command, {}, log).wait(timeout=60)
        said[name] = log.read_text()
    assert said["shard"] == "error ConnectionRefusedError\n"  # it listens on loopback only
    assert "07000000" not in said["tunnel"]  # no word of a shard: an alert of TLS, or an end


FAULTS: dict[str, Callable[[GroupHosts, list[InstanceBeat]], None]] = {
    "a shard is killed": lambda fleet, group: kill(fleet, group[1].node, "shard_main"),
    "the head is killed": lambda fleet, group: kill(fleet, group[0].node, "instance_main"),
    "the near end of a tunnel is killed": lambda fleet, group: kill(fleet, group[0].node, "tunnel_main"),
    "the far end of a tunnel is killed": lambda fleet, group: kill(fleet, group[1].node, "tunnel_main"),
    "the cable of a shard is cut": lambda fleet, group: fleet.members[group[1].node].cut(),
}


def kill(fleet: GroupHosts, node: str, part: str) -> None:
    for process in fleet.processes(node, part=part):
        process.kill()


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_dies_in_mid_generation_all_jobs_end_as_if_nothing_had(
    fault: str, fleet: GroupHosts, expected: list[Result]
) -> None:
    jobs = submit(fleet.client)
    group = fleet.group(GROUP_S)
    for job in jobs[:3]:
        until_first_text(job)
    old = {beat.node: fleet.processes(beat.node) for beat in group}
    shard = group[1].node
    is_cut = "cable" in fault

    FAULTS[fault](fleet, group)
    begin = time.monotonic()

    for node in [beat.node for beat in group if not (is_cut and beat.node == shard)]:
        eventually(lambda parts=old[node]: are_gone(parts), f"{node} to let go", SILENT_S if is_cut else GONE_S)  # type: ignore[misc]
    gone_s = time.monotonic() - begin
    following = fleet.group(GROUP_S, without=group[0].group)
    back_s = time.monotonic() - begin
    assert not is_cut or shard not in {beat.node for beat in following}
    assert_same(jobs, expected)
    if is_cut:
        fleet.members[shard].heal()
        eventually(lambda: are_gone(old[shard]), f"{shard} to let go", SILENT_S)
        eventually(lambda: len(fleet.client.nodes()) == len(MEMORY), f"{shard} to take part again", 60)
    sys.stderr.write(f"\n{fault}: gone after {gone_s:.1f} s, the next group answers after {back_s:.1f} s\n")
    assert fleet.processes(*MEMORY, part="instance_main") == fleet.processes("a", part="instance_main")
    assert len(fleet.processes(part="shard_main")) == len(following) - 1


def are_gone(processes: Sequence[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def test_at_the_end_all_memory_is_given_back(fleet: GroupHosts) -> None:
    assert fleet.instances()
    fleet.client.unload(MODEL)

    eventually(lambda: not fleet.instances(), "all parts to be over", GONE_S)
    eventually(lambda: not fleet.processes(), "all processes to end", GONE_S)
