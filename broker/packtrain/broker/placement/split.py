"""The plan of a split: which nodes hold a model together that none holds alone, and how many layers each. Pure.

One node is the head: it has the model's file and computes the first layers, input and output. Every byte of a step goes
through it, so only its links count. Shards have the other layers in order. Chosen are, in this order,

    fewest nodes              each more costs a round trip for each token
    highest bandwidth         of the slowest link, in steps of two: 118 and 109 MB/s are one
    lowest round trips        of all links together
    most room                 of the nodes

among nodes with one build of llama.cpp whose links to the head were measured. A node gives a split no more than three
quarters of what it has free: estimates of parts are rougher than those of a whole, and a shard that is short of memory
takes the whole group down. Layers are dealt by what each member can give, so all keep the same share in reserve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise

from packtrain.broker.ids import NodeId
from packtrain.broker.placement.snapshot import MIB

#: Of a member's free memory that a split may take.
USABLE = 3 / 4
MAX_MEMBERS = 8
#: Nodes with most room that are looked at for the lowest round trips; the rest is only counted on for room.
MAX_LOOKED = 12


@dataclass(frozen=True, slots=True)
class Member:
    """A node that may take part."""

    node: NodeId
    free: int  # bytes that it has for instances now
    has_file: bool
    build: str  # of llama.cpp; empty: not known
    cpu: str = ""  # where bits of answers must be equal: what of its CPU tells on them

    @property
    def usable(self) -> int:
        """Bytes that a split may take of it."""
        return int(self.free * USABLE)

    def is_like(self, other: Member) -> bool:
        """Whether both may hold parts of one model."""
        return bool(self.build) and (self.build, self.cpu) == (other.build, other.cpu)


@dataclass(frozen=True, slots=True)
class Link:
    """Between two nodes, as one of them measured it."""

    bytes_per_s: float
    round_trip_s: float

    @property
    def width(self) -> int:
        """Bandwidth in steps of two."""
        return math.frexp(self.bytes_per_s)[1]


@dataclass(frozen=True, slots=True)
class SplitModel:
    """What a model takes where, bytes."""

    layers: tuple[int, ...]  # weights and cache of each
    head_bytes: int  # on the head besides its layers: process, input, output, logits, scratch space
    shard_bytes: int  # on a shard besides its layers: process and scratch space


@dataclass(frozen=True, slots=True)
class Share:
    """What one member has."""

    node: NodeId
    first: int  # its first layer
    count: int
    size: int  # bytes, in all
    usable: int
    link: Link | None = None  # to the head; None: it is the head

    @property
    def free(self) -> int:
        """Bytes that the node must have free to give it that."""
        return math.ceil(self.size / USABLE)


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The head first, then shards in the order of their layers."""

    shares: tuple[Share, ...]

    @property
    def head(self) -> Share:
        return self.shares[0]

    @property
    def shards(self) -> tuple[Share, ...]:
        return self.shares[1:]

    @property
    def round_trips_s(self) -> float:
        """What the network adds to each step at least."""
        return sum(share.link.round_trip_s for share in self.shards if share.link)


@dataclass(frozen=True, slots=True)
class NoSplit:
    """Why there is none, and what would have to change."""

    reasons: tuple[str, ...]


#: By both nodes, smaller id first.
Links = Mapping[tuple[NodeId, NodeId], Link]


def link_between(links: Links, one: NodeId, other: NodeId) -> Link | None:
    """As either of them measured it."""
    return links.get((min(one, other), max(one, other)))


def plan_split(
    model: SplitModel, members: Sequence[Member], links: Links, *, over_all: bool = False
) -> SplitPlan | NoSplit:
    """The best split over two nodes or more. Same arguments, same plan.

    Args:
        members: Nodes that take new instances.
        links: Measured ones.
        over_all: Over all members, neither more nor fewer.
    """
    heads = [m for m in members if m.has_file and m.build and m.usable >= model.head_bytes]
    most = min(MAX_MEMBERS, len(model.layers) + 1, len(members))
    for count in [len(members)] if over_all and len(members) > 1 else range(2, most + 1):
        found = [plan for head in heads if (plan := _best_around(head, count, model, members, links))]
        if found:
            return min(found, key=_rank)
    return NoSplit(tuple(_missing(model, members, links)))


def _rank(plan: SplitPlan) -> tuple[float, float, int, str]:
    links = [share.link for share in plan.shards if share.link]
    room = sum(share.usable for share in plan.shares)
    return -min(link.width for link in links), plan.round_trips_s, -room, plan.head.node


def _best_around(
    head: Member, count: int, model: SplitModel, members: Sequence[Member], links: Links
) -> SplitPlan | None:
    """With this head and `count` members in all."""
    linked = sorted(_linked(head, model, members, links), key=lambda pair: (-pair[0].usable, pair[0].node))
    for width in sorted({link.width for _, link in linked}, reverse=True):
        wide = [pair for pair in linked if pair[1].width >= width][:MAX_LOOKED]
        found = [
            plan
            for chosen in combinations(wide, count - 1)
            if (plan := _dealt(model, head, sorted(chosen, key=lambda pair: (pair[1].round_trip_s, pair[0].node))))
        ]
        if found:
            return min(found, key=_rank)
    return None


def _linked(head: Member, model: SplitModel, members: Sequence[Member], links: Links) -> Iterator[tuple[Member, Link]]:
    for member in members:
        link = link_between(links, head.node, member.node)
        is_able = member.is_like(head) and member.usable > model.shard_bytes
        if member.node != head.node and link and is_able:
            yield member, link


