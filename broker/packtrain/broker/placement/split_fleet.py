"""A split of a model over a fleet as its nodes describe themselves: the plan, its shares and its speed. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pydantic import Field

from packtrain.broker.beats import NodeBeat
from packtrain.broker.fields import Report
from packtrain.broker.ids import ModelId, NodeId
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.placement.snapshot import Snapshot
from packtrain.broker.placement.split import Link, Member, NoSplit, SplitModel, SplitPlan, plan_split
from packtrain.broker.placement.split_speed import forecast
from packtrain.broker.placement.view import View

#: A shard before it holds anything: Python, llama.cpp and its buffers for messages. 56 MiB measured.
SHARD_BYTES = 72 * 1024 * 1024
#: A link that was measured longer ago is not known any more, ms.
LINK_LIFE_MS = 15 * 60 * 1000


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


class SplitFit(Report):
    """Whether and how a model would be split."""

    model: str
    required_bytes: int = Field(0, description="on one node")
    fits_on: tuple[str, ...] = Field((), description="nodes that can hold it alone, so that no split is needed")
    shares: tuple[ShareFit, ...] = Field((), description="the head first; empty: there is no split")
    missing: tuple[str, ...] = Field((), description="why there is none")
    tokens_per_s: float | None = Field(None, description="forecast for one job alone; null: not known")
    network_s: float = Field(0, description="of a step, forecast")
    compute_s: float | None = Field(None, description="of a step, forecast")
    load_s: float = Field(0, description="for weights to cross the links the first time, forecast")
    unmeasured: tuple[str, ...] = Field((), description="nodes that have computed nothing yet, so of unknown speed")


def fit_split(model: ModelId, now: Snapshot) -> SplitFit:
    """The split of a model over the nodes of a snapshot, with the memory that they have in it.

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
    answer = SplitFit(model=model, required_bytes=info.required_bytes, fits_on=fits_on)
    if fault := _why_never(info):
        return answer.model_copy(update={"missing": (fault,)})
    taking_part = [node for node in open_nodes if node.split]
    members = [Member(NodeId(node.node), _free(node), node.node in offers, node.build) for node in taking_part]
    split = split_model(info)
    found = plan_split(split, members, links_of(taking_part, now.now_ms))
    if isinstance(found, NoSplit):
        return answer.model_copy(update={"missing": (*_left_out(open_nodes), *found.reasons)})
    return answer.model_copy(update=_told(found, info, {NodeId(node.node): node.weights_per_s for node in open_nodes}))


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


def _why_never(info: ModelInfo) -> str:
    if info.remote:
        return "another server answers for it, so there is nothing to split"
    if info.embeds_only:
        return "it only embeds, and such models are not split"
    if len(info.layer_bytes) < 2 or not all(info.layer_bytes):
        return "its file does not say what each of its layers takes, so it cannot be divided"
    return ""


def _left_out(nodes: Sequence[NodeBeat]) -> Iterator[str]:
    if names := sorted(node.node for node in nodes if not node.split):
        does = "does" if len(names) == 1 else "do"
        yield f"{', '.join(names)} {does} not take part in splits; set PACKTRAIN_SPLIT=1 for the agent there"


def _told(plan: SplitPlan, info: ModelInfo, rates: Mapping[NodeId, float]) -> dict[str, object]:
    layers = info.layer_bytes
    weights = {share.node: sum(layers[share.first : share.first + share.count]) for share in plan.shares}
    # The output is a matrix that each step reads; the input is a table of which it reads a row.
    weights[plan.head.node] += info.output_bytes
    said = forecast(plan, weights, rates, n_embd=info.n_embd)
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
