"""A model over several nodes as everybody else sees it: one instance, on the node of its head."""

from __future__ import annotations

from collections import Counter
from io import StringIO

import pytest
from rich.console import Console

from packtrain.broker import deeds
from packtrain.broker.deeds import of_instances
from packtrain.broker.errors import InvalidRequest
from packtrain.broker.explain import Explanation, explain
from packtrain.broker.ids import JobId, Route
from packtrain.broker.jobs import Place
from packtrain.broker.model_info import BufferMemory, ModelMemory
from packtrain.broker.outcome import JobStatus
from packtrain.broker.placement.snapshot import Snapshot
from packtrain.broker.placement.view import View, is_up
from packtrain.broker.spilling import outlook_of
from packtrain.broker.states import InstanceState, JobState
from packtrain.client.bulk.window import slots_for, together
from packtrain.client.cli.views import instances_table
from packtrain.client.dialects.ollama import models as ollama
from packtrain.client.gateway.fleet_view import View as GatewayView
from packtrain.client.gateway.metrics_fleet import fleet_metrics
from packtrain.client.gateway.page_facts import instance_facts, memory_bar, model_facts
from packtrain.client.gateway.patience import load_s
from packtrain.client.verify import _check_is_there
from tests.support.factories import DETERMINISTIC, MIB, MODEL, ROUTE, instance_beat, model_info, node_beat

pytestmark = pytest.mark.unit

NOW_MS = 1_000_000
MEMORY = ModelMemory(buffers=(BufferMemory(weights=180 * MIB, cache=40 * MIB),))
INFO = model_info(memory=MEMORY, n_layer=4, layer_bytes=(40 * MIB,) * 4, weights_bytes=180 * MIB)
HEAD = instance_beat(
    "tiny-1", node="n1", group="tiny-1", layers=1, n_ctx=512, ready_ms=NOW_MS - 10, requested_ms=NOW_MS - 2010
)
SHARD = instance_beat(
    "tiny-0", node="n2", group="tiny-1", layers=3, n_slots=0, n_ctx=512, state=InstanceState.HOLDING,
    requested_ms=NOW_MS - 60_000, reserved_bytes=250 * MIB, resident_bytes=230 * MIB, reason="has all",
)  # fmt: skip
GROUP = [SHARD, HEAD]


def why(*instances: object, route: Route = ROUTE, meant_for: str = "") -> Explanation:
    """Why a job that is next is where it is."""
    status = JobStatus(id="job", state=JobState.QUEUED, model=MODEL, route=route, meant_for=meant_for or None)
    place = Place(ahead=0, waiting=1, interactive_ahead=0, users=1, own_waiting=1, first=JobId("job"), first_attempts=0)
    return explain(status, place, None, list(instances), {}, NOW_MS)  # type: ignore[arg-type]


def test_only_the_head_serves_and_only_the_head_is_up() -> None:
    certain = HEAD.model_copy(update={"numerics": "deterministic"})

    assert [i.serves(ROUTE) for i in (HEAD, SHARD, instance_beat())] == [True, False, True]
    assert [i.serves(DETERMINISTIC) for i in (HEAD, certain)] == [False, True]
    assert [is_up(i) for i in (HEAD, SHARD)] == [True, False]
    assert (HEAD.part, SHARD.part) == ("head of a group, 1 layer", "shard of tiny-1, 3 layers")
    assert instance_beat().part == ""


def test_a_job_waits_for_the_head_and_hears_how_far_it_is() -> None:
    coming = HEAD.model_copy(update={"state": InstanceState.STARTING, "reason": "waits for its shard on n2"})

    assert "tiny is starting on n1 (waits for its shard on n2), 2 s after it was asked for" in why(coming, SHARD).reason
    assert "it is about to be planned" in why(SHARD).reason
    assert "only n2 may run it" in why(*GROUP, meant_for="n2").reason
    assert why(*GROUP).reason == "it is next, and a slot is free"


def test_a_job_is_run_again_by_the_head_and_by_no_shard() -> None:
    _check_is_there(GROUP, "n1", ROUTE)
    with pytest.raises(InvalidRequest, match="there are: n1, tiny-1"):
        _check_is_there(GROUP, "n2", ROUTE)


