"""Gathering: the nodes over which one model is loaded together, and why there are none. Pure.

A model is gathered when no node holds it alone, or when packtrain.toml splits it over certain nodes. Who may take part,
what each has to give and which of its loads failed lately is known here; who holds how much is for `split` to choose.

Where there is no way, it matters whether there may be one in a while: links that were not measured yet, a build that
was not told, a node that is away for a reboot. Then jobs wait as long as for a model whose only node is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import nlargest

from packtrain.broker.errors import ModelError, ModelTooLarge
from packtrain.broker.ids import NodeId, Route, model_of
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.placement.failures import Failures
from packtrain.broker.placement.read_rates import read_rate
from packtrain.broker.placement.rooms import Room
from packtrain.broker.placement.split import (
    MAX_MEMBERS,
    Links,
    Member,
    NoSplit,
    SplitModel,
    SplitPlan,
    link_between,
    plan_split,
)
from packtrain.broker.placement.split_fleet import (
    left_out,
    speed_of,
    split_model,
    takes_part,
    why_absent,
    why_never,
)
from packtrain.broker.placement.verdicts import too_large
from packtrain.broker.placement.view import View

#: Reasons that a waiting job hears.
MAX_REASONS = 3


class Gathering:
    """The nodes for a group of one route.

    Args:
        rooms: Of all open nodes.
        info: The model, with its layers.
        links: Of all nodes that take part.
    """

    def __init__(
        self, route: Route, rooms: Sequence[Room], view: View, failures: Failures, info: ModelInfo, links: Links
    ) -> None:
        self.info, self.numerics = info, view.numerics(route, info)
        self._model = model = model_of(route)
        self._view, self._failures = view, failures
        self._offers = view.offers(model)
        self._over = view.rules(model).split_over
        self._is_deterministic = self.numerics == "deterministic"
        rules, computes = view.rules(model), [room for room in rooms if self._can_compute(room)]
        named = sorted(computes, key=lambda room: room.name)
        self._asked = [r for r in named if rules.admit(r.node) and (not self._over or r.name in self._over)]
        self._rooms = [room for room in self._asked if takes_part(room.node)]
        self._never = why_never(info)
        self._split = _grown(split_model(info), failures.growth) if not self._never else SplitModel((), 0, 0)
        self._links = links
        self._found: dict[tuple[bool, tuple[Member, ...]], SplitPlan | NoSplit] = {}
        self._is_for_jobs = bool(view.now.waiting.get(route))

    def plan(
        self, free: Callable[[Room], int], may: Callable[[str], bool] | None = None, *, any_one: bool = False
    ) -> SplitPlan | NoSplit:
        """Who holds what.

        Args:
            free: Bytes that a node has for it.
            may: Nodes that count; None: those where no load of it failed just now.
            any_one: Whatever is found first.
        """
        if self._never:
            return NoSplit((self._never,))
        may = may or self._failures.may_try
        members = [self._member(room, free(room)) for room in self._rooms if may(room.name)]
        if absent := why_absent(self._over, members):
            return NoSplit(absent)
        key = (any_one, tuple(members))
        if key not in self._found:  # often nobody would leave, so that is asked again
            over_all = bool(self._over)
            self._found[key] = plan_split(self._split, members, self._links, over_all=over_all, any_one=any_one)
        return self._found[key]

    def tokens_per_s(self, plan: SplitPlan) -> float:
        """The forecast for one job alone; 0: not known."""
        rates = {room.name: read_rate(room.node, self.info) for room in self._rooms}
        return speed_of(plan, self.info, rates).tokens_per_s or 0.0

    def short_of_memory(self) -> str:
        """Why it waits that would fit if nodes were empty; empty: it would not."""
        if isinstance(self.plan(_when_empty, any_one=True), NoSplit):
            return ""
        found = self.plan(lambda room: room.reach())
        return found.reasons[0] if isinstance(found, NoSplit) else "waits until memory is free"

    def verdict(self, largest: Room, waited_ms: int) -> ModelError | str:
        """Why there is no group, not even over empty nodes: final when it is an error.

        Args:
            largest: Of the nodes that may load it alone, the one with most memory.
            waited_ms: How long its jobs have waited with nobody to serve them.
        """
        names = [room.name for room in self._rooms]
        given_up = [name for name in names if self._failures.is_given_up(name)]
        if isinstance(self.plan(_when_empty, lambda name: name not in given_up, any_one=True), SplitPlan):
            return self._failures.verdict([n for n in names if n not in given_up and self._failures.retry_in_ms(n)])
        if isinstance(found := self.plan(_when_empty, names.__contains__, any_one=True), SplitPlan):
            return self._failures.verdict(given_up)
        away = tuple(left_out([room.node for room in self._asked]))
        reasons = (*away, *(found.reasons if len(names) > 1 or not away else ()))[:MAX_REASONS]
        left_s = (self._view.now.offer_wait_ms - waited_ms) / 1000
        if self._may_come() and left_s > 0:
            ends = f"; its jobs fail in {left_s:.0f} s" if self._is_for_jobs else ""
            return f"no nodes can hold it together now: {'; '.join(reasons)}{ends}"
        return self._too_large(largest, reasons)

    def _too_large(self, largest: Room, reasons: Sequence[str]) -> ModelTooLarge:
        if self._over:
            said = f"{self._model!r} cannot be loaded over {', '.join(self._over)}: {'; '.join(reasons)}"
            return ModelTooLarge(said, model=self._model, required_bytes=self.info.required_bytes, short_bytes=0)
        is_alone = len(self._view.open_nodes) == 1
        offer = self._offers.get(largest.name, self.info)
        return too_large(offer, largest.node, over_several="" if is_alone else "; ".join(reasons))

    def _may_come(self) -> bool:
        """True when there may be a way soon, though nobody needs to change anything."""
        if self._never:
            return False
        if self._over or any(node.split and node.node not in self._view.open_nodes for node in self._view.now.nodes):
            return True
        if any(i.is_head and i.ready_ms for i in self._view.of_model[self._model]):  # it was there, so somebody left
            return True
        return self._would_fit() and self._is_unknown()

    def _would_fit(self) -> bool:
        """True when some nodes together have the memory when empty, whatever their links and builds."""
        rooms = [room for room in self._asked if room.node.split]
        members = [self._member(room, _when_empty(room)) for room in rooms]
        needed = sum(self._split.layers) + self._split.head_bytes
        most = nlargest(MAX_MEMBERS, members, key=lambda member: member.usable)
        for head in members:
            if head.has_file and head.usable >= self._split.head_bytes:
                others = [m.usable for m in most if m.node != head.node][: MAX_MEMBERS - 1]
                if head.usable + sum(max(0, usable - self._split.shard_bytes) for usable in others) >= needed:
                    return True
        return False

    def _is_unknown(self) -> bool:
        """True when not all is known yet of the nodes that take part."""
        rooms = [room for room in self._asked if room.node.split]
        if any(not (takes_part(room.node) and room.node.build) for room in rooms):
            return True
        return any(
            link_between(self._links, head.name, other.name) is None
            for head in rooms
            if head.name in self._offers
            for other in rooms
            if other is not head and other.node.build == head.node.build
        )

    def _member(self, room: Room, free: int) -> Member:
        node = room.node
        cpu = node.cpu if self._is_deterministic else ""
        return Member(NodeId(room.name), max(0, free), room.name in self._offers, node.build, cpu)

    def _can_compute(self, room: Room) -> bool:
        return not self._is_deterministic or self._model not in room.node.not_deterministic


def _when_empty(room: Room) -> int:
    return room.node.memory_budget


def _grown(split: SplitModel, factor: float) -> SplitModel:
    if factor == 1:
        return split
    layers = tuple(int(size * factor) for size in split.layers)
    return SplitModel(layers, int(split.head_bytes * factor), int(split.shard_bytes * factor))
