"""`/metrics` of a real fleet: every job counts once, whichever way it came, and every gateway tells the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.fleets import Fleet, eventually, scripted_fleet
from tests.support.gateways import Gateway, gateway
from tests.support.observability import expressions, labels_by, names_in
from tests.support.promtool import Scrape, needs_promtool, promtool

pytestmark = pytest.mark.integration

DOCS = Path(__file__).parents[2] / "docs"
#: A script takes no memory that could be estimated, and lies on one node.
SILENT = {"packtrain_instance_memory_estimated_bytes", "packtrain_shards"}


@dataclass(frozen=True)
class Scene:
    """A fleet with two gateways before it, and what has been asked of it."""

    fleet: Fleet
    doors: tuple[Gateway, Gateway]
    folder: Path

    def scrape(self, door: int = 0) -> Scrape:
        response = self.doors[door].http.get("/metrics")
        assert response.status_code == 200
        return Scrape(response.text)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("metrics")
    models = {"m1": {"n_slots": 4, "n_ctx": 256}, "m2": {"n_slots": 2, "n_ctx": 256}, "unused": {"n_slots": 2}}
    models["slow"] = {"n_slots": 1, "n_ctx": 4096, "step_ms": 20}
    with ExitStack() as stack:
        fleet = stack.enter_context(scripted_fleet(folder, models))
        homes = [folder / name for name in ("one", "two")]
        for home in homes:
            home.mkdir()
        one, two = (stack.enter_context(gateway(fleet.url, home)) for home in homes)
        found = Scene(fleet, (one, two), folder)
        fleet.client.generate("m1", "abc def", user="anna", tag="nightly")
        list(fleet.client.map("m2", ["abc"] * 3, lane="bulk", user="batch"))
        one.answer("/v1/completions", {"model": "m1", "prompt": "abc", "user": "anna", "tag": "nightly"})
        two.answer("/v1/completions", {"model": "m1", "prompt": "abc"}, **{"X-Packtrain-Tag": "by-header"})
        eventually(lambda: found.scrape().value("packtrain_instances", model="m2", state="ready"), "m2 is told READY")
        yield found


def test_jobs_count_whichever_way_they_came(scene: Scene) -> None:
    said = scene.scrape()

    assert said.value("packtrain_jobs_total", model="m1", lane="interactive", state="succeeded") == 3
    assert said.value("packtrain_jobs_total", model="m2", lane="bulk", state="succeeded") == 3
    assert said.value("packtrain_user_jobs_total", user="anna", model="m1") == 2
    assert said.value("packtrain_user_jobs_total", user="batch", model="m2") == 3
    assert said.value("packtrain_tag_jobs_total", tag="nightly", model="m1") == 2
    assert said.value("packtrain_tag_jobs_total", tag="by-header", model="m1") == 1
    assert said.sum("packtrain_generation_tokens_total") == said.sum("packtrain_user_generation_tokens_total") > 0
    for name in ("time_to_first_token", "request_queue_time", "request_prefill_time", "e2e_request_latency"):
        assert said.sum(f"packtrain_{name}_seconds_count", model="m1") == 3
    gaps = said.sum("packtrain_generation_tokens_total") - 6  # of each of the six answers its first token has none
    assert said.sum("packtrain_inter_token_latency_seconds_count") == gaps


def test_every_gateway_tells_the_same_and_a_new_one_goes_on(scene: Scene) -> None:
    home = scene.folder / "three"
    home.mkdir()
    with gateway(scene.fleet.url, home) as third:
        late = Scrape(third.http.get("/metrics").text)

    def counters(said: Scrape) -> dict[object, float]:
        own = ("packtrain_http", "packtrain_instance_")
        return {k: v for k, v in said.samples.items() if k[0].endswith("_total") and not k[0].startswith(own)}

    assert counters(scene.scrape(0)) == counters(scene.scrape(1)) == counters(late)
    assert late.sum("packtrain_jobs_total") == 6


def test_the_fleet_is_told_as_it_is(scene: Scene) -> None:
    said = scene.scrape()

    assert (said.value("packtrain_broker_up"), said.value("packtrain_leader_up")) == (1, 1)
    assert said.value("packtrain_model_loads_total", model="m1", node="n1") == 1
    assert said.value("packtrain_model_load_time_seconds_count", model="m1") == 1
    assert said.sum("packtrain_num_requests_waiting") == 0
    assert said.value("packtrain_num_requests_waiting", model="unused", lane="bulk") == 0
    assert said.sum("packtrain_jobs_total", model="unused") == 0
    assert said.sum("packtrain_instance_batch_size_count", model="m1") == said.sum(
        "packtrain_instance_steps_total", model="m1"
    )
    assert said.sum("packtrain_instance_kv_capacity_tokens", model="m1") == 4 * 256
    for what in ("budget", "reserved"):
        assert said.value(f"packtrain_node_memory_{what}_bytes", node="n1")
    for what in ("total", "free"):
        assert said.value(f"packtrain_node_memory_{what}_bytes", node="n1", device="ram")


def test_work_under_way_is_told_and_so_are_length_and_age_of_its_queue(scene: Scene) -> None:
    jobs = [scene.fleet.client.submit("slow", "!long", max_tokens=4000) for _ in range(3)]
    try:
        eventually(lambda: scene.scrape().sum("packtrain_instance_kv_used_tokens", model="slow"), "its cache is told")
        said = scene.scrape()
    finally:
        for job in jobs:
            job.cancel()

    assert said.value("packtrain_num_requests_waiting", model="slow", lane="interactive") == 2
    assert 0 < (said.value("packtrain_queue_oldest_wait_seconds", model="slow", lane="interactive") or 0) < 60
    assert said.sum("packtrain_instance_slots_used", model="slow") == 1
    assert said.value("packtrain_num_requests_running", model="slow") == 1
    assert 0 < said.sum("packtrain_instance_kv_used_tokens", model="slow") <= 4096


@needs_promtool
def test_promtool_finds_nothing_to_say(scene: Scene) -> None:
    assert promtool("check", "metrics", stdin=scene.scrape().text) == ""


def test_the_page_lists_what_there_is_with_types_and_labels(scene: Scene) -> None:
    said = scene.scrape()
    page = (DOCS / "metrics.md").read_text()
    listed: dict[str, tuple[str, set[str]]] = {}
    for section in page.split("\n## ")[1:]:
        title = section.partition("\n")[0]
        of_all = {"Jobs": {"model", "lane"}, "Instances": {"model", "node", "instance_id"}}.get(title, set())
        for name, kind, labels in re.findall(
            r"^\| `(packtrain_\w+)` \| (\w+) \| ([\w, ]*?) ?\|", section, re.MULTILINE
        ):
            listed[name] = (kind, of_all | set(filter(None, labels.replace(" ", "").split(","))))

    assert {name: kind for name, (kind, _) in listed.items()} == said.families
    silent = {name for name in listed if not said.labels(name) and listed[name][1]}
    assert silent <= SILENT
    assert {name: labels for name, (_, labels) in listed.items() if name not in silent} == {
        name: said.labels(name) for name in said.families if name not in silent
    }


def test_dashboard_and_alerts_ask_for_metrics_and_labels_that_there_are(scene: Scene) -> None:
    said = scene.scrape()
    asked = {found for each in expressions() for found in names_in(each, said.families)}
    known = set().union(*(said.labels(name) for name in said.families)) | {"le", "instance", "job"}

    assert len(asked) > 40
    assert {name for name, _ in asked} <= said.families.keys()
    for name, labels in asked:
        assert labels <= said.labels(name) or name in SILENT, f"{name} has no {labels - said.labels(name)}"
    assert {label for each in expressions() for label in labels_by(each)} <= known
