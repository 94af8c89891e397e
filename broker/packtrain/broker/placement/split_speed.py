"""How fast a split would be: said before it is loaded, from what was measured. Pure.

    step of one job = for each member   bytes of its weights / bytes that its node reads a second
                    + for each shard    one round trip + bytes that cross its link / its bandwidth

A step reads all weights once, so a node's rate is what it showed with another model: tokens a second of a job alone
times bytes of that model's weights. A head sends a shard the hidden state and gets one back, and the next shard waits
for it: one round trip each. Mixtures of experts read a part of their weights, so with them a rate says more about
models of that kind than about others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packtrain.broker.ids import NodeId
from packtrain.broker.placement.split import SplitPlan

FLOAT_BYTES = 4
#: Of a step of one row besides hidden states: what it is to compute, and what each row may look at.
STEP_BYTES = 6_000


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one job alone. None: not known, for a node has not computed anything yet."""

    tokens_per_s: float | None
    compute_s: float | None  # of a step, on all members
    network_s: float  # of a step, on all links
    load_s: float  # until all weights have crossed the links, the first time
    unmeasured: tuple[NodeId, ...]  # nodes whose rate is not known

    @property
    def at_most(self) -> float:
        """Tokens a second that the network lets through."""
        return 1 / self.network_s if self.network_s else float("inf")


def forecast(plan: SplitPlan, weights: Mapping[NodeId, int], rates: Mapping[NodeId, float], *, n_embd: int) -> Forecast:
    """The speed of a plan.

    Args:
        weights: Bytes that a step reads on each member.
        rates: Bytes of weights that nodes read a second; those that are not known are missing or 0.
        n_embd: Elements of a hidden state.
    """
    step_bytes = 2 * FLOAT_BYTES * n_embd + STEP_BYTES
    links = [(share.node, share.link) for share in plan.shards if share.link]
    network_s = sum(link.round_trip_s + step_bytes / link.bytes_per_s for _, link in links)
    # A head sends one tensor after the other.
    load_s = sum(weights[node] / link.bytes_per_s for node, link in links)
    unmeasured = tuple(share.node for share in plan.shares if not rates.get(share.node))
    if unmeasured:
        return Forecast(None, None, network_s, load_s, unmeasured)
    compute_s = sum(weights[share.node] / rates[share.node] for share in plan.shares)
    return Forecast(1 / (compute_s + network_s), compute_s, network_s, load_s, ())