def _dealt(model: SplitModel, head: Member, shards: Sequence[tuple[Member, Link]]) -> SplitPlan | None:
    """The layers dealt to these members; None: they do not fit."""
    rooms = [head.usable - model.head_bytes, *(member.usable - model.shard_bytes for member, _ in shards)]
    counts = deal(model.layers, rooms, least=1)
    if counts is None:
        return None
    starts = [0, *accumulate(counts)]
    sizes = [sum(model.layers[start:stop]) for start, stop in pairwise(starts)]
    shares = [Share(head.node, 0, counts[0], sizes[0] + model.head_bytes, head.usable)]
    for (member, link), start, count, size in zip(shards, starts[1:], counts[1:], sizes[1:], strict=False):
        shares.append(Share(member.node, start, count, size + model.shard_bytes, member.usable, link))
    return SplitPlan(tuple(shares))


def deal(layers: Sequence[int], rooms: Sequence[int], *, least: int = 0) -> list[int] | None:
    """How many neighbouring layers each gets, by its room; None: no way to deal them in this order.

    By shares of the rooms first. Where a layer is too large for that, each gets as many as it holds.

    Args:
        least: Layers that each but the first gets at least.

    >>> deal([10] * 6, [30, 60, 30])
    [1, 3, 2]
    >>> deal([10, 10, 50], [20, 50])
    [2, 1]
    >>> deal([10, 10], [90, 10]), deal([10, 10], [90, 10], least=1)
    ([2, 0], [1, 1])
    """
    total, whole = sum(layers), sum(rooms)
    if total > whole or min(rooms) < 0:
        return None
    ends = [end * total / whole for end in accumulate(rooms)]
    # Each leaves as many as those behind it must have.
    stops = [max(0, len(layers) - least * behind) for behind in reversed(range(len(rooms)))]
    counts = list[int]()
    taken = first = 0
    for end, stop in zip(ends, stops, strict=True):
        count, must = 0, least if counts else 0
        # A layer goes to whoever has its middle.
        while first + count < stop and (count < must or taken + layers[first + count] / 2 < end):
            taken += layers[first + count]
            count += 1
        counts.append(count)
        first += count
    counts[-1] += len(layers) - first
    if _fit(layers, counts, rooms, least):
        return counts
    counts, first = [], 0
    for room, stop in zip(rooms, stops, strict=True):
        count = 0
        while first < stop and layers[first] <= room:
            room -= layers[first]
            first += 1
            count += 1
        counts.append(count)
    return counts if first == len(layers) and _fit(layers, counts, rooms, least) else None


def _fit(layers: Sequence[int], counts: Sequence[int], rooms: Sequence[int], least: int) -> bool:
    starts = [0, *accumulate(counts)]
    return all(count >= least for count in counts[1:]) and all(
        sum(layers[start : start + count]) <= room for start, count, room in zip(starts, counts, rooms, strict=False)
    )


def _missing(model: SplitModel, members: Sequence[Member], links: Links) -> Iterator[str]:
    """What stands in the way, most telling first."""
    if len(members) < 2:
        yield "a split needs two nodes that take instances, there is " + ("one" if members else "none")
        return
    holders = [member for member in members if member.has_file]
    if not holders:
        yield "no node that takes instances has its file; bring it to one with `packtrain pull`"
        return
    heads = [member for member in holders if member.usable >= model.head_bytes]
    if not heads:
        best = max(holders, key=lambda member: member.usable)
        yield (
            f"a head needs {_mib(model.head_bytes)} besides its layers, and of the nodes with the file {best.node} "
            f"can give most, {_mib(best.usable)}; unload something there, or set a smaller context or fewer slots"
        )
        return
    head = max(heads, key=lambda member: member.usable)
    others = [member for member in members if member.node != head.node]
    if not head.build:
        yield f"{head.node} has not told yet which llama.cpp it has; ask again in a minute"
    for member in others:
        if member.build and head.build and member.build != head.build:
            yield (
                f"{member.node} has another llama.cpp ({member.build}) than {head.node} ({head.build}); install the "
                "same build on both"
            )
        elif member.build and not member.is_like(head):
            yield (
                f"{member.node} has another kind of CPU ({member.cpu or 'not told yet'}) than {head.node} "
                f"({head.cpu or 'not told yet'}), and deterministic jobs need equal ones; leave out `deterministic`"
            )
        elif not member.build:
            yield f"{member.node} has not told yet which llama.cpp it has; ask again in a minute"
        elif link_between(links, head.node, member.node) is None:
            yield (
                f"the link between {head.node} and {member.node} is not measured; each must reach the other's "
                "--files-address"
            )
    able = [member for member, _ in _linked(head, model, members, links)]
    needed = sum(model.layers) + model.head_bytes + len(able) * model.shard_bytes
    given = head.usable + sum(member.usable for member in able)
    small = [m.node for m in others if m.is_like(head) and m not in able and link_between(links, head.node, m.node)]
    if small and not able:
        yield (
            f"a shard needs {_mib(model.shard_bytes)} besides its layers, and {', '.join(small[:MAX_MEMBERS])} can "
            "give no more; unload something there, or add a node"
        )
    if needed > given:
        yield (
            f"it needs {_mib(needed)} over {head.node} and {len(able)} more, which can give {_mib(given)} together "
            f"({USABLE:.0%} of what they have free), {(needed - given) // MIB + 1} MiB too little; unload something, "
            "add a node, or set a smaller context or fewer slots"
        )
    elif able:
        yield (
            f"its {len(model.layers)} layers do not divide among {head.node} and {len(able)} more; add a node with "
            f"more than {_mib(max(model.layers) + model.shard_bytes)} to give"
        )


def _mib(size: int) -> str:
    return f"{-(-size // MIB)} MiB"
