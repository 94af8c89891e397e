"""Beats: what is known of a node and of an instance, said again and again while they live."""

from __future__ import annotations

from functools import cached_property
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from packtrain.broker.fields import Numerics, Recipe, Report, SafeId
from packtrain.broker.ids import Route, is_deterministic, model_of
from packtrain.broker.model_info import ModelFault
from packtrain.broker.states import InstanceState


class DeviceMemory(Report):
    """One memory of a node, bytes."""

    kind: Literal["ram", "gpu"]
    name: str
    total: int = 0
    free: int = 0
    unified: bool = Field(False, description="machine and GPU share it")


class NodeLink(Report):
    """A link to another node, as this one measured it."""

    bytes_per_s: float = Field(gt=0, description="that came from there")
    round_trip_s: float = Field(ge=0, description="the shortest of some")
    at_ms: int = Field(description="when it was measured")


class NodeBeat(Report):
    """What an agent says of its node every 2 s. Sizes in bytes."""

    v: Literal[1] = 1
    node: SafeId
    pid: int = 0
    cores: int = 1
    memory_total: int = 0
    memory_free: int = 0
    memory_budget: int = Field(0, description="what instances may use together")
    devices: tuple[DeviceMemory, ...] = Field((), description="the machine's memory first, then each GPU's own")
    models: tuple[str, ...] = ()
    faults: tuple[ModelFault, ...] = ()
    not_deterministic: dict[str, str] = Field(
        default_factory=dict, description="models that cannot be so here, and why"
    )
    instances: tuple[str, ...] = ()
    term_seen: int = 0
    draining: bool = Field(False, description="it takes no new instance, and those it has leave")
    quarantine: str = Field("", description="why nothing is loaded here any more; empty: it is fine")
    labels: dict[str, str] = Field(default_factory=dict, description="what a model's selector may ask for")
    disk_free: int = Field(0, description="where its model files are")
    files_url: str = Field("", description="where other nodes may read its model files; empty: nowhere")
    loopback: str = Field("", description="equal for nodes that reach each other at 127.0.0.1")
    version: str = ""
    build: str = Field("", description="of llama.cpp, equal where nodes may hold a model together; empty: without RPC")
    split: bool = Field(False, description="it may hold a part of a model with others")
    links: dict[str, NodeLink] = Field(default_factory=dict, description="to other nodes that do")
    certificate: str = Field("", description="of its ends of tunnels, PEM; empty: it takes no part in groups")
    cpu: str = Field("", description="what of its CPU tells on the bits of an answer; equal in deterministic groups")
    weights_per_s: float = Field(
        0, description="bytes of weights that a step of one job reads a second here, the most that was seen; 0: none"
    )

    read_rates: dict[str, float] = Field(
        default_factory=dict,
        description="bytes of weights a second, by their type, as a step of one job reads them: measured at the start",
    )

    @cached_property
    def files_scope(self) -> str | None:
        """Who reaches its model files: "" everybody, else nodes with this `loopback`; None: nobody."""
        if not self.files_url:
            return None
        host = urlsplit(self.files_url).hostname
        if host and (host.startswith("127.") or host in ("::1", "localhost")):
            return self.loopback or None
        return "" if host else None

    def serves_files_to(self, loopback: str) -> bool:
        """Whether a node with this `loopback` reaches its model files."""
        return self.files_scope in ("", loopback)


class InstanceBeat(Report):
    """What is known of one instance. Written by the coordinator when REQUESTED, by its agent from then on."""

    v: Literal[1] = 1
    instance: SafeId
    model: SafeId
    node: SafeId
    state: InstanceState
    group: str = Field("", description="the head's instance, of a head and its shards; empty: it has the whole model")
    layers: int = Field(0, description="of a head or shard: how many it holds")
    address: str = Field("", description="of a shard: host:port at which its tunnel waits for the head's")
    reason: str = Field("", description="why FAILED, LOST or DRAINING; how far a FETCHING one is")
    pid: int = 0
    n_slots: int = 0
    reserved_slots: int = Field(0, description="of these, that bulk jobs leave to interactive ones")
    n_ctx: int = 0
    numerics: Numerics = "fast"
    recipe: Recipe | None = Field(None, description="what it does for its numerics; null: not loaded yet")
    numerics_class: str = Field("", description="equal where a begun job may go on; empty: not loaded yet")
    reserved_bytes: int = 0
    resident_bytes: int = 0
    estimated_bytes: dict[str, int] = Field(
        default_factory=dict, description="by device, ram first, as it was expected before any was loaded"
    )
    slots_used: int = 0
    steps: int = Field(0, description="decode calls so far")
    batch_peak: int = Field(0, description="most sequences in one step so far")
    batches: tuple[int, ...] = Field((), description="decode calls by the sequences in them: 1, up to 2, up to 4, ...")
    batched: int = Field(0, description="sequences of all decode calls")
    tokens_out: int = 0
    tokens_reused: int = Field(0, description="tokens of prompts that were in a cache")
    kv_tokens: int = Field(0, description="tokens in the caches of jobs in slots")
    parked: int = Field(0, description="jobs that left their slots to others for a while")
    parkings: int = Field(0, description="times that one did so far")
    images_seen: int = Field(0, description="and sounds, looked at so far; one that many jobs ask about counts once")
    tokens_per_s: float = 0
    job_s: float = Field(0, description="smoothed, that a job holds a slot; before the first ended, how long so far")
    threads: int = Field(0, description="that a step computes with; of an idle instance: that it would begin with")
    requested_ms: int = 0
    ready_ms: int = 0
    served_ms: int | None = Field(
        None, description="when a job first had a token or its end of it; 0: none has yet; null: an older version"
    )
    last_used_ms: int = 0
    ended_ms: int = Field(0, description="when its process was seen gone")
    out_of_memory: bool = Field(False, description="it FAILED, as far as can be told, for want of memory")
    forecast_tokens_per_s: float = Field(0, description="of a head: of one job alone, before it was loaded; 0: none")
    alone_tokens_per_s: float = Field(0, description="of a head: the most that one job alone has got; 0: not seen yet")

    @property
    def is_shard(self) -> bool:
        """Whether it holds layers for another instance, and answers no job itself."""
        return bool(self.group) and self.group != self.instance

    @property
    def is_head(self) -> bool:
        """Whether others hold layers for it."""
        return bool(self.group) and self.group == self.instance

    @property
    def part(self) -> str:
        """For people, what of its model it has; empty: all of it."""
        if not self.group:
            return ""
        layers = "1 layer" if self.layers == 1 else f"{self.layers} layers"
        return f"head of a group, {layers}" if self.is_head else f"shard of {self.group}, {layers}"

    def serves(self, route: Route) -> bool:
        """Whether it runs jobs of this route, as soon as it is READY: by its model and numerics. No shard does."""
        fits = self.numerics == "deterministic" or not is_deterministic(route)
        return self.model == model_of(route) and fits and not self.is_shard