def test_bulk_runs_count_the_slots_of_heads_and_the_memory_of_all_members() -> None:
    other = model_info("other", required_bytes=800 * MIB)
    nodes = [node_beat("n1", models=(MODEL, "other")), node_beat("n2", models=("other",))]
    infos = {MODEL: model_info(required_bytes=5000 * MIB), "other": other}
    routes = [Route("other"), ROUTE]

    assert slots_for(ROUTE, GROUP, infos) == 4
    # 100 MiB of 1000 are taken on n1, 250 on n2.
    assert together(routes, [], nodes, GROUP, infos) == [ROUTE, Route("other")]
    infos["other"] = model_info("other", required_bytes=901 * MIB)
    assert together(routes, [], nodes, GROUP, infos) == [ROUTE]
    assert together(routes, [], nodes, [], infos) == [Route("other")]


def test_what_becomes_of_a_group_counts_once() -> None:
    ended = [i.model_copy(update={"state": InstanceState.FAILED}) for i in GROUP]
    total: Counter[str] = Counter()
    for deed in of_instances(ended):
        total.update({name: n for name, n in deed.figures.items() if not name.startswith("load:")})

    assert {name for name in total if name.startswith((deeds.LOADED, deeds.CRASHED))} == {
        "loaded|tiny|n1", "crashed|tiny|n1"
    }  # fmt: skip
    assert not [name for name in total if name.endswith("n2")]


def test_a_shard_that_is_there_is_no_model_that_comes_up() -> None:
    loading = SHARD.model_copy(update={"state": InstanceState.LOADING})
    (facts,) = model_facts([INFO], [HEAD, loading], {})

    assert (facts.loaded, facts.coming) == (1, 0)
    waiting = Explanation(id="j", state=JobState.QUEUED, reason="", model=MODEL, user="u", lane="bulk", now_ms=NOW_MS)
    assert load_s(waiting, [INFO], [loading], NOW_MS) == load_s(waiting, [INFO], [], NOW_MS)
    view = View(Snapshot(NOW_MS, nodes=[node_beat()], models={MODEL: INFO}, instances=[SHARD]))
    assert outlook_of(ROUTE, view, None, is_held_up=False).num_free == 0


def test_the_page_shows_what_each_member_has_of_the_model() -> None:
    bars = [memory_bar(node_beat(node), GROUP, {MODEL: INFO}) for node in ("n1", "n2")]

    # One layer, and 20 MiB that are no layer's; three layers.
    assert [(bar.weights // MIB, bar.kv // MIB) for bar in bars] == [(60, 10), (120, 30)]
    shown = instance_facts(SHARD)
    assert (shown.part, shown.group, shown.layers, shown.reason) == ("shard of tiny-1, 3 layers", "tiny-1", 3, "")


def test_ps_lists_shards_behind_their_head_with_what_they_hold() -> None:
    out = Console(width=250, file=StringIO(), record=True)
    out.print(instances_table([SHARD, HEAD, instance_beat("tiny-2")]))
    rows = out.export_text().splitlines()

    assert [row.split()[0] for row in rows[1:]] == ["tiny-1", "tiny-0", "tiny-2"]
    assert "head of a group, 1 layer" in rows[1]
    assert "0/4" in rows[1]
    assert "shard of tiny-1, 3 layers" in rows[2]
    assert "/" not in rows[2]


def test_ollama_lists_a_group_once_with_the_memory_of_all() -> None:
    (entry,) = ollama.running({MODEL: INFO}, GROUP)["models"]

    assert (entry["size"], entry["packtrain"]["node"]) == (330 * MIB, "n1")


def test_metrics_count_shards_apart_and_their_memory_like_any() -> None:
    view = GatewayView([node_beat("n1"), node_beat("n2")], [INFO], GROUP)
    samples = {
        (sample.name, sample.labels.get("instance_id", ""), sample.labels.get("state", "")): sample.value
        for metric in fleet_metrics(view, None, with_users=False)
        for sample in metric.samples
        if sample.labels.get("model") == MODEL
    }

    assert samples["packtrain_instances", "", "ready"] == 1
    assert ("packtrain_instances", "", "holding") not in samples
    assert samples["packtrain_shards", "", "holding"] == 1
    assert samples["packtrain_instance_memory_measured_bytes", "tiny-0", ""] == 230 * MIB
    assert ("packtrain_instance_slots_used", "tiny-0", "") not in samples
