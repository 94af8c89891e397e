"""Choosing: the node for one load, and where no node has room, the cheapest way to get one there.

Room on a node that has the file is free of cost and taken first. Else all ways are compared by the seconds they cost:
idle instances that would have to leave a node cost what reloading them may cost later, a fetch of the file to a node
with room costs its transfer now.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from packtrain.broker.ids import ModelId, NodeId, Route, is_deterministic, model_of
from packtrain.broker.messages import ModelInfo, NodeBeat
from packtrain.broker.placement.failures import Failures
from packtrain.broker.placement.rooms import Eviction, Room, Victim
from packtrain.broker.placement.snapshot import Candidate
from packtrain.broker.placement.view import Rules, View
from packtrain.broker.placement.worth import fetch_s

#: Of a disk that a fetched file must leave free, as a part of the file.
DISK_HEADROOM = 0.1
#: Candidates that a decision names in the journal.
MAX_CANDIDATES = 6


@dataclass(frozen=True, slots=True)
class Place:
    """Where a load may go now."""

    room: Room
    offer: ModelInfo
    need: int  # bytes
    fetch_from: str = ""


@dataclass(frozen=True, slots=True)
class Clearing:
    """Where a load may go once some have left."""

    place: Place
    eviction: Eviction


class Choice:
    """The nodes for one load of a route.

    Args:
        rooms: Of all open nodes, most free memory first.
        spread: Only nodes that have no replica of the model.
    """

    def __init__(self, route: Route, rooms: Sequence[Room], view: View, failures: Failures, *, spread: bool) -> None:
        self._model: ModelId = model_of(route)
        self._is_deterministic = is_deterministic(route)
        self._rooms = rooms
        self._failures = failures
        self._spread = spread
        self._rules: Rules = view.rules(self._model)
        self.holders = [(room, offer) for room in rooms if (offer := room.offers.get(self._model))]
        self.admitted = [
            (room, offer)
            for room, offer in self.holders
            if self._rules.admit(room.node) and not (spread and room.replicas.get(self._model))
        ]

    def able(self) -> list[tuple[Room, ModelInfo]]:
        """Admitted nodes that have the file and are not known to lack the numerics."""
        return [(room, offer) for room, offer in self.admitted if self._can_compute(room.node)]

    def fitting(self) -> list[tuple[Room, ModelInfo]]:
        """Those of them that could hold it when empty."""
        return [(room, offer) for room, offer in self.able() if offer.required_bytes <= room.node.memory_budget]

    def place(self, among: Sequence[tuple[Room, ModelInfo]]) -> Place | None:
        """A node with room: fewest replicas of the model, then most free memory."""
        best: Place | None = None
        fewest = 0
        for room, offer in among:
            need = self._failures.need(offer.required_bytes, room.node.memory_budget)
            if need > room.free:
                continue
            replicas = room.replicas.get(self._model, 0)
            if best is None or replicas < fewest:
                best, fewest = Place(room, offer, need), replicas
            if not replicas:
                break
        return best

    def clearing(
        self, among: Sequence[tuple[Room, ModelInfo]], pools: Sequence[Sequence[Victim]], *, below: float
    ) -> Clearing | None:
        """Where the cheapest set of a pool must leave.

        Args:
            pools: Who may leave, of each node.
            below: Sets that cost as much are of no use.
        """
        best: Clearing | None = None
        for (room, offer), pool in zip(among, pools, strict=True):
            if not pool and not room.leaving:
                continue
            need = self._failures.need(offer.required_bytes, room.node.memory_budget)
            if room.reach(pool) < need:
                continue
            bound = best.eviction.cost if best else below
            if pool and not room.leaving and min(v.cost for v in pool) > bound:
                continue
            found = room.eviction(need, pool, below=below)
            if found is None or (best and (found.cost, found.sunk) >= (best.eviction.cost, best.eviction.sunk)):
                continue
            best = Clearing(Place(room, offer, need), found)
        return best

    def fetch(self) -> tuple[Place, float] | None:
        """A node with room to which the file could be fetched, and the seconds that costs."""
        source = next(((r, o) for r, o in self.holders if o.fetchable and o.file_bytes and r.node.files_url), None)
        if source is None:
            return None
        holder, offer = source
        for room in self._fetchers(offer):
            need = self._failures.need(offer.required_bytes, room.node.memory_budget)
            if need <= room.free:
                return Place(room, offer, need, fetch_from=holder.name), fetch_s(offer.file_bytes)
        return None

    def may_fetch(self) -> bool:
        """True when some node could fetch the file and hold the model, now or once it has room."""
        sources = [o for r, o in self.holders if o.fetchable and o.file_bytes and r.node.files_url]
        return bool(sources) and next(self._fetchers(sources[0]), None) is not None

    def candidates(self, chosen: NodeId, verdicts: dict[NodeId, str]) -> tuple[Candidate, ...]:
        """What the journal says of the nodes: the chosen one, then those with most free memory."""
        shown = [(r, o) for r, o in self.holders if r.name == chosen or r.name in verdicts]
        shown += [(r, o) for r, o in self.holders[:MAX_CANDIDATES] if (r, o) not in shown]
        return tuple(
            Candidate(room.name, room.free, offer.required_bytes, verdicts.get(room.name, self._verdict(room, offer)))
            for room, offer in shown[:MAX_CANDIDATES]
        )

    def _fetchers(self, offer: ModelInfo) -> Iterator[Room]:
        """Nodes without the file that have the disk and the budget for it, most free memory first."""
        for room in self._rooms:
            node = room.node
            if self._model in room.offers or node.disk_free < offer.file_bytes * (1 + DISK_HEADROOM):
                continue
            if self._spread and room.replicas.get(self._model):
                continue
            if offer.required_bytes > node.memory_budget or not self._failures.may_try(node.node):
                continue
            if self._rules.admit(node) and self._can_compute(node):
                yield room

    def _can_compute(self, node: NodeBeat) -> bool:
        return not self._is_deterministic or self._model not in node.not_deterministic

    def _verdict(self, room: Room, offer: ModelInfo) -> str:
        if not self._rules.admit(room.node):
            return "lacks a label"
        if self._spread and room.replicas.get(self._model):
            return "has a replica"
        if not self._can_compute(room.node):
            return "cannot be deterministic"
        if self._failures.is_given_up(room.name):
            return "failed too often"
        if self._failures.retry_in_ms(room.name):
            return "failed just now"
        if offer.required_bytes > room.node.memory_budget:
            return "too small"
        if offer.required_bytes > room.free:
            return "no room"
        replicas = room.replicas.get(self._model, 0)
        return f"room, {replicas} replicas" if replicas else "room"
