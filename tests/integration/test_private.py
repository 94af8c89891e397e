"""Nothing private where it does not belong: secrets are planted, jobs of all kinds run, all is searched for them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from packtrain.broker.access import Role
from packtrain.broker.connection import connect
from packtrain.broker.ids import NodeId
from packtrain.broker.users import UserFiles
from packtrain.client import JobDead, JobFailed, Packtrain
from packtrain.client.cli.flower_page import USER
from packtrain.client.cli.main import app
from packtrain.client.cli.up import RunningFleet, UpOptions, running_fleet
from packtrain.client.joining.tokens import parse_token
from tests.support.bulk_runs import content, read_rows, row, write_rows
from tests.support.fleets import eventually
from tests.support.openai_server import Reply, openai_server
from tests.support.planted import Planted, files_of, is_open_to_others, keys_of, page, processes_of, watched

pytestmark = pytest.mark.integration

CHAT = "/v1/chat/completions"
#: What jobs are about, as against passwords and keys.
OF_JOBS = {
    "prompt", "streamed prompt", "tool arguments", "tool text", "picture", "idempotency key", "uploaded row",
    "bulk row", "failed prompt", "deadly prompt", "remote prompt", "remote error", "broken body",
}  # fmt: skip


@dataclass
class Run:
    """A fleet after its run, with all that was to be seen meanwhile."""

    fleet: RunningFleet
    files: Path  # of clients
    planted: Planted
    celery: list[str]  # commands that were not about our own keys
    api_key: str
    jobs: int
    told: str  # what the command line has said


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    home, elsewhere, planted = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("else"), Planted()
    (home / "models").mkdir()
    for name in ("echo", "lame"):
        (home / "models" / f"{name}.scripted.json").write_text(json.dumps({"n_slots": 4, "n_ctx": 2048}))
    remote_key = planted.plant("remote key", "sk-plantedremotekeyxq7")
    with openai_server(key=remote_key) as server:
        (home / "packtrain.toml").write_text(
            f'[models.far.remote]\nurl = "{server.url}"\nmodel = "big"\nkey_env = "FAR_KEY"\nretry_s = 1\n'
        )
        options = UpOptions(
            home=home, port=0, join_port=0, http_port=0, flower_port=0, listen="127.0.0.1", node=NodeId("n1"),
            drain_s=1, flower=True, quiet=True,
            env={
                "PACKTRAIN_SCRIPTED": "1", "PACKTRAIN_LEASE_MS": "2000", "PACKTRAIN_LOG_LEVEL": "DEBUG",
                "FAR_KEY": remote_key, "PACKTRAIN_FILES": str(elsewhere / "files"),
            },
        )  # fmt: skip
        with running_fleet(options) as fleet, connect(fleet.url, name="test") as redis:
            users = UserFiles(home / "broker")
            for role in Role:
                planted.plant(f"password of {role.value}", users.password(role))
            assert fleet.flower
            planted.plant("password of flower's page", fleet.flower.password)
            with watched(redis) as celery:
                key, jobs, told = everything(fleet, planted, server, elsewhere)
            yield Run(fleet, elsewhere / "files", planted, celery, key, jobs, told)


def everything(fleet: RunningFleet, planted: Planted, server: Any, folder: Path) -> tuple[str, int, str]:
    """Run jobs of all kinds, good and bad, with secrets in them."""
    told = []

    def packtrain(*arguments: str) -> str:
        done = CliRunner(env={"PACKTRAIN_HOME": str(fleet.home)}).invoke(app, [*arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        told.append(done.output)
        return done.stdout

    invitation = json.loads(packtrain("invite", "--json"))
    planted.plant("join token", invitation["token"])
    planted.plant("secret of the token", parse_token(invitation["token"]).secret)
    planted.plant("code", invitation["code"].replace("-", ""))
    key = planted.plant("API key", json.loads(packtrain("keys", "create", "anna", "--json"))["secret"])
    told.clear()  # these are what was asked for
    wrong = planted.plant("wrong API key", "pt-plantedwrongapikeyxq7")
    assert fleet.gateway
    with httpx2.Client(base_url=fleet.gateway.url, timeout=60, trust_env=False) as http:
        ours = {"Authorization": f"Bearer {key}"}
        eventually(
            lambda: http.get("/v1/models", headers={"Authorization": f"Bearer {wrong}"}).status_code == 401, "keys"
        )

        def chat(model: str, text: str, **more: Any) -> httpx2.Response:
            body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
            headers = {**ours, "Idempotency-Key": planted.plant("idempotency key")} if model == "echo" else ours
            return http.post(CHAT, json=body, headers=headers if "stream" not in more else ours)

        assert chat("echo", planted.plant("prompt")).status_code == 200
        assert "data:" in chat("echo", planted.plant("streamed prompt"), stream=True).text
        asked = {"name": "f", "arguments": json.dumps(planted.plant("tool arguments"))}
        called = {"id": "1", "type": "function", "function": asked}
        turns = [
            {"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "tool_call_id": "1", "content": planted.plant("tool text")},
        ]  # fmt: skip
        http.post(CHAT, json={"model": "echo", "messages": turns}, headers=ours)
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{planted.plant('picture')}"}}
        http.post(CHAT, json={"model": "echo", "messages": [{"role": "user", "content": [picture]}]}, headers=ours)
        http.post(CHAT, content=f'{{"model": "echo", "messages": [{planted.plant("broken body")}', headers=ours)

        line = json.dumps(row(1, "echo", text=planted.plant("uploaded row"))) + "\n"
        sent = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", line)}, headers=ours)
        wanted = {"input_file_id": sent.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
        batch = http.post("/v1/batches", json=wanted, headers=ours).json()["id"]
        eventually(lambda: http.get(f"/v1/batches/{batch}", headers=ours).json()["status"] == "completed", "the batch")

        assert chat("far", planted.plant("remote prompt")).status_code == 200
        fault = {"error": {"message": f"no {planted.plant('remote error')}", "type": "invalid_request_error"}}
        server.script.append(Reply(status=400, body=fault))
        assert chat("far", "again").status_code == 400

    source = write_rows(folder / "in.jsonl", [row(1, "echo", text=planted.plant("bulk row"))])
    with Packtrain(fleet.url) as client:
        before = len(client.jobs(100))
        words = ["bulk", "run", str(source), "-o", str(folder / "out.jsonl")]
        told.append(CliRunner(env={"PACKTRAIN_URL": fleet.url}).invoke(app, words).output)
        assert content(read_rows(folder / "out.jsonl")[0]) == planted.words["bulk row"][::-1]
        with pytest.raises(JobFailed):
            client.generate("echo", "!fail " + planted.plant("failed prompt"), timeout=30)
        with pytest.raises(JobDead):
            client.generate("lame", "!crash " + planted.plant("deadly prompt"), timeout=60)
        jobs = len(client.jobs(100))
        assert jobs >= before + 3
    packtrain("journal", "--json")
    packtrain("ps", "--json")
    packtrain("nodes", "--json")
    packtrain("models", "--json")
    return key, jobs, "".join(told)


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
def test_a_secret_is_found_in_every_form_that_it_takes(before: str) -> None:
    planted = Planted()
    word = planted.plant("secret")

    for text in (
        f"{before}{word}.",
        f"{before}{word[::-1]}.",
        base64.b64encode(f"{before}{word} more".encode()).decode(),
    ):
        assert planted.seen_in(text) == {"secret"}
    assert planted.seen_in(f"{before}{word[:-1]}.") == set()


def test_the_run_was_a_whole_one(run: Run) -> None:
    """Else the searches below would find nothing for a bad reason."""
    assert run.jobs >= 9
    assert set(run.planted.words) >= OF_JOBS
    assert sum("model.echo" in command for command in run.celery) >= 5
    assert any("packtrain.ring" in command for command in run.celery)
    assert any("task-succeeded" in command for command in run.celery)
    with connect(run.fleet.url, name="test") as redis:
        records = " ".join(text for key, text in keys_of(redis, without=()) if key.startswith(("pt:job:", "pt:out:")))
    assert {"prompt", "uploaded row", "remote prompt", "deadly prompt"} <= run.planted.seen_in(records)


def test_messages_events_and_queues_of_celery_hold_no_secret(run: Run) -> None:
    wrong = [(seen, command[:300]) for command in run.celery if (seen := run.planted.seen_in(command))]
    assert not wrong, wrong[:5]


def test_prompts_are_in_job_records_and_no_other_key(run: Run) -> None:
    with connect(run.fleet.url, name="test") as redis:
        others = list(keys_of(redis, without=("pt:job:", "pt:out:", "pt:invite")))
    assert len(others) > 15
    assert [(seen, text[:300]) for _, text in others if (seen := run.planted.seen_in(text))] == []


def test_files_of_the_fleet_hold_secrets_only_where_they_belong(run: Run) -> None:
    home, planted = run.fleet.home, run.planted
    passwords = {name for name in planted.words if name.startswith("password of")}
    places = {
        "broker/password": passwords, "broker/users/": passwords, "fleet.json": {"password of default"},
        "broker/appendonlydir/": OF_JOBS | {"code", "secret of the token"}, "flower/": {"password of flower's page"},
    }  # fmt: skip
    logs, wrong = 0, []
    for path, text in files_of(home):
        name = str(path.relative_to(home))
        allowed = next((may for place, may in places.items() if name.startswith(place)), set())
        logs += name.startswith("logs/")
        seen = planted.seen_in(text)
        if seen - allowed:
            wrong.append((name, seen - allowed))
        if seen:
            assert not is_open_to_others(path, home), path
    assert wrong == []
    assert logs >= 6


def test_uploaded_files_are_private(run: Run) -> None:
    found = [path for path, text in files_of(run.files) if run.planted.seen_in(text)]

    assert found
    assert not [path for path in found if is_open_to_others(path, run.files)]


def test_flower_shows_no_secret(run: Run) -> None:
    flower = run.fleet.flower
    assert flower
    login = f"{USER}:{flower.password}"
    paths = [
        "/",
        "/workers",
        "/tasks",
        "/broker",
        "/api/workers?refresh=1",
        "/api/tasks?limit=1000",
        "/api/queues/length",
    ]
    workers = json.loads(page(flower.url + "/api/workers", login=login))
    tasks = json.loads(page(flower.url + "/api/tasks?limit=1000", login=login))
    paths += [f"/worker/{name}" for name in workers] + [f"/task/{name}" for name in list(tasks)[:30]]
    wrong = []
    for path in paths:
        text = ""
        with suppress(OSError):  # a worker that has gone
            text = page(flower.url + path, login=login)
        if seen := run.planted.seen_in(text):
            wrong.append((path, seen))

    assert len(tasks) >= 5
    assert wrong == []
    assert not run.planted.seen_in(page(flower.url + "/metrics", login=login))


def test_metrics_and_what_the_command_line_says_hold_no_secret(run: Run) -> None:
    assert run.fleet.gateway
    figures = page(run.fleet.gateway.url + "/metrics", key=run.api_key)

    assert "packtrain" in figures
    assert run.planted.seen_in(figures) == set()
    assert run.planted.seen_in(run.told) == set()


def test_no_argument_list_holds_a_secret_and_no_environment_one_that_it_need_not(run: Run) -> None:
    planted, processes = run.planted, list(processes_of(run.fleet.pids.values()))
    needed = {name for name in planted.words if name.startswith("password of")} | {"remote key"}

    assert len(processes) >= 7
    assert [(name, seen) for name, arguments, _ in processes if (seen := planted.seen_in(arguments))] == []
    assert [(name, more) for name, _, env in processes if (more := planted.seen_in(env) - needed)] == []
    for name, _, env in processes:  # one password at most, the own one
        assert len({seen for seen in planted.seen_in(env) if seen.startswith("password of")}) <= 1, name
