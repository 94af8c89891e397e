"""What goes into a plan and what comes out: the fleet at one moment, and decisions with their reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.errors import ModelError
from packtrain.broker.fields import Numerics
from packtrain.broker.ids import InstanceId, ModelId, NodeId, Route
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.offer_book import Offers
from packtrain.broker.orders import Desired

#: An instance is not evicted before it has been READY this long, so that two models do not chase each other, ms.
MIN_RESIDENCY_MS = 10_000
#: After this long without anybody who serves them, jobs may drive out a model that others still wait for, ms.
MAX_WAIT_MS = 60_000
#: How long jobs wait for a model that no live node offers, ms. A machine that reboots is back in a few minutes.
OFFER_WAIT_MS = 600_000

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The fleet at one moment, on the broker's clock. All times in ms."""

    now_ms: int
    nodes: Sequence[NodeBeat] = ()
    instances: Sequence[InstanceBeat] = ()
    models: Mapping[ModelId, ModelInfo] = field(default_factory=dict)  # as some node has them; without aliases
    offers: Offers = field(default_factory=dict)  # as each node has them; empty: as `models` says, by their beats
    waiting: Mapping[Route, int] = field(default_factory=dict)
    desired: Mapping[ModelId, Desired] = field(default_factory=dict)
    missing_since: Mapping[ModelId, int] = field(default_factory=dict)  # as `missing_since` has it
    unserved_since: Mapping[Route, int] = field(default_factory=dict)  # as `unserved_since` has it
    offer_wait_ms: int = OFFER_WAIT_MS
    max_wait_ms: int = MAX_WAIT_MS
    min_residency_ms: int = MIN_RESIDENCY_MS


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that was looked at for a load, and what came of it."""

    node: NodeId
    free_bytes: int
    need_bytes: int
    verdict: str


@dataclass(frozen=True, slots=True)
class ShardLoad:
    """A part of a model that another node than its head's holds."""

    node: NodeId
    layers: int  # the last ones of the model, dealt to the shards in their order
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class Load:
    """Start an instance of `model` on `node`; with `shards` the head of a group, which is all of them or nothing."""

    model: ModelId
    node: NodeId
    numerics: Numerics
    reserved_bytes: int
    n_slots: int
    n_ctx: int
    reason: str
    fetch_from: str = ""  # node that has the file, when this one has not
    candidates: tuple[Candidate, ...] = ()
    layers: int = 0  # of a head
    shards: tuple[ShardLoad, ...] = ()
    forecast_tokens_per_s: float = 0  # of a group, for one job alone; 0: not known


@dataclass(frozen=True, slots=True)
class Unload:
    """Drain and stop an instance; the shards of a head follow it, so no shard is ever unloaded by itself."""

    instance: InstanceId
    model: ModelId
    node: NodeId
    reason: str
    cost: float | None = None  # what made it the one to go, see worth.py; None: nobody needs its room
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Reject:
    """Fail the jobs that wait on `route`."""

    route: Route
    error: ModelError


@dataclass(slots=True)
class Plan:
    """What to do now, and for every route that must wait, why."""

    loads: list[Load] = field(default_factory=list)
    unloads: list[Unload] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    waits: dict[Route, str] = field(default_factory=dict)
