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
from heapq import nlargest
from itertools import accumulate, combinations, islice, pairwise

from packtrain.broker.ids import NodeId
from packtrain.broker.placement.snapshot import MIB

#: Of a member's free memory that a split may take.
USABLE = 3 / 4
MAX_MEMBERS = 8
#: Nodes with most room that are looked at for the lowest round trips; the rest is only counted on for room.
MAX_LOOKED = 12
#: Heads that are looked at, those with most room; and sets of shards of one head for which layers are dealt before it
#: is given up: where there is room in sum, they rarely do not divide.
MAX_HEADS, MAX_DEALT = 16, 8
MAX_REASONS = 20


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
#: Who may be a shard, and the link to its head.
_Near = tuple[Member, Link]


def link_between(links: Links, one: NodeId, other: NodeId) -> Link | None:
    """As either of them measured it."""
    return links.get((min(one, other), max(one, other)))


def plan_split(
    model: SplitModel, members: Sequence[Member], links: Links, *, over_all: bool = False, any_one: bool = False
) -> SplitPlan | NoSplit:
    """The best split over two nodes or more. Same arguments, same plan.

    Args:
        members: Nodes that take new instances.
        links: Measured ones.
        over_all: Over all members, neither more nor fewer.
        any_one: Whatever is found first; to know whether there is one.
    """
    able = [m for m in members if m.has_file and m.build and m.usable >= model.head_bytes]
    heads = nlargest(MAX_HEADS, able, key=lambda member: member.usable)
    most = min(MAX_MEMBERS, len(model.layers) + 1, len(members))
    room = sum(nlargest(most, (member.usable for member in members)))
    if room < sum(model.layers) + model.head_bytes + model.shard_bytes:
        heads = []
    near = _near(model, heads, members, links)
    for count in [len(members)] if over_all and len(members) > 1 else range(2, most + 1):
        found = (plan for head in heads if (plan := _best_around(head, near[head.node], count, model)))
        if best := next(found, None) if any_one else min(found, key=_rank, default=None):
            return best
    return NoSplit(tuple(islice(_missing(model, members, links), MAX_REASONS)))


def _rank(plan: SplitPlan) -> tuple[float, float, int, str]:
    links = [share.link for share in plan.shards if share.link]
    room = sum(share.usable for share in plan.shares)
    return -min(link.width for link in links), plan.round_trips_s, -room, plan.head.node


def _near(
    model: SplitModel, heads: Sequence[Member], members: Sequence[Member], links: Links
) -> dict[NodeId, list[_Near]]:
    """Who may be a shard of each of these heads, most room first."""
    found: dict[NodeId, list[_Near]] = {head.node: [] for head in heads}
    for head in heads:
        for member in members:
            link = link_between(links, head.node, member.node)
            if link and member.is_like(head) and member.usable > model.shard_bytes:
                found[head.node].append((member, link))
        found[head.node].sort(key=lambda pair: (-pair[0].usable, pair[0].node))
    return found


def _best_around(head: Member, near: Sequence[_Near], count: int, model: SplitModel) -> SplitPlan | None:
    """With this head and `count` members in all."""
    # What shards must have together, a fixed part each included.
    needed = sum(model.layers) + model.head_bytes - head.usable + (count - 1) * model.shard_bytes
    for width in sorted({link.width for _, link in near}, reverse=True):
        wide = [pair for pair in near if pair[1].width >= width][:MAX_LOOKED]
        if sum(member.usable for member, _ in wide[: count - 1]) < needed:
            continue
        # All have this width at least, and with a greater one there is none: so the rest of `_rank` decides.
        ranked = sorted(
            (sum(link.round_trip_s for _, link in chosen), -room, number, chosen)
            for number, chosen in enumerate(combinations(wide, count - 1))
            if (room := sum(member.usable for member, _ in chosen)) >= needed
        )
        by_room = sorted(ranked[MAX_DEALT:], key=lambda each: each[1])[:1]
        for *_, chosen in (*ranked[:MAX_DEALT], *by_room):
            if plan := _dealt(model, head, sorted(chosen, key=lambda pair: (pair[1].round_trip_s, pair[0].node))):
                return plan
    return None


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
    able = [member for member, _ in _near(model, [head], members, links)[head.node]]
    needed = sum(model.layers) + model.head_bytes + len(able) * model.shard_bytes
    given = head.usable + sum(member.usable for member in able)
    small = [m.node for m in others if m.is_like(head) and link_between(links, head.node, m.node)]
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
