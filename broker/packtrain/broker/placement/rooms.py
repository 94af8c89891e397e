"""Rooms: what each node has left in the course of one plan, and which instances would have to leave for more.

Which set of instances costs least and frees enough is a knapsack; a node holds a handful of instances, so it is solved
exactly, by branch and bound, up to twelve of them, and greedily beyond.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.ids import NodeId
from packtrain.broker.placement.worth import held_bytes

MAX_EXACT = 12


@dataclass(frozen=True, slots=True)
class Victim:
    """An instance that may leave, and what that costs. A shard leaves with its head, which costs what that costs."""

    instance: InstanceBeat
    cost: float


@dataclass(frozen=True, slots=True)
class Pool:
    """Instances of one node that may leave."""

    victims: tuple[Victim, ...]
    reach: int  # free bytes without all of them and those that are leaving
    key: tuple[float, int, str]  # least cost of any choice among them, free bytes (negative), node

    @property
    def least(self) -> float:
        return self.key[0]


@dataclass(frozen=True, slots=True)
class Eviction:
    """Who leaves a node so that a load fits there. None at all when it is enough that others are leaving already."""

    room: Room
    victims: tuple[Victim, ...]
    cost: float
    sunk: float  # cost of those that are leaving: of equal choices the one that was made before stays


@dataclass(slots=True, eq=False)
class Room:
    """What a node has left, bytes.

    A new instance must fit into the smaller of two truths: the budget less what instances hold or have reserved, and
    the machine's free memory less what instances on their way up have reserved but not yet taken.
    """

    node: NodeBeat
    budget: int
    machine: int
    leaving: list[Victim]
    idle: list[Victim]  # may be unloaded for anybody
    wanted: list[Victim]  # may be unloaded for those that waited too long
    replicas: dict[str, int] = field(default_factory=dict)  # up here or about to be, by model
    name: NodeId = field(init=False)
    free: int = field(init=False)
    pools: dict[bool, Pool] = field(init=False, default_factory=dict)  # True: with those that are wanted

    def __post_init__(self) -> None:
        self.name = NodeId(self.node.node)
        self.free = min(self.budget, self.machine)

    def claim(self, size: int) -> None:
        """Give this much away, now or, when `free` is less, as soon as those that leave are gone."""
        self.budget -= size
        self.machine -= size
        self.free -= size

    def reach(self, victims: Sequence[Victim] = ()) -> int:
        """Free bytes once those that are leaving are gone, and these, too."""
        gone = [victim.instance for victim in (*self.leaving, *victims)]
        budget, machine = sum(map(held_bytes, gone)), sum(i.resident_bytes for i in gone)
        return min(self.budget + budget, self.machine + machine)

    def pool(self, victims: Sequence[Victim]) -> Pool:
        """Instances that may leave, with what that comes to at most and costs at least. Some do, or are leaving."""
        least = 0.0 if self.leaving else min(v.cost for v in victims)
        return Pool(tuple(victims), self.reach(victims), (least, -self.free, self.name))

    def eviction(self, size: int, pool: Sequence[Victim], *, below: float) -> Eviction | None:
        """The cheapest set out of a pool that must leave, too, before `size` fits.

        Args:
            below: Sets that cost as much are of no use.

        Returns:
            None when not even all of them would do, or no set is cheap enough.
        """
        budget, machine = self.budget, self.machine
        for leaver in self.leaving:
            budget += held_bytes(leaver.instance)
            machine += leaver.instance.resident_bytes
        sunk = sum(v.cost for v in self.leaving)
        if min(budget, machine) >= size:
            return Eviction(self, (), 0.0, sunk)
        short = (size - budget, size - machine)
        victims = _cheapest(short, sorted(pool, key=lambda v: (v.cost, v.instance.instance)), below)
        return None if victims is None else Eviction(self, victims, sum(v.cost for v in victims), sunk)

    def unload(self, names: Collection[str]) -> bool:
        """Instances of these names leave, as far as they are here: their memory is to come. True when there are any."""
        gone = [v for v in (*self.idle, *self.wanted) if v.instance.instance in names]
        self.idle = [v for v in self.idle if v.instance.instance not in names]
        self.wanted = [v for v in self.wanted if v.instance.instance not in names]
        self.leaving += gone
        return bool(gone)

    def copy(self) -> Room:
        """The same to try something on."""
        return Room(self.node, self.budget, self.machine, [*self.leaving], [*self.idle], [*self.wanted])


def _cheapest(short: tuple[int, int], pool: Sequence[Victim], below: float) -> tuple[Victim, ...] | None:
    """The cheapest subset of a pool, cheapest first, that frees what the budget and the machine are short of."""
    frees = [(held_bytes(v.instance), v.instance.resident_bytes) for v in pool]
    # What all from here on free together: if that is not enough, no choice among them is.
    rest = [(0, 0)]
    for budget, machine in reversed(frees):
        rest.append((rest[-1][0] + budget, rest[-1][1] + machine))
    rest.reverse()
    if rest[0][0] < short[0] or rest[0][1] < short[1]:
        return None
    best = _greedy(short, pool, frees)
    best_key = (sum(pool[n].cost for n in best), len(best))
    if len(pool) <= MAX_EXACT:
        stack: list[tuple[int, int, int, float, tuple[int, ...]]] = [(0, *short, 0.0, ())]
        while stack:
            n, budget, machine, cost, chosen = stack.pop()
            if budget <= 0 and machine <= 0:
                if (cost, len(chosen)) < best_key:
                    best, best_key = chosen, (cost, len(chosen))
            elif n < len(pool) and rest[n][0] >= budget and rest[n][1] >= machine and cost + pool[n].cost < best_key[0]:
                stack.append((n + 1, budget, machine, cost, chosen))
                took = (budget - frees[n][0], machine - frees[n][1])
                stack.append((n + 1, *took, cost + pool[n].cost, (*chosen, n)))
    return tuple(pool[n] for n in best) if best_key[0] < below else None


def _greedy(short: tuple[int, int], pool: Sequence[Victim], frees: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    budget, machine = short
    chosen: list[int] = []
    for n in range(len(pool)):
        if budget <= 0 and machine <= 0:
            break
        chosen.append(n)
        budget, machine = budget - frees[n][0], machine - frees[n][1]
    for n in reversed(chosen):  # one that was taken before a larger one may be spared
        if budget + frees[n][0] <= 0 and machine + frees[n][1] <= 0:
            chosen.remove(n)
            budget, machine = budget + frees[n][0], machine + frees[n][1]
    return tuple(chosen)
