"""What the fleet page shows, of which the rest is drawing."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.history import Fault
from packtrain.broker.journal import Decision, Entry
from packtrain.broker.model_info import BufferMemory, ModelMemory
from packtrain.broker.orders import Desired
from packtrain.broker.states import InstanceState, JobState
from packtrain.client.gateway.access import Caller
from packtrain.client.gateway.names import names_for
from packtrain.client.gateway.page_facts import (
    EventFacts,
    Facts,
    InstanceFacts,
    JobFacts,
    ModelFacts,
    NodeFacts,
    QueueFacts,
    events_of,
    in_order,
    memory_bar,
    model_facts,
    node_facts,
)
from packtrain.client.gateway.page_feed import for_caller
from packtrain.client.gateway.page_files import policy_of, wants_page
from tests.support.factories import MIB, instance_beat, model_info, node_beat

pytestmark = pytest.mark.unit

PAGE = resources.files("packtrain.client.gateway") / "page"


def job(job_id: str, **fields: Any) -> JobFacts:
    return JobFacts(**{"id": job_id, "state": JobState.QUEUED, "model": "m", "submitted_ms": 1, **fields})


# --- memory --------------------------------------------------------------------------------------------------------


def test_a_bar_splits_what_an_instance_holds_by_its_model() -> None:
    memory = ModelMemory(buffers=(BufferMemory(weights=60 * MIB, cache=20 * MIB),))
    info = model_info(memory=memory, n_slots=4, n_ctx=512)
    twice = instance_beat(n_slots=8, n_ctx=512, resident_bytes=120 * MIB, reserved_bytes=150 * MIB)
    bar = memory_bar(node_beat(), [twice, instance_beat("x", node="n2")], {info.id: info})

    assert (bar.weights, bar.kv, bar.other, bar.reserved) == (60 * MIB, 40 * MIB, 20 * MIB, 30 * MIB)
    assert (bar.budget, bar.free, bar.outside) == (1000 * MIB, 850 * MIB, 0)


def test_what_other_programs_took_is_not_free() -> None:
    bar = memory_bar(node_beat(memory_free=300 * MIB), [], {})

    assert (bar.free, bar.outside) == (300 * MIB, 700 * MIB)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=4), st.integers(0, 2000))
def test_the_parts_of_a_bar_add_up_to_the_budget_or_exceed_it(held: list[tuple[int, int]], free: int) -> None:
    info = model_info(weights_bytes=100 * MIB, kv_bytes_per_token=1024)
    beats = [
        instance_beat(f"i{n}", resident_bytes=has * MIB, reserved_bytes=wants * MIB, n_ctx=512)
        for n, (has, wants) in enumerate(held)
    ]
    bar = memory_bar(node_beat(memory_free=free * MIB), beats, {info.id: info})
    ours = bar.weights + bar.kv + bar.other + bar.reserved

    assert ours == sum(max(has, wants) for has, wants in held) * MIB
    assert ours + bar.outside + bar.free == max(bar.budget, ours)
    assert min(bar.model_dump().values()) >= 0


def test_a_node_shows_the_cores_at_work() -> None:
    beats = [instance_beat("a", threads=3, slots_used=1), instance_beat("b", threads=4)]

    assert node_facts(node_beat(cores=8), beats, {}).cores_used == 3


# --- who sees what -------------------------------------------------------------------------------------------------


def test_who_is_no_administrator_sees_jobs_of_their_own_and_models_of_their_key() -> None:
    waits = "m is not loaded: waits until secret is unloaded"
    facts = Facts(
        jobs=(job("a", user="ada", model="m", reason=waits), job("b", user="eve", model="secret")),
        models=(ModelFacts(id="m"), ModelFacts(id="secret")),
        nodes=(NodeFacts(node="n1", state="quarantine", reason="secret keeps failing", faults=("secret.gguf",)),),
        instances=(
            InstanceFacts(instance="m-0", model="m", node="n1", state=InstanceState.READY),
            InstanceFacts(instance="secret-0", model="secret", node="n1", state=InstanceState.READY),
        ),
        queues=tuple(QueueFacts(route=r, model=r, lane="bulk", waiting=1) for r in ("m", "secret")),
        events=tuple(EventFacts(at_ms=1, kind="load", model=m, text="it leaves for secret") for m in ("m", "secret")),
    )  # fmt: skip
    infos = [model_info("m"), model_info("secret")]
    callers = [
        Caller("ada", "k1", is_admin=False, models=frozenset({"m"})),
        Caller("root", "k2", is_admin=True, models=frozenset({"m"})),
    ]
    ada, admin = (for_caller(facts, caller, names_for(caller, infos)) for caller in callers)

    assert ([each.id for each in ada.jobs], [each.id for each in ada.models], ada.is_admin) == (["a"], ["m"], False)
    assert ([each.id for each in admin.jobs], admin.user, admin.is_admin) == (["a", "b"], None, True)
    assert "secret" not in ada.model_dump_json()
    assert (len(ada.nodes), len(ada.instances), len(ada.queues), len(ada.events)) == (1, 1, 1, 1)
    assert admin.instances == facts.instances


def test_no_field_of_a_job_could_hold_a_prompt_or_an_answer() -> None:
    assert not {"spec", "prompt", "messages", "text", "outcome", "cause"} & JobFacts.model_fields.keys()


# --- order and events ----------------------------------------------------------------------------------------------


def test_jobs_run_wait_by_place_and_then_ended_latest_first() -> None:
    jobs = [
        job("old", state=JobState.SUCCEEDED, finished_ms=5),
        job("third", position=3),
        job("unknown"),
        job("new", state=JobState.FAILED, finished_ms=9),
        job("first", position=1, submitted_ms=7),
        job("runs", state=JobState.RUNNING, started_ms=2),
    ]

    assert [each.id for each in in_order(jobs)] == ["runs", "first", "third", "unknown", "new", "old"]


def test_decisions_and_faults_are_one_timeline() -> None:
    load = Decision(verb="load", model="m", node="n1", reason="1 job waits")
    reject = Decision(verb="reject", route="m@deterministic", reason="it fits nowhere", jobs=1)
    fault = Fault(at_ms=20, state="LOST", instance="m-1", model="m", node="n1", reason="its node fell silent")
    found = events_of([Entry(at_ms=10, decisions=(load,)), Entry(at_ms=30, decisions=(reject,))], [fault])

    assert [(event.at_ms, event.kind, event.model) for event in found] == [
        (30, "reject", "m"),
        (20, "fault", "m"),
        (10, "load", "m"),
    ]
    assert found[0].text == "1 job was told: it fits nowhere"


def test_a_model_says_where_it_stands() -> None:
    beats = [instance_beat("a"), instance_beat("b", state=InstanceState.LOADING)]
    (found, alias) = model_facts(
        [model_info(embeds_only=True), model_info("short", alias_of="tiny")], beats, {"tiny": Desired(replicas=2)}
    )

    assert (found.loaded, found.coming, found.wanted, found.answers) == (1, 1, 2, False)
    assert (alias.alias_of, alias.loaded) == ("tiny", 1)


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("TEXT/HTML; q=0.5", True),
        ("text/html;q=0, */*", False),
        ("*/*", False),
        ("", False),
        ("application/json, text/plain", False),
    ],
)
def test_browsers_get_the_page_and_others_the_greeting(accept: str, is_page: bool) -> None:
    assert wants_page(accept) == is_page


def test_the_policy_lets_in_the_import_map_and_no_other_inline_script() -> None:
    html = (PAGE / "index.html").read_text()
    policy = policy_of(html)

    assert policy.count("'sha256-") == 1
    assert "unsafe" not in policy
    assert "https:" not in policy
    assert re.findall(r"<script(?![^>]*\bsrc=)[^>]*>", html) == ['<script type="importmap">']
    assert "style=" not in html


def test_vendored_files_are_those_that_are_listed() -> None:
    listed = dict(
        re.findall(r"^\| (\S+) \|.*\| ([0-9a-f]{64}) \|$", (PAGE / "vendor/README.md").read_text(), re.MULTILINE)
    )
    there = {entry.name: entry for entry in (PAGE / "vendor").iterdir() if entry.name.endswith((".js", ".css"))}

    assert listed == {name: hashlib.sha256(entry.read_bytes()).hexdigest() for name, entry in there.items()}
    assert {entry.name for entry in (PAGE / "vendor").iterdir()} >= {
        "LICENSE-preact.txt",
        "LICENSE-htm.txt",
        "LICENSE-uPlot.txt",
    }


def test_the_command_line_needs_none_of_what_serves_http() -> None:
    program = "import sys, packtrain.client.cli.main\nprint([m for m in ('starlette', 'fastapi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_our_modules_make_no_html_of_strings_and_name_no_other_host() -> None:
    for entry in PAGE.iterdir():
        if entry.name.endswith((".js", ".css", ".html")):
            text = re.sub(r"^\s*(//|/?\*).*$", "", entry.read_text(), flags=re.MULTILINE)
            for word in (
                "innerHTML",
                "insertAdjacentHTML",
                "dangerouslySetInnerHTML",
                "document.write",
                "eval(",
                "://",
            ):
                assert word not in text, f"{entry.name}: {word}"
