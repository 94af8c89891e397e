"""A split of a model over a fleet as its nodes describe themselves: the plan, its shares and its speed. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pydantic import Field

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.fields import Report
from packtrain.broker.ids import ModelId, NodeId
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.placement.read_rates import read_rate
from packtrain.broker.placement.snapshot import Snapshot
from packtrain.broker.placement.split import Link, Member, NoSplit, SplitModel, SplitPlan, plan_split
from packtrain.broker.placement.split_speed import Forecast, forecast
from packtrain.broker.placement.view import View
from packtrain.broker.states import InstanceState

#: A shard before it holds anything: Python, llama.cpp and its buffers for messages. 56 MiB measured.
SHARD_BYTES = 72 * 1024 * 1024
#: A link that was measured longer ago is not known any more, ms.
LINK_LIFE_MS = 15 * 60 * 1000
#: Nodes that a reason names.
MAX_NAMED = 8


class ShareFit(Report):
    """What one member would have."""

    node: str
    is_head: bool
    first_layer: int
    layers: int
    bytes: int = Field(description="in all: weights, cache, scratch space, process")
    usable_bytes: int = Field(description="what the node can give a split")
    bytes_per_s: float | None = Field(None, description="of its link to the head")
    round_trip_s: float | None = Field(None, description="of its link to the head")


class GroupSeen(Report):
    """A model that lies over several nodes now."""

    instance: str = Field(description="of its head")
    state: InstanceState
    layers: dict[str, int] = Field(description="by node, the head first")
    forecast_tokens_per_s: float | None = Field(None, description="of one job alone, before it was loaded")
    alone_tokens_per_s: float | None = Field(None, description="the most that one job alone has got; null: not seen")


class SplitFit(Report):
    """Whether and how a model would be split, and how it is."""

    model: str
    required_bytes: int = Field(0, description="on one node")
    fits_on: tuple[str, ...] = Field((), description="nodes that can hold it alone, so that no split is needed")
    split_over: tuple[str, ...] = Field((), description="nodes that hold it together whatever fits, by packtrain.toml")
    shares: tuple[ShareFit, ...] = Field((), description="the head first; empty: there is no split")
    missing: tuple[str, ...] = Field((), description="why there is none")
    tokens_per_s: float | None = Field(None, description="forecast for one job alone; null: not known")
    network_s: float = Field(0, description="of a step, forecast")
    compute_s: float | None = Field(None, description="of a step, forecast")
    load_s: float = Field(0, description="for weights to cross the links the first time, forecast")
    unmeasured: tuple[str, ...] = Field((), description="nodes that have computed nothing yet, so of unknown speed")
    groups: tuple[GroupSeen, ...] = Field((), description="over which it lies now")


def fit_split(model: ModelId, now: Snapshot, loaded: Sequence[InstanceBeat] = ()) -> SplitFit:
    """The split of a model over the nodes of a snapshot, with the memory that they have in it.

    Args:
        loaded: What is loaded in fact.

    Raises:
        KeyError: No node offers the model.
    """
    info, view = now.models[model], View(now)
    offers = view.offers(model)
    open_nodes = [node for node in view.open_nodes.values() if view.rules(model).admit(node)]
    fits_on = tuple(
        node.node for node in open_nodes
        if (offer := offers.get(NodeId(node.node))) and offer.required_bytes <= _free(node)
    )  # fmt: skip
    over = view.rules(model).split_over
    answer = SplitFit(
        model=model, required_bytes=info.required_bytes, fits_on=fits_on, split_over=over,
        groups=tuple(_groups(model, loaded)),
    )  # fmt: skip
    if fault := why_never(info):
        return answer.model_copy(update={"missing": (fault,)})
    asked = [node for node in open_nodes if not over or node.node in over]
    taking_part = [node for node in asked if takes_part(node)]
    members = [Member(NodeId(node.node), _free(node), node.node in offers, node.build) for node in taking_part]
    if absent := why_absent(over, members):
        return answer.model_copy(update={"missing": (*left_out(asked), *absent)})
    found = plan_split(split_model(info), members, links_of(taking_part, now.now_ms), over_all=bool(over))
    if isinstance(found, NoSplit):
        return answer.model_copy(update={"missing": (*left_out(asked), *found.reasons)})
    rates = {NodeId(node.node): read_rate(node, info) for node in open_nodes}
    return answer.model_copy(update=_told(found, info, rates))


def _groups(model: ModelId, loaded: Sequence[InstanceBeat]) -> Iterator[GroupSeen]:
    alive = [i for i in loaded if i.model == model and i.group and not i.state.is_terminal]
    for head in alive:
        if head.is_head:
            parts = [head, *(i for i in alive if i.is_shard and i.group == head.instance)]
            yield GroupSeen(
                instance=head.instance, state=head.state, layers={part.node: part.layers for part in parts},
                forecast_tokens_per_s=head.forecast_tokens_per_s or None,
                alone_tokens_per_s=head.alone_tokens_per_s or None,
            )  # fmt: skip


def takes_part(node: NodeBeat) -> bool:
    """Whether a node may hold a part of a model: its operator says so, and its tunnels have a certificate."""
    return node.split and bool(node.certificate)


def why_absent(over: Sequence[str], members: Sequence[Member]) -> tuple[str, ...]:
    """What to say where not all nodes are there that shall hold a model together; nothing: they are."""
    there = {member.node for member in members}
    if not (names := [name for name in over if name not in there]):
        return ()
    return (f"packtrain.toml splits it over {', '.join(over)}, and of these {_no_part(names)}; start what is missing",)


def split_model(info: ModelInfo) -> SplitModel:
    """What a model takes where, by its file and by what is estimated of it as a whole."""
    memory, weights = info.memory, info.layer_bytes
    cache = memory.host("cache") or info.kv_bytes_per_token * info.n_ctx * info.n_slots
    compute, of_layers = memory.host("compute"), sum(weights)
    besides = memory.process_bytes + memory.adapter_bytes + memory.image_bytes + memory.scratch_bytes
    head = info.weights_bytes - of_layers + besides
    # A tensor is in memory twice while it arrives; the largest is taken for the largest layer.
    shard = SHARD_BYTES + compute + max(weights, default=0)
    return SplitModel(tuple(size + cache // len(weights) for size in weights), head, shard)


def links_of(nodes: Sequence[NodeBeat], now_ms: int) -> dict[tuple[NodeId, NodeId], Link]:
    """Measured links by both nodes. Where both have measured one, the slower way and the shorter round trip count."""
    found: dict[tuple[NodeId, NodeId], Link] = {}
    for node in nodes:
        for other, link in node.links.items():
            if now_ms - link.at_ms > LINK_LIFE_MS:
                continue
            pair = (NodeId(min(node.node, other)), NodeId(max(node.node, other)))
            seen = found.get(pair, Link(float("inf"), float("inf")))
            found[pair] = Link(
                min(seen.bytes_per_s, link.bytes_per_s), min(seen.round_trip_s, link.round_trip_s)
            )  # fmt: skip
    return found


def _free(node: NodeBeat) -> int:
    return min(node.memory_budget, node.memory_free)


def why_never(info: ModelInfo) -> str:
    """Why a model can be split over no nodes at all; empty: it can."""
    if info.remote:
        return "another server answers for it, so there is nothing to split"
    if info.embeds_only:
        return "it only embeds, and such models are not split"
    if len(info.layer_bytes) < 2 or not all(info.layer_bytes):
        return "its file does not say what each of its layers takes, so it cannot be divided"
    return ""


def left_out(nodes: Sequence[NodeBeat]) -> Iterator[str]:
    """Nodes that take no part, and what to change."""
    if names := sorted(node.node for node in nodes if not node.split):
        yield f"{_no_part(names)} in splits; set PACKTRAIN_SPLIT=1 for the agent there"
    if names := sorted(node.node for node in nodes if node.split and not node.certificate):
        yield f"{', '.join(names)} has no certificate for tunnels yet; ask again in a minute, or see the log there"


def _no_part(names: Sequence[str]) -> str:
    shown = names if len(names) <= MAX_NAMED else [*names[:MAX_NAMED], f"{len(names) - MAX_NAMED} more"]
    return f"{', '.join(shown)} {'does' if len(names) == 1 else 'do'} not take part"


def speed_of(plan: SplitPlan, info: ModelInfo, rates: Mapping[NodeId, float]) -> Forecast:
    """How fast a model is over these nodes.

    Args:
        rates: Bytes of weights that nodes read a second; those that are not known are missing or 0.
    """
    layers = info.layer_bytes
    weights = {share.node: sum(layers[share.first : share.first + share.count]) for share in plan.shares}
    # The output is a matrix that each step reads; the input is a table of which it reads a row.
    weights[plan.head.node] += info.output_bytes
    return forecast(plan, weights, rates, n_embd=info.n_embd)


def _told(plan: SplitPlan, info: ModelInfo, rates: Mapping[NodeId, float]) -> dict[str, object]:
    said = speed_of(plan, info, rates)
    shares = tuple(
        ShareFit(
            node=share.node, is_head=share is plan.head, first_layer=share.first, layers=share.count, bytes=share.size,
            usable_bytes=share.usable, bytes_per_s=share.link.bytes_per_s if share.link else None,
            round_trip_s=share.link.round_trip_s if share.link else None,
        )
        for share in plan.shares
    )  # fmt: skip
    return {
        "shares": shares, "tokens_per_s": said.tokens_per_s, "network_s": said.network_s,
        "compute_s": said.compute_s, "load_s": said.load_s, "unmeasured": said.unmeasured,
    }  # fmt: skip
