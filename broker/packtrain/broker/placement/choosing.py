"""Choosing: the node for one load, and where no node has room, the cheapest way to get one there.

Room on a node that has the file is free of cost and taken first. Else all ways are compared by the seconds they cost:
idle instances that would have to leave a node cost what reloading them may cost later, a fetch of the file to a node
with room costs its transfer now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from packtrain.broker.beats import NodeBeat
from packtrain.broker.ids import ModelId, Route, is_deterministic, model_of
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.placement.failures import Failures
from packtrain.broker.placement.rooms import Eviction, Room
from packtrain.broker.placement.snapshot import Candidate
from packtrain.broker.placement.view import View
from packtrain.broker.placement.worth import fetch_s
from packtrain.broker.pulls import with_headroom

#: Candidates that a decision names in the journal.
MAX_CANDIDATES = 6
#: Nodes with a file that are asked whether others reach it.
MAX_SOURCES = 64

#: A node that has a model's file, and how it would load it.
Holder = tuple[Room, ModelInfo]


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
    """The nodes for one load of a route. Looks at no more of them than it must: there may be thousands.

    Args:
        rooms: Of all open nodes, least free memory first.
        spread: Only nodes that have no replica of the model.
    """

    def __init__(self, route: Route, rooms: Sequence[Room], view: View, failures: Failures, *, spread: bool) -> None:
        self._model: ModelId = model_of(route)
        self._is_deterministic = is_deterministic(route)
        self._rooms = rooms
        self._offers = view.offers(self._model)
        self._failures = failures
        self._spread = spread
        self._rules = view.rules(self._model)
        # Most often all nodes that have the file are alike.
        self._all_alike = not (self._is_deterministic or spread or failures or self._rules.labels)

    def holders(self) -> Iterator[Holder]:
        """Nodes that have the file, most free memory first."""
        for room in reversed(self._rooms):
            if offer := self._offers.get(room.name):
                yield room, offer

    def admitted(self) -> Iterator[Holder]:
        """Those that may load it at all."""
        return (holder for holder in self.holders() if self._admits(holder[0]))

    def able(self) -> Iterator[Holder]:
        """Those that are not known to lack the numerics."""
        return (holder for holder in self.admitted() if self._can_compute(holder[0].node))

    def fitting(self) -> Iterator[Holder]:
        """Those that could hold it when empty."""
        return (holder for holder in self.able() if holder[1].required_bytes <= holder[0].node.memory_budget)

    def ready(self) -> Iterator[Holder]:
        """Those where it may be tried now."""
        return (holder for holder in self.fitting() if self._failures.may_try(holder[0].name))

    def place(self) -> Place | None:
        """A node with room: fewest failed loads and replicas of the model, then most free memory."""
        best: Place | None = None
        fewest = (0, 0)
        for room in reversed(self._rooms):
            if room.free < self._rules.least_bytes:  # and so have all after it
                break
            offer = self._offers.get(room.name)
            if offer is None or offer.required_bytes > room.free or not self._is_ready(room):
                continue
            need = self._need(room, offer)
            if need > room.free:
                continue
            rank = (self._failures.count(room.name), room.replicas.get(self._model, 0))
            if best is None or rank < fewest:
                best, fewest = Place(room, offer, need), rank
            if rank == (0, 0):
                break
        return best

    def clearing(self, givers: Iterable[Room], *, wanted: bool, below: float) -> Clearing | None:
        """Where the cheapest set of instances must leave.

        Args:
            givers: Nodes that may get room, cheapest first, so that few are solved before the rest cannot be better.
            wanted: Those that jobs wait for may leave, too.
            below: Sets that cost as much are of no use.
        """
        best: Clearing | None = None
        bound = below
        for room in givers:
            pool = room.pools[wanted]
            if pool.least > bound:
                break
            offer = self._offers.get(room.name)
            if offer is None or pool.reach < offer.required_bytes or not self._is_ready(room):
                continue
            need = self._need(room, offer)
            found = room.eviction(need, pool.victims, below=bound)
            if found is None or (best and (found.cost, found.sunk) >= (best.eviction.cost, best.eviction.sunk)):
                continue
            best, bound = Clearing(Place(room, offer, need), found), found.cost
        return best

    def fetch(self) -> tuple[Place, float] | None:
        """A node with room to which the file could be fetched, and the seconds that costs."""
        for holder, room, offer in self._fetchers():
            need = self._need(room, offer)
            if need <= room.free:
                return Place(room, offer, need, fetch_from=holder.name), fetch_s(offer.file_bytes)
        return None

    def may_fetch(self) -> bool:
        """True when some node could fetch the file and hold the model, now or once it has room."""
        return next(self._fetchers(), None) is not None

    def candidates(self, chosen: Room, verdict: str) -> tuple[Candidate, ...]:
        """What the journal says of the nodes: the chosen one, then those with most free memory."""
        shown = [(r, o) for r, o in islice(self.holders(), MAX_CANDIDATES) if r is not chosen]
        told = [Candidate(r.name, r.free, o.required_bytes, self._told(r, o)) for r, o in shown]
        offer = self._offers.get(chosen.name)
        return (Candidate(chosen.name, chosen.free, offer.required_bytes if offer else 0, verdict), *told)

    def _sources(self) -> dict[str, Holder]:
        """Nodes that would give the file away, by who reaches them (`NodeBeat.files_scope`)."""
        found: dict[str, Holder] = {}
        if not self._rules.is_fetchable or all(room.name in self._offers for room in self._rooms):
            return found
        for room, offer in islice(self.holders(), MAX_SOURCES):
            scope = room.node.files_scope
            if scope is not None and offer.fetchable and offer.file_bytes:
                found.setdefault(scope, (room, offer))
                if not scope:  # everybody's
                    break
        return found

    def _fetchers(self) -> Iterator[tuple[Room, Room, ModelInfo]]:
        """Who could send the file, nodes without it that reach that one and have the disk and the budget for it, and
        the model as the sender loads it. Most free memory first."""
        sources = self._sources()
        if not sources:
            return
        for room in reversed(self._rooms):
            node = room.node
            source = sources.get("") or sources.get(node.loopback)
            if source is None or room.name in self._offers:
                continue
            holder, offer = source
            if node.disk_free < with_headroom(offer.file_bytes) or offer.required_bytes > node.memory_budget:
                continue
            if self._is_ready(room):
                yield holder, room, offer

    def _need(self, room: Room, offer: ModelInfo) -> int:
        return self._failures.need(offer.required_bytes, room.node.memory_budget)

    def _is_ready(self, room: Room) -> bool:
        """True when nothing but its memory speaks against a node."""
        if self._all_alike:
            return True
        return self._admits(room) and self._can_compute(room.node) and self._failures.may_try(room.name)

    def _admits(self, room: Room) -> bool:
        return self._rules.admit(room.node) and not (self._spread and room.replicas.get(self._model))

    def _can_compute(self, node: NodeBeat) -> bool:
        return not self._is_deterministic or self._model not in node.not_deterministic

    def _told(self, room: Room, offer: ModelInfo) -> str:
        if not self._rules.admit(room.node):
            return "lacks a label"
        if self._spread and room.replicas.get(self._model):
            return "has a replica"
        if not self._can_compute(room.node):
            return "cannot be deterministic"
        if not self._failures.may_try(room.name):
            return "failed too often, or just now"
        if offer.required_bytes > room.node.memory_budget:
            return "too small"
        if offer.required_bytes > room.free:
            return "no room"
        replicas = room.replicas.get(self._model, 0)
        return f"room, {replicas} replicas" if replicas else "room"
