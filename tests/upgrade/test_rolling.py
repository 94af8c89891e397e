"""A fleet of the version before becomes one of this version, process by process, while it works; and the way back.

`make test-upgrade`. Nothing is lost and nothing comes twice: each job has one end, and its answer, read as a stream or
as a result, is its prompt backwards, whole and once.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from deploy.previous_version import named
from redis import Redis

from packtrain.broker import keys
from packtrain.broker.connection import connect
from packtrain.broker.ids import JobId
from packtrain.broker.states import InstanceState, JobState
from packtrain.broker.versions import installed_version
from packtrain.client import Job, Packtrain
from tests.conftest import immortal_keys
from tests.support.bulk_runs import content, read_rows, row, write_rows
from tests.support.fleets import eventually
from tests.support.mixed_fleet import COMMAND, MixedFleet, Version

pytestmark = [pytest.mark.upgrade, pytest.mark.timeout(900)]

MODELS: dict[str, dict[str, Any]] = {
    "echo": {"n_slots": 4, "step_ms": 2, "pinned": True, "min_replicas": 1, "max_replicas": 2},
    "slow": {"n_slots": 4, "n_ctx": 2048, "step_ms": 30, "min_replicas": 2, "max_replicas": 2},
}
LONG = "".join(f"{number} llamas " for number in range(35))  # 12 s of answer
ROWS = 160
VERSIONS: tuple[Version, ...] = ("old", "new")
OLD, NEW = named()[0], installed_version()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[MixedFleet]:
    running = MixedFleet(tmp_path, MODELS)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def client(fleet: MixedFleet) -> Iterator[Packtrain]:
    with Packtrain(fleet.url) as found:
        yield found


@pytest.fixture
def inside(fleet: MixedFleet) -> Iterator[Redis]:
    found = connect(fleet.url, name="test")
    yield found
    found.close()


def look(fleet: MixedFleet, state: str) -> dict[str, Any]:
    """What `upgrade-check` says, which has to be this and safe; beats of who ended lapse first."""

    found: dict[str, Any] = {}

    def said() -> bool:
        found.update(json.loads(fleet.command("new", "upgrade-check", "--json")))
        return bool(found["state"] == state)

    try:
        eventually(said, f"a fleet that is {state}", 120)
    except AssertionError as error:
        error.add_note(json.dumps(found, indent=1))
        raise
    assert found["safe"]
    assert found["problems"] == []
    return found


def ready(client: Packtrain, count: int) -> None:
    def are() -> bool:
        return Counter(i.state for i in client.instances())[InstanceState.READY] >= count

    eventually(are, f"{count} READY instances", 60)


def ends_of(inside: Redis, job: str) -> int:
    entries: Any = inside.xrange(keys.out(JobId(job)))
    return sum("end" in fields for _, fields in entries)


def assert_nothing_lost_or_doubled(inside: Redis, jobs: dict[str, str]) -> None:
    """Jobs by id, with their prompts."""
    for job, prompt in jobs.items():
        record = inside.hgetall(keys.job(JobId(job)))
        assert record["state"] == JobState.SUCCEEDED, record
        assert json.loads(record["outcome"])["text"] == prompt[::-1], job
        assert ends_of(inside, job) == 1, job


def half_done(fleet: MixedFleet, out: Path) -> bool:
    assert fleet.parts["broker"]
    return len(read_rows(out)) >= ROWS // 4


def test_a_fleet_at_work_is_upgraded_process_by_process_and_back(
    fleet: MixedFleet, client: Packtrain, inside: Redis, tmp_path: Path
) -> None:
    for part in ("broker", "coordinator", "n1", "n2"):
        fleet.start(part, "old")
    key = json.loads(fleet.command("old", "keys", "create", "ada", "--json"))["secret"]
    fleet.start("gateway", "old")
    fleet.command("old", "load", "echo", "--replicas", "2", "--json")
    ready(client, 4)
    assert {each["version"] for each in look(fleet, "ready")["processes"]} == {OLD}

    # Clients of both versions, by both ways, all the time.
    for version in VERSIONS:
        fleet.begin_client(f"{version}-redis", version, fleet.url)
        fleet.begin_client(f"{version}-http", version, fleet.http_url, key)
    fleet.more_of_each()

    # Jobs that run and are read, jobs that wait behind them, a bulk run that is killed, a batch.
    running = [client.submit("slow", f"{number} {LONG}", user=f"u{number}") for number in range(8)]
    streams = [iter(job.stream()) for job in running[:2]]
    read = [next(stream) for stream in streams]
    waiting = [client.submit("slow", f"waits {number}") for number in range(20)]
    rows = write_rows(tmp_path / "in.jsonl", [row(n, "echo", text=f"row {n} of the bulk run") for n in range(ROWS)])
    bulk = start_bulk(fleet, rows, tmp_path / "out.jsonl")
    batch = begin_batch(fleet, key)
    eventually(lambda: half_done(fleet, tmp_path / "out.jsonl"), "a bulk run half done", 90)
    bulk.kill()
    bulk.wait()

    # Up, in the order that upgrade-check tells.
    fleet.replace("n2", "new")
    fleet.more_of_each()
    told = look(fleet, "mixed")
    steps = [step.split(":")[0].split(" (")[0] for step in told["steps"]]
    assert steps == ["head n1", "gateway at 127.0.0.1", "clients"]
    fleet.replace("n1", "new")
    ready(client, 4)
    fleet.replace("broker", "new")
    fleet.more_of_each()
    fleet.replace("coordinator", "new")
    fleet.more_of_each()
    fleet.replace("gateway", "new")
    fleet.more_of_each()
    assert {each["version"] for each in look(fleet, "current")["processes"]} == {NEW}
    fleet.check()

    # All of it is still there.
    for job, stream, first in zip(running, streams, read, strict=False):
        assert first + "".join(stream) == prompt_of(job, running)[::-1]
    done = fleet.command("new", "bulk", "run", str(rows), "-o", str(tmp_path / "out.jsonl"))
    assert done is not None
    answers = read_rows(tmp_path / "out.jsonl")
    assert sorted(content(line) for line in answers) == sorted(f"row {n} of the bulk run"[::-1] for n in range(ROWS))
    assert_batch_is_whole(fleet, key, batch)
    listed = json.loads(fleet.command("new", "keys", "list", "--json"))
    assert [each["name"] for each in listed] == ["ada"]
    assert {info.id: info.pinned for info in client.models()} == {"echo": True, "slow": False}
    assert_nothing_lost_or_doubled(
        inside,
        {str(job.id): prompt_of(job, running) for job in running if job.result()}
        | {str(job.id): f"waits {number}" for number, job in enumerate(waiting) if job.result()},
    )

    # The way back, in the opposite order, with work under way.
    again = [client.submit("slow", f"{number} back {LONG[:300]}") for number in range(4)]
    for part in ("gateway", "coordinator", "n1", "n2"):
        fleet.replace(part, "old")
        fleet.more_of_each()
    look(fleet, "ready")
    assert [job.result().text for job in again] == [f"{n} back {LONG[:300]}"[::-1] for n in range(4)]
    told_by_clients = fleet.end_clients()

    for name, jobs in told_by_clients.items():
        assert [job for job in jobs if not job["ok"]] == [], name
        assert_nothing_lost_or_doubled(inside, {job["id"]: job["said"][::-1] for job in jobs})
    assert inside.zcard(keys.LEASES) == 0
    assert not list(inside.scan_iter(f"{keys.READY_PREFIX}*"))
    assert immortal_keys(inside) <= keys.PERMANENT


def prompt_of(job: Job, running: list[Job]) -> str:
    return f"{running.index(job)} {LONG}"


def start_bulk(fleet: MixedFleet, rows: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [fleet.python["old"], *COMMAND, "bulk", "run", str(rows), "-o", str(out)],
        env=fleet.env("n1"), cwd=fleet.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def begin_batch(fleet: MixedFleet, key: str) -> str:
    lines = "".join(json.dumps(row(n, "slow", text=f"batch {n}")) + "\n" for n in range(40))
    with httpx2.Client(base_url=fleet.http_url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as http:
        sent = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", lines.encode())})
        body = {"input_file_id": sent.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return str(http.post("/v1/batches", json=body).json()["id"])


def assert_batch_is_whole(fleet: MixedFleet, key: str, batch: str) -> None:
    with httpx2.Client(base_url=fleet.http_url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as http:

        def ended() -> dict[str, Any] | None:
            found = dict(http.get(f"/v1/batches/{batch}").json())
            return found if found["status"] == "completed" else None

        found = eventually(ended, "the end of the batch", 90)
        assert found
        lines = [
            json.loads(line) for line in http.get(f"/v1/files/{found['output_file_id']}/content").text.splitlines()
        ]
    assert sorted(content(line) for line in lines) == sorted(f"batch {n}"[::-1] for n in range(40))


# --- a home of `packtrain up` --------------------------------------------------------------------------------------


@contextmanager
def up(fleet: MixedFleet, version: Version) -> Iterator[dict[str, Any]]:
    """`packtrain up` of a version from the home of n1, with what it says first; `packtrain down` of it at the end."""
    words = ["up", "--json", "--port", str(fleet.server.port), "--http-port", str(fleet.http_port), "--drain", "1"]
    with (fleet.folder / "up.log").open("ab") as log:
        process = subprocess.Popen(
            [fleet.python[version], *COMMAND, *words],
            env=own_broker(fleet), cwd=fleet.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            text=True,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (fleet.folder / "up.log").read_text()[-3000:]
        yield json.loads(line)
        fleet.command(version, "down", PACKTRAIN_URL="")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def own_broker(fleet: MixedFleet) -> dict[str, str]:
    return fleet.env("n1") | {"PACKTRAIN_URL": ""}


def test_a_home_of_up_goes_on_in_this_version_and_back_beside_a_node_of_the_version_before(fleet: MixedFleet) -> None:
    fleet_file = fleet.home("n1") / "fleet.json"
    jobs: dict[str, str] = {}

    def submit(client: Packtrain, name: str) -> None:
        for number in range(6):
            prompt = f"{name} {number} " + "llamas " * 10
            jobs[client.submit("slow", prompt).id] = prompt

    def told(url: str) -> dict[str, str]:
        with Packtrain(url) as client:
            return {job: client.job(JobId(job)).result().text for job in jobs}

    with up(fleet, "old"):
        url = json.loads(fleet_file.read_text())["url"]
        with Packtrain(url) as client:
            submit(client, "old")
            fleet.start("n2", "old", url=url)
            eventually(lambda: len(client.nodes()) == 2, "a second node")
            submit(client, "more")
    with up(fleet, "new"):
        assert json.loads(fleet_file.read_text())["url"] == url
        assert told(url) == {job: prompt[::-1] for job, prompt in jobs.items()}
        with Packtrain(url) as client:
            eventually(lambda: {beat.node: beat.version for beat in client.nodes()} == {"n1": NEW, "n2": OLD}, "both")
            submit(client, "new")
    with up(fleet, "old"):
        assert told(url) == {job: prompt[::-1] for job, prompt in jobs.items()}
    fleet.check()
