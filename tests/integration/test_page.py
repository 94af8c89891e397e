"""The fleet page in a real browser, before a live fleet with scripted models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from packtrain.broker.api_keys import ApiKeys
from packtrain.broker.connection import connect
from packtrain.broker.history import Series
from packtrain.broker.states import InstanceState, JobState
from packtrain.client import Job
from packtrain.client.gateway.page_facts import Facts
from tests.support.browser import Watched, browser, need_chromium, watched
from tests.support.fleets import Fleet, eventually, scripted_fleet
from tests.support.gateways import Gateway, gateway, parse_stream

pytestmark = pytest.mark.integration

HTML = {"accept": "text/html,*/*;q=0.8"}
NASTY = "<img src=x onerror=alert(1)>"
DESKTOP, PHONE = {"width": 1300, "height": 900}, {"width": 360, "height": 740}


@dataclass
class Site:
    fleet: Fleet
    gateway: Gateway

    def facts(self) -> Facts:
        return Facts.model_validate_json(self.gateway.http.get("/packtrain/v1/fleet").text)

    def submit(self, model: str, **fields: Any) -> Job:
        return self.fleet.client.submit(model, "!long secret-of-somebody", max_tokens=400, **fields)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("home")
    models: dict[str, dict[str, Any]] = {"echo": {"step_ms": 20}, "slow": {"step_ms": 100, "n_slots": 1}, "spare": {}}
    # The gateway's own home: its batches must be nobody else's.
    with (
        scripted_fleet(home, models) as fleet,
        gateway(fleet.url, home, PACKTRAIN_HTTP_FLOWER_URL="http://127.0.0.1:5555", PACKTRAIN_HOME=str(home)) as door,
    ):
        for model in ("echo", "slow"):
            fleet.client.load(model)
        for model in ("echo", "slow"):
            fleet.instance(model)
        yield Site(fleet, door)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    need_chromium()
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def opened(chromium: Browser, site: Site) -> Iterator[Watched]:
    """The page on a desktop, opened once: it is live, so no test has to load it anew."""
    with watched(chromium, viewport=DESKTOP) as found:
        found.goto(site.gateway.url)
        expect(found.page.locator("#nodes article")).to_have_count(1)
        yield found


@pytest.fixture
def seen(opened: Watched, site: Site) -> Iterator[Watched]:
    """The opened page; nothing may have been said in the console by the end of a test, and nobody else asked."""
    yield opened
    opened.page.unroute_all()
    assert opened.said == []
    assert {urlsplit(url).netloc for url in opened.asked} == {urlsplit(site.gateway.url).netloc}


def twice(page: Page, name: str) -> None:
    """Press a button that asks whether it is meant."""
    page.get_by_role("button", name=name, exact=True).click()
    page.get_by_role("button", name=f"Really: {name}", exact=True).click()


# --- what is served ------------------------------------------------------------------------------------------------


def test_browsers_get_a_page_at_the_root_and_programs_a_line(site: Site) -> None:
    http = site.gateway.http
    page, line = http.get("/", headers=HTML), http.get("/")

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert line.text == "Ollama is running"
    assert http.head("/").status_code == 200
    assert http.get("/", headers={**HTML, "if-none-match": page.headers["etag"]}).status_code == 304


def test_files_are_those_of_the_table_and_carry_the_policy(site: Site) -> None:
    http = site.gateway.http

    for path in ("/page/main.js", "/page/style.css", "/page/vendor/preact.module.js", "/page/vendor/LICENSE-htm.txt"):
        found = http.get(path)
        assert found.status_code == 200, path
        assert "default-src 'none'" in found.headers["content-security-policy"]
        assert found.headers["x-content-type-options"] == "nosniff"
    for path in ("/page/", "/page/../page_files.py", "/page/%2e%2e/page_files.py", "/page/vendor", "/page//etc/passwd"):
        assert http.get(path).status_code == 404, path


def test_a_snapshot_has_jobs_with_place_and_reason_and_no_prompts(site: Site) -> None:
    jobs = [site.submit("slow", user=user) for user in ("ada", "ada", "eve")]
    try:
        facts = eventually(
            lambda: next(
                (f for f in [site.facts()] if any(j.position == 1 and "1 of 1" in j.reason for j in f.jobs)), None
            ),
            "a beat that tells of the slot at work",
        )
        text = facts.model_dump_json()

        assert "secret-of-somebody" not in text
        assert {job.state for job in facts.jobs[:3]} == {JobState.RUNNING, JobState.QUEUED}
        waiting = [job for job in facts.jobs if job.state is JobState.QUEUED]
        assert [job.position for job in waiting] == [1, 2]
        assert "slots are at work" in waiting[0].reason
        (queue,) = facts.queues
        assert (queue.model, queue.lane, queue.waiting) == ("slow", "interactive", 2)
        assert 0 < queue.oldest_ms < 60_000
        assert {each.model for each in facts.instances} == {"echo", "slow"}
        assert [event.kind for event in facts.events].count("load") >= 2
        assert facts.links == {"Flower": "http://127.0.0.1:5555"}
    finally:
        for job in jobs:
            job.cancel()


def test_the_feed_sends_a_snapshot_each_second(site: Site) -> None:
    with site.gateway.http.stream("GET", "/packtrain/v1/fleet/feed") as response:
        events = parse_stream(response.iter_lines())
        times = [Facts.model_validate_json(next(events).data).at_ms for _ in range(2)]

    assert 700 < times[1] - times[0] < 10_000


def test_a_gateway_that_is_asked_to_stop_waits_for_no_reader_of_the_feed(site: Site, tmp_path: Path) -> None:
    with (
        gateway(site.fleet.url, tmp_path, PACKTRAIN_DRAIN_S="60") as door,
        door.http.stream("GET", "/packtrain/v1/fleet/feed") as response,
    ):
        lines = response.iter_lines()
        assert next(lines)
        door.process.terminate()

        assert door.process.wait(15) == 0


@pytest.mark.parametrize("span_s", [900, 3600, 86400])
def test_curves_reach_back_as_far_as_asked(site: Site, span_s: int) -> None:
    found = Series.model_validate_json(site.gateway.http.get(f"/packtrain/v1/fleet/history?span_s={span_s}").text)

    assert 60 <= len(found.at_ms) <= 300
    assert abs(len(found.at_ms) * found.step_ms - span_s * 1000) <= found.step_ms
    assert any(value is not None for value in found.running)


def test_another_span_is_refused(site: Site) -> None:
    response = site.gateway.http.get("/packtrain/v1/fleet/history?span_s=7")

    assert response.status_code == 400
    assert "900, 3600, 86400" in response.json()["error"]["message"]


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_fleet_is_light_and_soon_there(seen: Watched) -> None:
    page = seen.page

    expect(page.get_by_role("article", name="Node n1")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^Memory: weights"))).to_be_visible()
    expect(page.locator("#instances .instance")).to_have_count(2)
    expect(page.locator("#curves canvas")).to_have_count(3)
    expect(page.locator("#events .load").first).to_be_visible()
    expect(page.get_by_role("link", name="Flower")).to_have_attribute("href", "http://127.0.0.1:5555")
    assert 30_000 < seen.weight < 1_000_000


def test_the_first_paint_comes_within_a_second(site: Site, chromium: Browser) -> None:
    """On loopback, the best of some loads: a page that waits for more than its own files never comes so soon."""

    def paints() -> bool:
        with watched(chromium, viewport=DESKTOP) as fresh:
            fresh.goto(site.gateway.url)
            return fresh.first_paint_ms() < 1000

    assert any(paints() for _ in range(10))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_rule_of_accessibility_is_broken(
    site: Site, chromium: Browser, scheme: str, viewport: dict[str, int]
) -> None:
    jobs = [site.submit("slow") for _ in range(3)]
    with watched(chromium, viewport=viewport, color_scheme=scheme) as found:
        found.goto(site.gateway.url)
        expect(found.page.locator("#jobs tbody tr").first).to_be_visible()
        expect(found.page.locator("#curves canvas")).to_have_count(3)

        assert found.broken_rules() == []
    for job in jobs:
        job.cancel()


def test_a_job_is_cancelled_by_its_button(site: Site, seen: Watched) -> None:
    job = site.submit("slow")

    twice(seen.page, f"Cancel job {job.id[:8]}")

    expect(seen.page.get_by_role("status")).to_contain_text("is cancelled")
    eventually(lambda: job.status().state is JobState.CANCELLED, "a cancelled job")
    row = seen.page.get_by_role("row").filter(has_text=job.id[:8])
    expect(row).to_contain_text("cancelled")


def test_a_model_is_loaded_unpinned_pinned_and_unloaded(site: Site, seen: Watched) -> None:
    page = seen.page
    page.get_by_role("button", name="Load spare and pin it").focus()
    page.keyboard.press("Enter")

    expect(page.get_by_label("Model spare")).to_contain_text("loaded", timeout=20_000)
    site.fleet.instance("spare")
    expect(page.get_by_label("Model spare")).to_contain_text("pinned")

    page.get_by_role("button", name="Unpin spare").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Model spare")).not_to_contain_text("pinned")
    expect(page.get_by_label("Model spare")).to_contain_text("loaded")
    page.get_by_role("button", name="Pin spare").click()
    expect(page.get_by_label("Model spare")).to_contain_text("pinned")

    page.get_by_role("button", name="Unload spare").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Space")

    expect(page.get_by_label("Model spare")).not_to_contain_text("loaded", timeout=20_000)
    eventually(
        lambda: {i.model: i.state for i in site.fleet.client.instances()}["spare"] is InstanceState.STOPPED,
        "a model that is unloaded",
    )


def test_a_node_is_asked_to_drain(seen: Watched) -> None:
    page = seen.page
    page.get_by_role("button", name="Drain n1").click()
    expect(page.get_by_role("button", name="Really: Drain n1")).to_be_visible()
    page.route("**/packtrain/v1/nodes/n1", lambda route: route.fulfill(json={}))  # the others need it awake

    with page.expect_request("**/packtrain/v1/nodes/n1") as asked:
        page.get_by_role("button", name="Really: Drain n1").click()

    assert asked.value.method == "PATCH"
    assert asked.value.post_data_json == {"draining": True}


def test_the_playground_streams_and_shows_text_as_text(seen: Watched) -> None:
    page = seen.page
    page.get_by_label("Model", exact=True).select_option("echo")
    page.get_by_label("Prompt").fill(NASTY[::-1] + " one two three")
    page.keyboard.press("Enter")
    answer = page.locator(".turn.assistant")

    expect(answer).to_contain_text("eerht")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()  # it goes on while some of it is there
    expect(answer).to_contain_text(NASTY)
    expect(page.get_by_text(re.compile("^first token after .*, then "))).to_be_visible()
    assert page.locator(".chat img").count() == 0


def test_a_stopped_chat_cancels_its_job(site: Site, seen: Watched) -> None:
    page = seen.page
    page.get_by_role("button", name="new chat").click()
    page.get_by_label("Model", exact=True).select_option("slow")
    page.get_by_label("Prompt").fill("!long and on and on")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".turn.assistant")).to_contain_text("no")
    job = site.fleet.client.jobs(1)[0].id

    page.get_by_role("button", name="Stop").click()

    eventually(lambda: site.fleet.client.job(job).status().state is JobState.CANCELLED, "a cancelled job")
    expect(page.get_by_text("stopped")).to_be_visible()


def test_names_and_reasons_are_never_html(site: Site, chromium: Browser) -> None:
    """A hostile fleet: every text of a snapshot is markup."""
    with watched(chromium, viewport=DESKTOP) as seen:
        seen.page.route("**/packtrain/v1/fleet/feed", lambda route: route.fulfill(
            content_type="text/event-stream", body=f"event: snapshot\ndata: {json.dumps(_hostile())}\n\n"))  # fmt: skip
        seen.goto(site.gateway.url)

        expect(seen.page.locator("#nodes h3")).to_have_text(NASTY)
        expect(seen.page.locator("#jobs")).to_contain_text(NASTY)
        assert seen.page.locator("main img").count() == 0
        assert seen.said == []


def test_versions_are_shown_while_they_differ(site: Site, chromium: Browser) -> None:
    facts = _hostile()
    facts["nodes"] = [
        {**facts["nodes"][0], "node": name, "version": version} for name, version in (("a", "0.1.0"), ("b", "0.2.0"))
    ]
    with watched(chromium, viewport=DESKTOP) as seen:
        seen.page.route("**/packtrain/v1/fleet/feed", lambda route: route.fulfill(
            content_type="text/event-stream", body=f"event: snapshot\ndata: {json.dumps(facts)}\n\n"))  # fmt: skip
        seen.goto(site.gateway.url)

        expect(seen.page.get_by_role("article", name="Node a")).to_contain_text("0.1.0")
        expect(seen.page.get_by_role("article", name="Node b")).to_contain_text("0.2.0")


def _hostile() -> dict[str, Any]:
    memory = dict.fromkeys(("budget", "weights", "kv", "other", "reserved", "outside", "free"), 1)
    node = {"node": NASTY, "state": "quarantine", "reason": NASTY, "cores": 1, "cores_used": 0, "memory": memory,
            "memory_total": 1, "memory_free": 1, "gpus": [NASTY], "labels": {NASTY: NASTY}, "models": 1,
            "faults": [NASTY], "disk_free": 1}  # fmt: skip
    instance = {"instance": NASTY, "model": NASTY, "node": NASTY, "state": "LOADING", "reason": NASTY, "reserved": 1,
                "since_ms": 1, "slots": 1, "slots_used": 0, "tokens_per_s": 0}  # fmt: skip
    queue = {"route": NASTY, "model": NASTY, "lane": "bulk", "waiting": 1, "oldest_ms": 1, "reason": NASTY}
    job = {"id": NASTY, "state": "QUEUED", "model": NASTY, "user": NASTY, "lane": "bulk", "submitted_ms": 1,
           "started_ms": None, "finished_ms": None, "tokens": 1, "position": 1, "eta_s": 1, "reason": NASTY,
           "node": NASTY, "cancel_requested": False}  # fmt: skip
    model = {"id": NASTY, "about": NASTY, "alias_of": "", "answers": True, "chats": True, "needs": 1, "loaded": 1,
             "coming": 0, "wanted": 1}  # fmt: skip
    event = {"at_ms": 1, "kind": "fault", "model": NASTY, "node": NASTY, "text": NASTY}
    batch = {"id": NASTY, "status": NASTY, "total": 1, "completed": 0, "failed": 0, "created_s": 1}
    return {"at_ms": 2, "is_led": True, "user": NASTY, "is_admin": True, "tokens_per_s": 1, "nodes": [node],
            "instances": [instance], "queues": [queue], "jobs": [job], "models": [model], "events": [event],
            "batches": [batch], "links": {NASTY: "javascript:alert(1)"}}  # fmt: skip


def test_events_are_read_whole_wherever_the_network_cuts_them(seen: Watched) -> None:
    """Each byte comes alone: characters of several bytes, events, and their ends are all cut through."""
    text = ': begun\n\nevent: error\ndata: {"a": "llamas \u00e9\u4e16\U0001f999"}\n\ndata: [DONE]\n\ndata: cut off'
    found = seen.page.evaluate(
        """async (text) => {
            const { readEvents } = await import("/page/sse.js");
            const bytes = new TextEncoder().encode(text);
            const pull = (controller) => {
                for (const byte of bytes) controller.enqueue(new Uint8Array([byte]));
                controller.close();
            };
            const found = [];
            for await (const event of readEvents(new ReadableStream({ start: pull }))) found.push(event);
            return found;
        }""",
        text,
    )

    assert found == [
        {"event": "error", "data": '{"a": "llamas \u00e9\u4e16\U0001f999"}'},
        {"event": "message", "data": "[DONE]"},
    ]


def test_numbers_are_for_people(seen: Watched) -> None:
    found = seen.page.evaluate(
        """async () => {
            const { bytes, duration, rate } = await import("/page/format.js");
            return [
                [0, 5 * 2 ** 20, 1.5 * 2 ** 30, 24 * 2 ** 30].map(bytes),
                [null, 80, 2500, 90_000, 600_000, 8e6, 4e8].map(duration),
                [0, 7.26, 184.4, 12_400].map(rate),
            ];
        }"""
    )

    assert found == [
        ["0 MiB", "5 MiB", "1.5 GiB", "24 GiB"],
        ["\u2013", "80 ms", "2.5 s", "90 s", "10 min", "2 h", "5 d"],
        ["0", "7.3", "184", "12,400"],
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_in_light_and_dark(site: Site, chromium: Browser, scheme: str) -> None:
    job = site.submit("slow")
    with watched(chromium, viewport=PHONE, color_scheme=scheme, has_touch=True) as seen:
        seen.goto(site.gateway.url)
        expect(seen.page.locator("#jobs tbody tr").first).to_be_visible()
        wide = seen.page.evaluate("document.documentElement.scrollWidth")
        paper, ink = (
            seen.page.evaluate(f"getComputedStyle(document.body).{what}") for what in ("backgroundColor", "color")
        )

        assert wide <= PHONE["width"]
        assert _contrast(paper, ink) > 7
        assert (_luminance(paper) > 0.5) == (scheme == "light")
        assert seen.said == []
    job.cancel()


def _luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    """By WCAG: 1 to 21; 7 is its highest grade for text."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


