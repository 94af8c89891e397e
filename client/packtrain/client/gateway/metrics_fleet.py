"""A fleet as Prometheus' metrics: what is counted in the broker, and how things are at the scrape. Pure.

Every gateway tells the same, so take one of them, or the maximum. Labels are bounded: models, nodes and instances are
those that the fleet knows, and of users and tags so many are told apart (`keys.USED_MAX`). Instances have the label
`instance_id`, for `instance` is Prometheus' own, of the gateway. A model has figures of jobs once it has had any or is
loaded. docs/metrics.md lists all of it, and a test compares that with a scrape.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

from packtrain.broker import deeds
from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.ids import ModelId, model_of
from packtrain.broker.job_spec import Lane
from packtrain.broker.queues import LANES
from packtrain.broker.states import InstanceState, JobState
from packtrain.broker.tally import HISTOGRAMS, Histogram, Tally, Used
from packtrain.broker.tally_store import Counted
from packtrain.client.gateway.fleet_view import View

Labels = tuple[str, ...]
L = TypeVar("L", bound=Labels)

#: Histograms of jobs, by their names in `tally.HISTOGRAMS`.
_TIMES = {
    "first": ("packtrain_time_to_first_token_seconds", "From a job's submission to its first token."),
    "gap": ("packtrain_inter_token_latency_seconds", "Between two tokens of an answer, in the instance."),
    "queue": ("packtrain_request_queue_time_seconds", "From a job's submission to its last claim."),
    "prefill": ("packtrain_request_prefill_time_seconds", "From the claim of a job to its first token."),
    "decode": ("packtrain_request_decode_time_seconds", "From the first token of a job's last attempt to its end."),
    "whole": ("packtrain_e2e_request_latency_seconds", "From a job's submission to its end."),
}
_ENDS = tuple(state for state in JobState if state.is_terminal)
_DEEDS = {
    deeds.LOADED: ("packtrain_model_loads", "Instances that became ready."),
    deeds.LOAD_FAILED: ("packtrain_model_load_failures", "Instances that failed before they were ready."),
    deeds.CRASHED: ("packtrain_instance_crashes", "Ready instances that ended by themselves."),
    deeds.LOST: ("packtrain_instance_losses", "Instances that were lost with their node."),
    deeds.UNLOADED: ("packtrain_model_unloads", "Instances that ended as they were told to."),
    deeds.EVICTED: ("packtrain_model_evictions", "Of these, those that made room for another model."),
    deeds.SWAPPED: ("packtrain_model_swaps", "Of these, those whose model had jobs that waited or ran."),
}


def fleet_metrics(view: View, counted: Counted | None, *, with_users: bool) -> Iterator[Metric]:
    """All metrics of a fleet.

    Args:
        counted: None: there is no broker to ask, as in tests; then only what nodes and instances say.
        with_users: Tell who used what, too.
    """
    yield from _nodes(view)
    yield from _instances(view.instances)
    if counted is None:
        return
    shown = _shown(view, counted)
    yield from _leader(counted)
    yield from _queues(view, counted)
    yield from _jobs(shown)
    yield from _deeds(counted.deeds, view.instances)
    yield from _used("tag", counted.tags)
    if with_users:
        yield from _used("user", counted.users)


def _nodes(view: View) -> Iterator[Metric]:
    yield GaugeMetricFamily("packtrain_nodes", "Live nodes.", value=len(view.nodes))
    info = InfoMetricFamily("packtrain_node", "A live node.", labels=["node"])
    for node in view.nodes:
        info.add_metric([node.node], {"version": node.version})
    yield info

    def of(name: str, meaning: str, values: Mapping[str, float]) -> Metric:
        return _gauge(f"packtrain_node_{name}", meaning, ("node",), {(node,): value for node, value in values.items()})

    yield of("draining", "1: it takes nothing new.", {n.node: n.draining for n in view.nodes})
    yield of("quarantined", "1: nothing is loaded there.", {n.node: bool(n.quarantine) for n in view.nodes})
    yield of("cores", "Cores that instances may use.", {n.node: n.cores for n in view.nodes})
    yield of("disk_free_bytes", "Where its model files are.", {n.node: n.disk_free for n in view.nodes})
    yield of("memory_budget_bytes", "What instances may use together.", {n.node: n.memory_budget for n in view.nodes})
    held = {n.node: _held(n, view.instances) for n in view.nodes}
    yield of("memory_reserved_bytes", "Of the budget, what instances hold or have reserved.", held)
    devices = {(n.node, "ram" if d.kind == "ram" else d.name): d for n in view.nodes for d in n.devices}
    for what in ("total", "free"):
        values = {labels: getattr(device, what) for labels, device in devices.items()}
        meaning = f"Memory of a device, {what}."
        yield _gauge(f"packtrain_node_memory_{what}_bytes", meaning, ("node", "device"), values)


def _held(node: NodeBeat, instances: Iterable[InstanceBeat]) -> int:
    here = (each for each in instances if each.node == node.node and not each.state.is_terminal)
    return sum(max(each.reserved_bytes, each.resident_bytes) for each in here)


def _instances(instances: Sequence[InstanceBeat]) -> Iterator[Metric]:
    alive_parts = [each for each in instances if not each.state.is_terminal]
    living = [each for each in alive_parts if not each.is_shard]
    ready = [each for each in living if each.state is InstanceState.READY]
    alive = Count[Labels]((each.model, each.state.lower()) for each in living)
    yield _gauge("packtrain_instances", "Loaded models, and those that come and go.", ("model", "state"), alive)
    shards = Count[Labels]((each.model, each.state.lower()) for each in alive_parts if each.is_shard)
    yield _gauge("packtrain_shards", "Parts of models that other nodes hold for them.", ("model", "state"), shards)
    running, slots = Count[Labels](), Count[Labels]()
    for each in ready:
        running[(each.model,)] += each.slots_used
        slots[(each.model,)] += each.n_slots
    yield _gauge("packtrain_num_requests_running", "Jobs that run.", ("model",), running)
    yield _gauge("packtrain_slots", "Jobs that could run at once in what is loaded.", ("model",), slots)

    labels = ("model", "node", "instance_id")

    def of(values: Mapping[str, float]) -> dict[Labels, float]:
        return {(each.model, each.node, each.instance): values[each.instance] for each in living}

    gauges = {
        "slots_used": ("Slots at work.", {i.instance: i.slots_used for i in living}),
        "parked_jobs": ("Jobs parked for others.", {i.instance: i.parked for i in living}),
        "kv_used_tokens": ("Tokens in the caches of jobs.", {i.instance: i.kv_tokens for i in living}),
        "kv_capacity_tokens": ("Tokens that its slots hold.", {i.instance: i.n_slots * i.n_ctx for i in living}),
        "threads": ("Threads of a step.", {i.instance: i.threads for i in living}),
    }
    for name, (meaning, values) in gauges.items():
        yield _gauge(f"packtrain_instance_{name}", meaning, labels, of(values))
    counters = {
        "steps": ("Steps computed.", {i.instance: i.steps for i in living}),
        "generated_tokens": ("Tokens of answers, as they come.", {i.instance: i.tokens_out for i in living}),
        "reused_tokens": ("Tokens of prompts found in a cache.", {i.instance: i.tokens_reused for i in living}),
        "parkings": ("Times that a job was parked.", {i.instance: i.parkings for i in living}),
    }
    for name, (meaning, values) in counters.items():
        yield _counter(f"packtrain_instance_{name}", meaning, labels, of(values))
    batches = HistogramMetricFamily("packtrain_instance_batch_size", "Jobs in one step.", labels=labels)
    for each in living:
        if each.batches:
            batches.add_metric((each.model, each.node, each.instance), _batches(each), sum_value=each.batched)
    yield batches
    yield from _memory(alive_parts)


def _batches(each: InstanceBeat) -> list[tuple[str, float]]:
    """Steps of at most 1, 2, 4, ... jobs: `batches` has those above the bound before."""
    found, total = [], 0
    for place, count in enumerate(each.batches):
        total += count
        found.append((str(2.0**place), float(total)))
    return [*found, ("+Inf", float(total))]


def _memory(living: Sequence[InstanceBeat]) -> Iterator[Metric]:
    labels = ("model", "node", "instance_id", "device")
    names = {each.instance: (each.model, each.node, each.instance) for each in living}
    estimated = {
        (*names[each.instance], device): size for each in living for device, size in each.estimated_bytes.items()
    }
    measured = {(*names[each.instance], "ram"): each.resident_bytes for each in living}
    reserved = {(*names[each.instance], "ram"): each.reserved_bytes for each in living}
    name = "packtrain_instance_memory"
    yield _gauge(f"{name}_estimated_bytes", "What it was expected to take before any was loaded.", labels, estimated)
    yield _gauge(f"{name}_measured_bytes", "What it takes.", labels, measured)
    yield _gauge(f"{name}_reserved_bytes", "What was reserved for it.", labels, reserved)


def _leader(counted: Counted) -> Iterator[Metric]:
    yield GaugeMetricFamily("packtrain_leader_up", "1: a coordinator leads.", value=float(bool(counted.leader)))
    yield GaugeMetricFamily("packtrain_leader_term", "Grows with each new leader.", value=counted.term)
    info = InfoMetricFamily("packtrain_leader", "Who leads.", labels=[])
    if counted.leader:
        info.add_metric([], {"coordinator": counted.leader})
    yield info
    yield CounterMetricFamily(
        "packtrain_doorbells_rerung", "Doorbells that were lost and rung again.", value=counted.deeds.rerung
    )


def _queues(view: View, counted: Counted) -> Iterator[Metric]:
    real = {info.id for info in view.models if not info.alias_of}
    # So that a figure is there, and 0, before there is anything to count.
    waiting = Count[Labels]({(model, lane): 0 for model in view.offered | real for lane in LANES})
    oldest: dict[Labels, float] = dict(waiting)
    for queue in counted.queues:
        place = (model_of(queue.route), queue.lane)
        waiting[place] += queue.waiting
        oldest[place] = max(oldest.get(place, 0), queue.oldest_ms / 1000)
    labels = ("model", "lane")
    yield _gauge("packtrain_num_requests_waiting", "Jobs that wait.", labels, waiting)
    meaning = "How long the oldest of the next 32 jobs has waited; 0: none waits."
    yield _gauge("packtrain_queue_oldest_wait_seconds", meaning, labels, oldest)


def _shown(view: View, counted: Counted) -> dict[Labels, Tally]:
    """The tallies of models that have had jobs or are loaded."""
    loaded = {each.model for each in view.instances if not each.state.is_terminal}
    used = {model for (model, _), tally in counted.tallies.items() if tally.ends or tally.lapsed or tally.gone}
    places: list[tuple[ModelId, Lane]] = [(ModelId(model), lane) for model in loaded | used for lane in LANES]
    return {place: counted.tallies.get(place, Tally()) for place in sorted(places)}


def _jobs(shown: Mapping[Labels, Tally]) -> Iterator[Metric]:
    place = ("model", "lane")
    ends = {(*labels, state.lower()): tally.ends.get(state, 0) for labels, tally in shown.items() for state in _ENDS}
    yield _counter("packtrain_jobs", "Jobs that have ended.", (*place, "state"), ends)
    whys = {(*labels, why): number for labels, tally in shown.items() for why, number in tally.whys.items()}
    yield _counter("packtrain_request_success", "Answers, by why they ended.", (*place, "finished_reason"), whys)
    tokens = {
        "packtrain_prompt_tokens": ("Tokens of prompts.", {labels: t.prompt for labels, t in shown.items()}),
        "packtrain_generation_tokens": ("Tokens of answers.", {labels: t.output for labels, t in shown.items()}),
        "packtrain_prefix_cache_hits": (
            "Of the prompts' tokens, those that were in a cache.", {labels: t.reused for labels, t in shown.items()}
        ),
        "packtrain_job_retries": (
            "Jobs put back after their instance was lost.", {labels: t.retried for labels, t in shown.items()}
        ),
        "packtrain_job_releases": (
            "Jobs that a draining instance gave back.", {labels: t.released for labels, t in shown.items()}
        ),
    }  # fmt: skip
    for name, (meaning, values) in tokens.items():
        yield _counter(name, meaning, place, values)
    reaped = {(*labels, "lapsed"): tally.lapsed for labels, tally in shown.items()}
    reaped |= {(*labels, "gone"): tally.gone for labels, tally in shown.items()}
    meaning = "Leases taken from instances that fell silent (lapsed) or were seen gone."
    yield _counter("packtrain_leases_reaped", meaning, (*place, "reason"), reaped)
    for kind, (name, meaning) in _TIMES.items():
        family = HistogramMetricFamily(name, meaning, labels=place)
        for labels, tally in shown.items():
            _add(family, labels, tally.histograms.get(kind) or _none(kind))
        yield family


def _none(kind: str) -> Histogram:
    bounds = HISTOGRAMS[kind]
    return Histogram(bounds, (0,) * (len(bounds) + 1), 0)


def _add(family: HistogramMetricFamily, labels: Labels, histogram: Histogram) -> None:
    family.add_metric(labels, histogram.cumulative(), sum_value=histogram.sum_us / 1e6)


def _deeds(done: deeds.Deeds, instances: Sequence[InstanceBeat]) -> Iterator[Metric]:
    places = {(model, node) for _, model, node in done.instances}
    places |= {(each.model, each.node) for each in instances}  # 0 at first, or the first one would be no increase
    for what, (name, meaning) in _DEEDS.items():
        values = {place: done.instances.get((what, *place), 0) for place in places}
        yield _counter(name, meaning, ("model", "node"), values)
    family = HistogramMetricFamily(
        "packtrain_model_load_time_seconds", "From the decision to load to ready, a fetch included.", labels=["model"]
    )
    for model, histogram in sorted(done.loads.items()):
        _add(family, (model,), histogram)
    yield family


def _used(kind: str, rows: Sequence[Used]) -> Iterator[Metric]:
    figures = {
        "jobs": ("Jobs that have ended", {(row.name, row.model): row.jobs for row in rows}),
        "prompt_tokens": ("Tokens of prompts", {(row.name, row.model): row.prompt for row in rows}),
        "generation_tokens": ("Tokens of answers", {(row.name, row.model): row.output for row in rows}),
    }
    for name, (meaning, values) in figures.items():
        yield _counter(f"packtrain_{kind}_{name}", f"{meaning}, by {kind}.", (kind, "model"), values)


def _gauge(name: str, meaning: str, labels: Sequence[str], values: Mapping[L, float]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _counter(name: str, meaning: str, labels: Sequence[str], values: Mapping[L, float]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family
