"""What the fleet page and `packtrain top` show. Pure: `page_watch` looks, and `page_feed` says who may see which of it.

No prompt and no answer is ever part of it: a job is its id, model, user, times and place.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import Field

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.fields import Report
from packtrain.broker.history import Fault
from packtrain.broker.ids import Route, model_of
from packtrain.broker.journal import Entry
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.orders import Desired
from packtrain.broker.states import InstanceState, JobState

#: Events that are shown.
MAX_EVENTS = 60


class MemoryBar(Report):
    """What a node's budget is taken by, bytes. The parts add up to `budget`, or more where it is exceeded."""

    budget: int = 0
    weights: int = 0
    kv: int = 0
    other: int = Field(0, description="of instances: scratch space, programs, libraries")
    reserved: int = Field(0, description="for instances, not taken yet")
    outside: int = Field(0, description="of the budget, taken by programs that are none of ours")
    free: int = 0


class NodeFacts(Report):
    """A node."""

    node: str
    state: Literal["up", "draining", "quarantine"]
    reason: str = ""
    cores: int = 0
    cores_used: int = Field(0, description="threads of instances at work")
    memory: MemoryBar = MemoryBar()
    memory_total: int = 0
    memory_free: int = 0
    gpus: tuple[str, ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    models: int = 0
    faults: tuple[str, ...] = Field((), description="files that cannot be offered, and why")
    disk_free: int = 0
    version: str = ""


class InstanceFacts(Report):
    """An instance that lives."""

    instance: str
    model: str
    node: str
    state: InstanceState
    reason: str = ""
    slots: int = 0
    slots_used: int = 0
    n_ctx: int = 0
    numerics: str = "fast"
    memory: int = 0
    reserved: int = 0
    threads: int = 0
    tokens_per_s: float = 0
    batch_mean: float | None = Field(None, description="tokens of answers by step so far; null: no step yet")
    batch_peak: int = 0
    since_ms: int = Field(0, description="it is READY, or was asked for")
    group: str = Field("", description="the head's instance, of a head and its shards; empty: it has the whole model")
    layers: int = Field(0, description="of a head or shard: how many it holds")
    part: str = Field("", description="the same for people")


class QueueFacts(Report):
    """Jobs that wait for one model in one lane."""

    route: str
    model: str
    lane: Literal["interactive", "bulk"]
    waiting: int
    oldest_ms: int = Field(0, description="that the oldest of the next 32 has waited")
    reason: str = Field("", description="why nothing serves it; empty: something does, or it is not planned yet")


class JobFacts(Report):
    """A job, without what it asked for and what came of it."""

    id: str
    state: JobState
    model: str
    user: str = "default"
    lane: str = "interactive"
    submitted_ms: int = 0
    started_ms: int | None = None
    first_token_ms: int | None = None
    finished_ms: int | None = None
    node: str = ""
    instance: str = ""
    attempts: int = 0
    tokens: int = 0
    position: int | None = None
    eta_s: float | None = None
    reason: str = Field("", description="why it waits, or the code of what it ended by")
    cancel_requested: bool = False


class ModelFacts(Report):
    """A model."""

    id: str
    about: str = ""
    alias_of: str = ""
    answers: bool = Field(True, description="it makes text, not vectors")
    chats: bool = True
    needs: int = Field(0, description="bytes of memory")
    loaded: int = Field(0, description="instances that are READY")
    coming: int = Field(0, description="instances that come up")
    wanted: int = Field(0, description="that operators want kept loaded")
    pinned: bool = Field(False, description="packtrain.toml says that it is never evicted, once it is loaded")


class EventFacts(Report):
    """Something that happened to the fleet."""

    at_ms: int
    kind: Literal["load", "unload", "reject", "fault"]
    model: str = ""
    node: str = ""
    text: str = ""


class BatchFacts(Report):
    """A batch of OpenAI's API."""

    id: str
    status: str
    total: int = 0
    completed: int = 0
    failed: int = 0
    created_s: int = 0


class Facts(Report):
    """A fleet at one moment."""

    at_ms: int = 0
    is_led: bool = Field(True, description="a coordinator has planned in the last seconds")
    user: str | None = Field(None, description="whose jobs these are; null: everybody's")
    is_admin: bool = True
    tokens_per_s: float = 0
    nodes: tuple[NodeFacts, ...] = ()
    instances: tuple[InstanceFacts, ...] = ()
    queues: tuple[QueueFacts, ...] = ()
    jobs: tuple[JobFacts, ...] = ()
    models: tuple[ModelFacts, ...] = ()
    events: tuple[EventFacts, ...] = Field((), description="newest first")
    batches: tuple[BatchFacts, ...] = ()
    links: dict[str, str] = Field(default_factory=dict, description="pages of other programs, by their names")


def memory_bar(node: NodeBeat, instances: Iterable[InstanceBeat], models: Mapping[str, ModelInfo]) -> MemoryBar:
    """The budget of a node, by what takes it.

    How much of an instance is weights and cache is what its model's file says, cut to what it really has; the cache
    grows with slots and context, which may differ from the model's usual ones.
    """
    parts = {"weights": 0, "kv": 0, "other": 0, "reserved": 0}
    for each in instances:
        if each.node != node.node or each.state.is_terminal:
            continue
        held = each.resident_bytes
        weights, cache = _estimate(each, models.get(each.model))
        parts["weights"] += min(weights, held)
        parts["kv"] += min(cache, max(0, held - weights))
        parts["other"] += max(0, held - weights - cache)
        parts["reserved"] += max(0, each.reserved_bytes - held)
    left = max(0, node.memory_budget - sum(parts.values()))
    free = min(left, max(0, node.memory_free - parts["reserved"]))
    return MemoryBar(budget=node.memory_budget, **parts, outside=left - free, free=free)


def _estimate(instance: InstanceBeat, info: ModelInfo | None) -> tuple[int, int]:
    if info is None:
        return 0, 0
    memory, usual = info.memory, info.n_slots * info.n_ctx
    weights = memory.host("weights") + memory.adapter_bytes or info.weights_bytes
    tokens = (info.n_slots if instance.is_shard else instance.n_slots) * instance.n_ctx
    cache = (
        memory.host("cache") * tokens // usual if memory.host("cache") and usual else tokens * info.kv_bytes_per_token
    )
    if not instance.group or not info.n_layer:
        return weights, cache
    layers = sum(info.layer_bytes) or weights
    mine = layers * instance.layers // info.n_layer
    besides = 0 if instance.is_shard else max(0, weights - layers)
    return mine + besides, cache * instance.layers // info.n_layer


def node_facts(node: NodeBeat, instances: Sequence[InstanceBeat], models: Mapping[str, ModelInfo]) -> NodeFacts:
    """One node."""
    at_work = [each for each in instances if each.node == node.node and each.slots_used and not each.state.is_terminal]
    return NodeFacts(
        node=node.node, state="draining" if node.draining else "quarantine" if node.quarantine else "up",
        reason=node.quarantine, cores=node.cores, cores_used=sum(each.threads for each in at_work),
        memory=memory_bar(node, instances, models), memory_total=node.memory_total, memory_free=node.memory_free,
        gpus=tuple(_gpu(device.name, device.free, device.total) for device in node.devices if device.kind == "gpu"),
        labels=node.labels, models=len(node.models),
        faults=tuple(f"{fault.file}: {fault.reason}" for fault in node.faults),
        disk_free=node.disk_free, version=node.version,
    )  # fmt: skip


def _gpu(name: str, free: int, total: int) -> str:
    return f"{name}: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def instance_facts(each: InstanceBeat) -> InstanceFacts:
    """One instance."""
    return InstanceFacts(
        instance=each.instance, model=each.model, node=each.node, state=each.state,
        reason="" if each.state in (InstanceState.READY, InstanceState.HOLDING) else each.reason[:300],
        slots=each.n_slots,
        slots_used=each.slots_used, n_ctx=each.n_ctx, numerics=each.numerics, memory=each.resident_bytes,
        reserved=each.reserved_bytes, threads=each.threads, tokens_per_s=each.tokens_per_s,
        batch_mean=round(each.tokens_out / each.steps, 2) if each.steps else None, batch_peak=each.batch_peak,
        since_ms=each.ready_ms or each.requested_ms, group=each.group, layers=each.layers, part=each.part,
    )  # fmt: skip


def model_facts(
    models: Sequence[ModelInfo], instances: Sequence[InstanceBeat], desired: Mapping[str, Desired]
) -> tuple[ModelFacts, ...]:
    """The models that the fleet offers."""
    known = {info.id: info for info in models}

    def facts(info: ModelInfo) -> ModelFacts:
        real = known.get(info.alias_of, info)
        mine = [each for each in instances if each.model == real.id and not each.is_shard]
        wish = desired.get(real.id)
        return ModelFacts(
            id=info.id, about=_about(real), alias_of=info.alias_of, answers=not real.embeds_only,
            chats=real.has_chat_template or bool(real.remote), needs=real.required_bytes,
            loaded=sum(each.state is InstanceState.READY for each in mine),
            coming=sum(each.state.is_coming_up for each in mine), wanted=wish.replicas if wish else 0,
            pinned=real.pinned,
        )  # fmt: skip

    return tuple(facts(info) for info in models)


def _about(info: ModelInfo) -> str:
    if info.remote:
        return info.remote
    return " ".join(filter(None, [info.architecture, info.quantization, *info.modalities[1:]]))


def events_of(entries: Iterable[Entry], faults: Iterable[Fault]) -> tuple[EventFacts, ...]:
    """What happened, newest first."""
    found = [
        EventFacts(
            at_ms=entry.at_ms, kind=made.verb, model=made.model or model_of(Route(made.route)), node=made.node,
            text=f"{_told(made.jobs)}{made.reason}" if made.verb == "reject" else made.reason,
        )
        for entry in entries
        for made in entry.decisions
    ]  # fmt: skip
    found += [
        EventFacts(
            at_ms=each.at_ms, kind="fault", model=each.model, node=each.node,
            text=f"{each.instance} {'failed' if each.state == 'FAILED' else 'is lost'}: {each.reason}",
        )
        for each in faults
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda event: -event.at_ms)[:MAX_EVENTS])


def _told(jobs: int) -> str:
    return "1 job was told: " if jobs == 1 else f"{jobs} jobs were told: "


def in_order(jobs: Iterable[JobFacts]) -> tuple[JobFacts, ...]:
    """As they are shown: those that run, those that wait, by their place; then what ended, the latest first."""

    def rank(job: JobFacts) -> tuple[int, int, int]:
        if job.state is JobState.RUNNING:
            return 0, job.started_ms or 0, 0
        if job.state is JobState.QUEUED:
            return 1, job.position or sys.maxsize, job.submitted_ms
        return 2, -(job.finished_ms or 0), 0

    return tuple(sorted(jobs, key=rank))
