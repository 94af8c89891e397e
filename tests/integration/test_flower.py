"""Flower beside a fleet: queues, workers with their node's facts, and what each doorbell did; nothing private.

The fleet is one over a broker of somebody else, in a database of its own: as `packtrain up --broker URL --flower`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect
from playwright.sync_api import Error as PlaywrightError

from packtrain.broker.errors import SetupError
from packtrain.broker.server import BrokerServer
from packtrain.client.cli.flower_page import USER, prepare_flower
from tests.support.browser import Watched, browser, need_chromium, watched
from tests.support.fleets import Fleet, eventually, scripted_fleet

pytestmark = pytest.mark.integration

SECRET = "my private prompt"
MODELS: dict[str, dict[str, Any]] = {"echo": {"n_slots": 4}, "slow": {"n_slots": 1, "step_ms": 50}}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, broker: BrokerServer) -> Iterator[Fleet]:
    home: Path = tmp_path_factory.mktemp("home")
    url = urlsplit(broker.url)._replace(path="/3").geturl()
    with scripted_fleet(home, MODELS, flower=True, broker_url=url) as running:
        yield running


def ask(url: str, password: str = "", *, method: str = "GET") -> Any:
    request = urllib.request.Request(url, method=method)
    if password:
        login = base64.b64encode(f"{USER}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()


def get(fleet: Fleet, path: str) -> Any:
    page = fleet.running.flower
    assert page is not None
    return ask(page.url + path, page.password)


def refused(url: str, password: str = "", *, method: str = "GET") -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(url, password, method=method)
    with caught.value as answer:
        return answer.code


def test_flower_asks_for_a_login_and_takes_no_orders(fleet: Fleet) -> None:
    page = fleet.running.flower
    assert page is not None

    for path in ("/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/metrics"):
        assert refused(page.url + path) == 401, path
        assert refused(page.url + path, "x" * 48) == 401, path
    for order in ("/api/worker/shutdown/agent@n1", "/api/task/send-task/packtrain.node"):
        assert refused(page.url + order, page.password, method="POST") == 403, order


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
    assert shown["agent@n1"]["models"] == "echo, slow"
    assert "packtrain" in get(fleet, "/worker/echo.0@n1")


def test_queues_are_those_of_the_moment_with_their_lengths(fleet: Fleet) -> None:
    fleet.client.generate("slow", "x")  # loaded long after Flower has begun

    rows = json.loads(get(fleet, "/api/queues/length"))["active_queues"]

    assert {row["name"]: row["messages"] for row in rows}.items() >= {"node.n1": 0, "model.slow": 0}.items()


# --- as people see it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(fleet: Fleet) -> Iterator[Watched]:
    """Flower in a browser, logged in."""
    need_chromium()
    page = fleet.running.flower
    assert page is not None
    login = {"username": USER, "password": page.password}
    with (
        browser() as chromium,
        watched(chromium, viewport={"width": 1300, "height": 900}, http_credentials=login) as found,
    ):
        yield found


@pytest.fixture
def site(fleet: Fleet) -> str:
    """Its address; a job has run on `echo`, so there is something to see."""
    fleet.client.generate("echo", SECRET)
    assert fleet.running.flower is not None
    return fleet.running.flower.url


def test_a_browser_without_the_password_sees_nothing(seen: Watched, site: str) -> None:
    chromium: Browser | None = seen.page.context.browser
    assert chromium is not None
    with (
        watched(chromium) as stranger,
        pytest.raises(PlaywrightError, match="INVALID_AUTH"),  # where a person is asked for the password
    ):
        stranger.page.goto(f"{site}/workers")


def test_the_list_of_workers_leads_to_a_page_with_the_facts_of_the_node(seen: Watched, site: str, fleet: Fleet) -> None:
    page = seen.page
    page.goto(f"{site}/workers")
    table = page.locator("#workers-table")
    for name in ("agent@n1", "echo.0@n1"):
        expect(table.get_by_role("row").filter(has_text=name)).to_contain_text("Online", timeout=20_000)

    table.get_by_role("link", name="agent@n1").click()
    page.locator("#worker-tab-other").click()

    facts = page.locator("#tab-other")
    for fact in ("memory_budget_mib", "memory_free_mib", "models", "instances", "echo"):
        expect(facts).to_contain_text(fact)
    expect(page.get_by_role("button", name="Shut Down")).to_have_count(0)
    nothing_private(fleet, seen)


def test_the_tasks_page_leads_to_the_result_of_a_doorbell(seen: Watched, site: str, fleet: Fleet) -> None:
    page = seen.page
    job = fleet.client.submit("echo", SECRET)
    job.result()

    def row() -> bool:
        page.goto(f"{site}/tasks")
        return page.locator("#tasks-table tbody tr").filter(has_text="packtrain.ring").count() > 0

    def bell() -> str | None:
        tasks = json.loads(get(fleet, "/api/tasks")).items()
        return next((uuid for uuid, task in tasks if job.id in str(task["result"])), None)

    eventually(row, "a doorbell in the table")
    page.goto(f"{site}/task/{eventually(bell, 'the result of its doorbell')}")

    expect(page.locator("#task-page")).to_contain_text(job.id)
    # On a busy machine one bell serves the job of the test before, too.
    expect(page.locator("#task-page")).to_contain_text(re.compile(r"'tokens': (17|34)\b"))
    expect(page.locator("#task-page")).to_contain_text(re.compile(r"'seconds': \d"))
    nothing_private(fleet, seen)


def test_the_brokers_page_has_the_lengths_of_queues(seen: Watched, site: str, fleet: Fleet) -> None:
    page = seen.page
    jobs = [fleet.client.submit("slow", f"!long {SECRET}", max_tokens=400) for _ in range(4)]
    try:

        def waiting() -> int:
            page.goto(f"{site}/broker")
            cells = page.locator("#queue-table tr").filter(has_text="model.slow").locator("td").all_inner_texts()
            return int(cells[1]) if cells else 0

        # One slot: one job runs, and the bells of the three others wait.
        assert eventually(lambda: waiting() == 3, "the three bells that wait")
        assert fleet.client.waiting() == {"slow": 3}
        expect(page.locator(".broker-url")).to_contain_text("redis://")
        nothing_private(fleet, seen)
    finally:
        for job in jobs:
            job.cancel()


def nothing_private(fleet: Fleet, seen: Watched) -> None:
    """No prompt, answer or password in what a page holds, hidden parts included; nothing went wrong in it."""
    text = seen.page.content()
    password = urlsplit(fleet.url).password
    assert password
    assert fleet.running.flower
    for private in (SECRET, SECRET[::-1], password, fleet.running.flower.password):
        assert private not in text
    assert seen.said == []


# --- alone ---------------------------------------------------------------------------------------------------------


@contextmanager
def flower_alone(*arguments: str, url: str, home: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """`packtrain flower`, and what it says first."""
    process = subprocess.Popen(
        [sys.executable, "-m", "packtrain.client.cli.main", "flower", "--json", "--port", "0", *arguments],
        env={**os.environ, "PACKTRAIN_URL": url, "PACKTRAIN_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def test_flower_alone_takes_its_password_from_a_file_and_ends_well(fleet: Fleet, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("long enough to be guessed by nobody\n")
    with flower_alone("--password-file", str(secret), url=fleet.url, home=tmp_path) as (process, said):

        def answers() -> bool:
            try:
                return bool(ask(said["url"] + "/healthcheck"))
            except OSError:
                return False

        eventually(answers, "Flower")
        arguments = Path(f"/proc/{process.pid}/cmdline").read_text() if Path("/proc").exists() else ""

        assert said["password_file"] == str(secret)
        assert refused(said["url"] + "/broker") == 401
        assert "redis://" in ask(said["url"] + "/broker", secret.read_text().strip())
        assert "long enough" not in arguments

        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("text", "host", "reason"),
    [
        ("short", "0.0.0.0", "less than 16 characters"),
        (" \n", "127.0.0.1", "holds no password"),
        (None, "127.0.0.1", "cannot read Flower's password"),
    ],
)
def test_a_password_that_will_not_do_is_refused(tmp_path: Path, text: str | None, host: str, reason: str) -> None:
    file = tmp_path / "secret"
    if text is not None:
        file.write_text(text)

    with pytest.raises(SetupError, match=reason):
        prepare_flower(tmp_path / "flower", 0, host=host, password_file=file)
