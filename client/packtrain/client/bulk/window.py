"""How many jobs of a bulk run stand in the fleet at once, and of which models: pure decisions.

Enough that no slot is ever idle and that the planner sees work for another replica; not so many that a file fills the
broker. So: three times the slots that serve it, or what is served in `AHEAD_S` seconds if that is more.

Models that fit into the fleet together run together. One that does not fit beside them waits until one of them has
done all its rows: each is loaded once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.ids import Route, model_of
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.states import InstanceState

#: Work that stands in the queue, seconds: another replica is worth its load for a backlog beyond twice that load.
AHEAD_S: Final = 20.0
PER_SLOT: Final = 3
LEAST: Final = 8
#: Jobs of one route.
MOST: Final = 1000
#: Bytes of rows of one route; one row may have more.
MOST_BYTES: Final = 16 * 1024 * 1024


def window(slots: int, jobs_per_s: float) -> int:
    """Jobs of one route that may be in the fleet.

    >>> window(16, 0), window(16, 10), window(2, 0.1), window(16, 500)
    (48, 200, 8, 1000)
    """
    return min(MOST, max(LEAST, PER_SLOT * slots, math.ceil(jobs_per_s * AHEAD_S)))


def slots_for(route: Route, instances: Sequence[InstanceBeat], infos: Mapping[str, ModelInfo]) -> int:
    """Slots that bulk jobs of a route may have; of a model that is not loaded, as many as one instance would have."""
    serving = [i for i in instances if i.state is InstanceState.READY and i.serves(route)]
    info = infos.get(model_of(route))
    unloaded = info.n_slots - info.reserved_slots if info else 1
    return sum(i.n_slots - i.reserved_slots for i in serving) or max(1, unloaded)


def together(
    routes: Sequence[Route],
    running: Sequence[Route],
    nodes: Sequence[NodeBeat],
    instances: Sequence[InstanceBeat],
    infos: Mapping[str, ModelInfo],
) -> list[Route]:
    """Which routes to run now.

    Args:
        routes: That have rows left, in the order of the file.
        running: Of these, what runs already. It is not stopped for another.
        infos: Models by id.

    Returns:
        What runs, then what is loaded, then others, as long as one instance of each has room beside the others. What
        is loaded over several nodes has its room.
    """
    loaded = [r for r in routes if any(i.serves(r) and not i.state.is_terminal for i in instances)]
    order = list(dict.fromkeys([r for r in running if r in routes] + loaded + list(routes)))
    free = {node.node: node.memory_budget for node in nodes if not node.draining and not node.quarantine}
    chosen: list[Route] = []
    for route in order:
        info = infos.get(model_of(route))
        need = info.required_bytes if info else 0
        parts = [i for i in instances if i.group and i.model == model_of(route) and not i.state.is_terminal]
        if parts:
            for part in parts:
                free[part.node] = free.get(part.node, 0) - part.reserved_bytes
            chosen.append(route)
            continue
        offering = [node.node for node in nodes if node.node in free and model_of(route) in node.models]
        best = max(offering, key=lambda name: free[name], default=None)
        if best is not None and need <= free[best]:
            free[best] -= need
        elif chosen and route not in running:
            continue
        chosen.append(route)
    return chosen
