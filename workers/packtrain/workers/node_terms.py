"""On what terms a node takes part: its budgets, labels and whether it drains.

As it was started, and over that what operators set live. A budget that was set live goes on after a restart, whatever
the node is started with then; `packtrain nodes set NODE --memory start` takes it back.
"""

from __future__ import annotations

from dataclasses import dataclass

from packtrain.broker.node_wishes import NodeWish
from packtrain.broker.settings import Settings


@dataclass(frozen=True, slots=True)
class NodeTerms:
    """In force now."""

    memory: int  # bytes that instances may use together
    cores: int
    labels: dict[str, str]
    is_draining: bool


def terms_of(settings: Settings, wish: NodeWish, *, total_memory: int, all_cores: int) -> NodeTerms:
    """The terms of a node.

    Args:
        total_memory: Bytes of the machine or its container.
        all_cores: That it may keep busy. More than these cannot be given, less than all memory cannot be exceeded.
    """
    labels = {**settings.labels, **wish.labels}
    return NodeTerms(
        memory=min(wish.memory, total_memory) if wish.memory else memory_budget(settings, total_memory),
        cores=min(wish.cores, all_cores) if wish.cores else settings.cores or all_cores,
        labels={key: value for key, value in sorted(labels.items()) if value is not None},
        is_draining=wish.draining,
    )


def memory_budget(settings: Settings, total_bytes: int) -> int:
    """Bytes that instances of this node may use together when nobody set them live: else four fifths of the memory."""
    return settings.memory or total_bytes * 4 // 5
