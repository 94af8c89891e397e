"""Losses: instances whose node reports no more, found in a snapshot.

A node's beat lives for 10 s, an instance's for 15. Between the two an instance without a node would still look loaded,
its model would not be loaded elsewhere, and then it would vanish without a word. So it becomes LOST, which is kept for
ten minutes like every other end.

Only the fleet's view changes. Its jobs stay with it for as long as it renews their leases: a machine whose agent is
frozen may well go on computing. And a node that comes back says what it still has, which ends the loss.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.states import InstanceState


def find_lost(instances: Sequence[InstanceBeat], live_nodes: Collection[str]) -> list[InstanceBeat]:
    """The instances of nodes that are gone, as LOST.

    Args:
        live_nodes: Nodes whose last beat has not expired.
    """
    return [
        instance.model_copy(
            update={
                "state": InstanceState.LOST,
                "reason": f"its node {instance.node} reports no more",
                "slots_used": 0,
                "resident_bytes": 0,
                "tokens_per_s": 0.0,
            }
        )
        for instance in instances
        if instance.node not in live_nodes and not instance.state.is_terminal
    ]
