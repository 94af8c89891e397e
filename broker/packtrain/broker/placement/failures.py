"""Failed loads: what they mean for the next one, read off the instances that ended in the last ten minutes.

Each node has tries of its own: a load that failed on one goes to the next at once, and comes back to the first only
after a wait that doubles with each failure there. What failed for want of memory is given a fifth more the next time,
wherever that is. A model whose every node has used up its tries is given up, and its jobs are told each cause. What
failed before an operator asked for the model counts no more: he has mended it.

One that crashed after it was READY is no failed load: the next may well live, and jobs that crash it again and again
are stopped by their own count. But where only an operator wants it, it comes back ever more slowly.

Of a group the member that failed counts, on its node: the others only followed it.
"""

from __future__ import annotations

from collections.abc import Sequence

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.errors import ModelLoadFailed
from packtrain.broker.ids import ModelId, Route, is_deterministic, model_of
from packtrain.broker.placement.view import View
from packtrain.broker.states import InstanceState

#: Failed loads of a model on one node after which that node is tried no more.
MAX_LOAD_FAILURES = 3
#: Wait from the end of the first failed load on a node, ms; doubles with each.
LOAD_BACKOFF_MS = 1_000
#: Wait after the second crash of a model that no job waits for, ms; doubles with each, up to a minute.
CRASH_BACKOFF_MS, MAX_CRASH_BACKOFF_MS = 2_000, 60_000
#: What a load needs more than the last one that ran out of memory.
MEMORY_GROWTH = 1.2
#: A shard in one of these takes its head down, which is not to blame then.
_BROKEN = (InstanceState.FAILED, InstanceState.LOST)


class Failures:
    """Failed loads for one route, by node."""

    def __init__(self, route: Route, view: View) -> None:
        self._route = route
        self._model = model_of(route)
        self._now_ms = view.now.now_ms
        self._by_node: dict[str, list[InstanceBeat]] = {}
        self._out_of_memory = 0
        asked_ms = view.asked_ms(self._model)
        for instance in view.of_model.get(self._model, ()):
            if not _failed_to_load(instance, view) or _ended_ms(instance) < asked_ms:
                continue
            if is_deterministic(route) and instance.numerics != "deterministic":
                continue
            offer = view.offer(instance.node, self._model)
            if offer is not None and view.numerics(route, offer) != instance.numerics:
                continue
            self._by_node.setdefault(instance.node, []).append(instance)
            self._out_of_memory += instance.out_of_memory

    def __bool__(self) -> bool:
        return bool(self._by_node)

    def count(self, node: str) -> int:
        """Loads that failed on a node."""
        return len(self._by_node.get(node, ()))

    def is_given_up(self, node: str) -> bool:
        """True when a node has used up its tries."""
        return self.count(node) >= MAX_LOAD_FAILURES

    def may_try(self, node: str) -> bool:
        """True when a node has tries left and need not wait for the next."""
        return not self._by_node or not (self.is_given_up(node) or self.retry_in_ms(node))

    def retry_in_ms(self, node: str) -> int:
        """Until a node may be tried again; 0: now."""
        failed = self._by_node.get(node)
        if not failed:
            return 0
        wait_ms: int = LOAD_BACKOFF_MS * 2 ** (len(failed) - 1)
        return max(0, max(map(_ended_ms, failed)) + wait_ms - self._now_ms)

    @property
    def growth(self) -> float:
        """What is reserved, by what is required: more after each failure for want of memory."""
        return float(MEMORY_GROWTH**self._out_of_memory)

    def need(self, required_bytes: int, budget: int) -> int:
        """What to reserve, but no more than there can be."""
        if not self._out_of_memory:
            return required_bytes
        return min(int(required_bytes * self.growth), max(required_bytes, budget))

    def verdict(self, nodes: Sequence[str]) -> ModelLoadFailed | str:
        """What failed loads mean for a model that only these nodes can hold, none of which may be tried now.

        Returns:
            What its waiting jobs are told when all are given up; why it waits when some may be tried later.
        """
        left = [node for node in nodes if not self.is_given_up(node)]
        if not left:
            return self._gave_up(nodes)
        first = min(left, key=lambda node: (self.retry_in_ms(node), node))
        wait_s = self.retry_in_ms(first) / 1000
        return f"its last load on {first} failed ({self._last(first).reason}); next try in {wait_s:.0f} s"

    def _gave_up(self, nodes: Sequence[str]) -> ModelLoadFailed:
        tries = sum(len(self._by_node[node]) for node in nodes)
        causes = {node: self._last(node).reason for node in sorted(nodes)}
        told = "; ".join(f"on {node}: {reason}" for node, reason in causes.items())
        return ModelLoadFailed(
            f"{self._model!r} could not be loaded, {tries} tries, {told}; "
            f"mend that and run `packtrain load {self._model}`, or submit again ten minutes after the last failure",
            model=self._model,
            node=max(nodes, key=lambda node: (_ended_ms(self._last(node)), node)),
            causes=causes,
        )

    def _last(self, node: str) -> InstanceBeat:
        return max(self._by_node[node], key=_ended_ms)


def crash_wait_ms(model: ModelId, view: View) -> int:
    """Until a model that no job waits for may be loaded again; 0: now. The first crash costs it nothing."""
    ended = [i for i in view.of_model.get(model, ()) if i.state is InstanceState.FAILED and i.ready_ms]
    crashed = [i for i in ended if _ended_ms(i) >= view.asked_ms(model)]
    if len(crashed) < 2:
        return 0
    wait_ms: int = min(MAX_CRASH_BACKOFF_MS, CRASH_BACKOFF_MS * 2 ** (len(crashed) - 2))
    return max(0, max(map(_ended_ms, crashed)) + wait_ms - view.now.now_ms)


def _failed_to_load(instance: InstanceBeat, view: View) -> bool:
    """True for what failed before it could be used, by what its own node did."""
    if instance.state is not InstanceState.FAILED or instance.ready_ms:
        return False
    if instance.is_shard:
        head = view.head_of(instance)
        return head is None or not head.ready_ms
    return not any(i.is_shard and i.state in _BROKEN for i in view.group_of(instance))


def _ended_ms(instance: InstanceBeat) -> int:
    return instance.ended_ms or instance.requested_ms
