"""How fast a split would be: said before it is loaded, from what was measured. Pure.

    step of one job = for each member   bytes of its weights / bytes that its node reads a second
                    + for each shard    one round trip + bytes that cross its link / its bandwidth + hand-offs

    load = start of the head + for each shard   bytes of its weights / (its bandwidth, and what both ends can handle)
                                              + questions before the first step, a round trip each

A step reads all weights once, so a node's rate is what it showed with another model: tokens a second of a job alone
times bytes of that model's weights. A head sends a shard its part of the input and gets a hidden state back, and the
next shard waits for it: one round trip each, whatever the number of messages. Each message passes from the head's
thread to one that sends it and back, which no network shows, but a small model feels. Mixtures of experts read a part
of their weights, so with them a rate says more about models of that kind than about others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packtrain.broker.ids import NodeId
from packtrain.broker.placement.split import SplitPlan

FLOAT_BYTES = 4
#: Hidden states of a step of one row that cross a link: two to the shard, for layers add to what came before, one back.
HIDDEN_STATES = 3
#: ... and what else does: where the row stands, what it may look at, names, in nine messages.
STEP_BYTES = 3_000
#: Of a step for each shard besides all that: messages handed from thread to thread and from end to end of a tunnel.
#: Measured: 1 ms straight, 2.5 through a tunnel whose ends share two cores with all members.
HAND_OFF_S = 0.002
#: A head before it has sent anything: tokens, cache, its first look at the graph.
HEAD_START_S = 0.25
#: What llama.cpp asks a shard at a load: its memory, the room that tensors need. Counted at a proxy: 34 to 36.
LOAD_ROUND_TRIPS = 36
#: Tensors are hashed, copied and encrypted by one thread each, on whatever link.
HANDLED_BYTES_PER_S = 400e6


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one job alone. None: not known, for a node has not computed anything yet."""

    tokens_per_s: float | None
    compute_s: float | None  # of a step, on all members
    network_s: float  # of a step, on all links and between threads
    load_s: float  # until a head has sent all weights, the first time
    unmeasured: tuple[NodeId, ...]  # nodes whose rate is not known


def forecast(plan: SplitPlan, weights: Mapping[NodeId, int], rates: Mapping[NodeId, float], *, n_embd: int) -> Forecast:
    """The speed of a plan.

    Args:
        weights: Bytes that a step reads on each member.
        rates: Bytes of weights that nodes read a second; those that are not known are missing or 0.
        n_embd: Elements of a hidden state.
    """
    step_bytes = HIDDEN_STATES * FLOAT_BYTES * n_embd + STEP_BYTES
    links = [(share.node, share.link) for share in plan.shards if share.link]
    network_s = sum(link.round_trip_s + step_bytes / link.bytes_per_s + HAND_OFF_S for _, link in links)
    # A head sends one tensor after the other.
    load_s = HEAD_START_S + sum(
        weights[node] * (1 / link.bytes_per_s + 1 / HANDLED_BYTES_PER_S) + LOAD_ROUND_TRIPS * link.round_trip_s
        for node, link in links
    )
    unmeasured = tuple(share.node for share in plan.shares if not rates.get(share.node))
    if unmeasured:
        return Forecast(None, None, network_s, load_s, unmeasured)
    compute_s = sum(weights[share.node] / rates[share.node] for share in plan.shares)
    return Forecast(1 / (compute_s + network_s), compute_s, network_s, load_s, ())