# --- keys; last, for they shut the others out ----------------------------------------------------------------------


def test_with_keys_the_page_asks_for_one_and_shows_what_it_may(site: Site, chromium: Browser) -> None:
    redis = connect(site.fleet.url, name="test")
    keys = ApiKeys(redis)
    _, secret = keys.create("ada")
    mine, other = site.submit("slow", user="ada"), site.submit("slow", user="eve")
    http = site.gateway.http
    eventually(lambda: http.get("/packtrain/v1/fleet").status_code == 401, "a gateway that asks for a key")
    with watched(chromium, viewport=DESKTOP) as seen:
        seen.goto(site.gateway.url)
        page = seen.page
        field = page.get_by_label("API key", exact=True)
        expect(field).to_be_focused()
        field.fill("pt-none-of-yours")
        page.keyboard.press("Enter")
        expect(page.get_by_text("is none, or was revoked")).to_be_visible()
        field.fill(secret)
        page.keyboard.press("Enter")

        expect(page.get_by_role("heading", name="Jobs of ada")).to_be_visible()
        expect(page.locator("#jobs")).to_contain_text(mine.id[:8])
        expect(page.locator("#jobs")).not_to_contain_text(other.id[:8])
        expect(page.get_by_role("button", name="Drain n1")).to_have_count(0)
        expect(page.locator("#models button")).to_have_count(0)
        assert page.evaluate("[document.cookie, JSON.stringify(localStorage), sessionStorage['packtrain-key']]") == [
            "",
            "{}",
            secret,
        ]
        assert not any(secret in url for url in seen.asked)
        assert http.get("/packtrain/v1/fleet", headers={"x-api-key": secret}).json()["user"] == "ada"

        keys.revoke("ada")
        keys.create("root", is_admin=True)
        expect(page.get_by_label("API key", exact=True)).to_be_visible()
    keys.revoke("root")
    mine.cancel()
    other.cancel()
    redis.close()
