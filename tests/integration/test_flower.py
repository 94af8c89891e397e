"""Flower beside a fleet: queues, workers with their node's facts, and what each doorbell did; nothing private."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packtrain.client.cli.flower_page import USER
from tests.support.fleets import Fleet, eventually, scripted_fleet

pytestmark = pytest.mark.integration

SECRET = "my private prompt"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home: Path = tmp_path_factory.mktemp("home")
    with scripted_fleet(home, {"echo": {"n_slots": 4}}, flower=True) as running:
        yield running


def get(fleet: Fleet, path: str, *, with_login: bool = True) -> Any:
    page = fleet.running.flower
    assert page is not None
    request = urllib.request.Request(page.url.rstrip("/") + path)
    if with_login:
        login = base64.b64encode(f"{USER}:{page.password}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()


def test_flower_asks_for_a_login(fleet: Fleet) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(fleet, "/api/workers", with_login=False)


def test_the_result_of_a_doorbell_names_job_tokens_and_seconds(fleet: Fleet) -> None:
    job = fleet.client.submit("echo", SECRET)
    job.result()

    def rung() -> dict[str, Any] | None:
        tasks = json.loads(get(fleet, "/api/tasks?taskname=packtrain.ring"))
        done = [task for task in tasks.values() if task["state"] == "SUCCESS" and job.id in str(task["result"])]
        return done[0] if done else None

    task = eventually(rung, "the task in Flower")
    assert task
    assert "'tokens': 17" in task["result"]
    assert "'seconds': " in task["result"]
    assert task["worker"] == "echo.0@n1"
    assert SECRET not in json.dumps(task)


def test_a_workers_page_shows_the_facts_of_its_node(fleet: Fleet) -> None:
    fleet.client.generate("echo", "x")

    def facts() -> dict[str, Any] | None:
        workers = json.loads(get(fleet, "/api/workers?refresh=1"))
        known = {name: info.get("stats", {}).get("packtrain") for name, info in workers.items()}
        return known if all(known.get(name) for name in ("agent@n1", "echo.0@n1")) else None

    shown = eventually(facts, "both workers' facts")
    assert shown
    assert shown["agent@n1"]["memory_budget_mib"] > 0
    assert shown["echo.0@n1"]["model"] == "echo"
    assert shown["agent@n1"]["models"] == "echo"
    assert "packtrain" in get(fleet, "/worker/echo.0@n1")


def test_queue_lengths_are_right(fleet: Fleet) -> None:
    fleet.client.generate("echo", "x")

    def lengths() -> dict[str, int] | None:
        rows = json.loads(get(fleet, "/api/queues/length"))["active_queues"]
        found = {row["name"]: row["messages"] for row in rows}
        return found if {"node.n1", "model.echo"} <= found.keys() else None

    found = eventually(lengths, "the queues in Flower")
    assert found
    assert found["model.echo"] == 0
