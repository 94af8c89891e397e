"""The pass: one route after another meets the first case of the table in `placement/__init__.py` that holds."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from operator import itemgetter

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.errors import ModelError, NotDeterministic
from packtrain.broker.ids import InstanceId, ModelId, NodeId, Route, is_deterministic, model_of, route_of
from packtrain.broker.placement.choosing import Choice, Clearing, Place
from packtrain.broker.placement.failures import Failures, crash_wait_ms
from packtrain.broker.placement.gathering import Gathering
from packtrain.broker.placement.leaving import Leavers
from packtrain.broker.placement.replicas import Another, another
from packtrain.broker.placement.rooms import Room, Victim
from packtrain.broker.placement.snapshot import Candidate, Load, Plan, Reject, ShardLoad, Snapshot, Unload
from packtrain.broker.placement.split import Links, SplitPlan
from packtrain.broker.placement.split_fleet import links_of, takes_part
from packtrain.broker.placement.verdicts import no_offer
from packtrain.broker.placement.view import View
from packtrain.broker.placement.worth import mib
from packtrain.broker.states import InstanceState


def plan(now: Snapshot) -> Plan:
    """The plan for this snapshot. Same snapshot, same plan."""
    return _Pass(View(now)).run()


class _Pass:
    """One plan in the making: what each node has left, and how many of each model are left."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._now = view.now
        self._plan = Plan()
        self._leavers = Leavers(view)
        self._leaving: set[str] = set()
        self._by_cost: dict[bool, list[tuple[float, int, str, Room]]] = {False: [], True: []}  # by the keys of pools
        self._rooms = [self._leavers.room(name) for name in view.open_nodes]
        self._rooms.sort(key=_by_free)
        self._room_of = {room.name: room for room in self._rooms}
        for room in self._rooms:
            self._find_pools(room)
        self._short_of_memory = False

    @cached_property
    def _links(self) -> Links:
        return links_of([node for node in self._view.open_nodes.values() if takes_part(node)], self._now.now_ms)

    def run(self) -> Plan:
        wanted = self._wanted()
        for route in wanted:
            up = self._view.up(route)
            for _ in range(self._missing(route, up)):
                if not self._place(route, None, has_any=bool(up)):
                    break
        if not self._short_of_memory:  # while a model waits for memory, no other gets a second share
            for route in wanted:
                up, planned = self._view.up(route), 0
                while one := another(route, up, self._view, planned=planned):
                    if not self._place(route, one, has_any=True):
                        break
                    planned += 1
        self._unload_unwanted()
        return self._plan

    def _wanted(self) -> list[Route]:
        """Routes that must be served, those that have waited too long first, then those with most jobs."""
        now, view = self._now, self._view
        count = {route: jobs for route, jobs in now.waiting.items() if jobs}
        offered = {model for model in now.models if now.models[model].min_replicas}
        for model in (*now.desired, *sorted(offered)):
            if view.floor(model):
                count.setdefault(route_of(model), 0)

        def urgency(route: Route) -> tuple[int, int, str]:
            waited = view.waited_ms(route) if count[route] else 0
            return (-waited if waited >= now.max_wait_ms else 0, -count[route], route)

        return sorted(count, key=urgency)

    def _missing(self, route: Route, up: Sequence[InstanceBeat]) -> int:
        """Instances to load, so that jobs are served and operators have what they want."""
        needed = int(bool(self._now.waiting.get(route)) and not up)
        floor = 0 if is_deterministic(route) else self._view.floor(model_of(route))
        missing = floor - len(up)
        if missing > needed and (wait_ms := crash_wait_ms(model_of(route), self._view)):
            self._plan.waits[route] = f"it crashes again and again; next try in {wait_ms / 1000:.0f} s"
            missing = 0
        return max(needed, missing)

    def _place(self, route: Route, more: Another | None, *, has_any: bool) -> bool:
        """Meet the first case that holds; True when it is a load."""
        failures = Failures(route, self._view)
        choice = Choice(route, self._rooms, self._view, failures, spread=more is not None)
        if not self._view.rules(model_of(route)).split_over:
            if place := choice.place():
                self._load(route, place, choice, more)
                return True
            if next(choice.ready(), None) or choice.may_fetch():
                return self._make_way(route, choice, more)
        verdict = self._verdict(route, choice, failures)
        if isinstance(verdict, Gathering):
            if more:
                return False
            found = verdict.plan(lambda room: room.free)
            if isinstance(found, SplitPlan):
                self._load_group(route, found, verdict)
                return True
            verdict = self._make_way_for_group(route, verdict, choice)
        if isinstance(verdict, ModelError) and not has_any and self._now.waiting.get(route):
            self._plan.rejects.append(Reject(route, verdict))
        elif not more:
            self._plan.waits[route] = str(verdict)
        return False

    def _verdict(self, route: Route, choice: Choice, failures: Failures) -> Gathering | ModelError | str:
        """Why no node can be tried now: final when it is an error; or that several nodes are to hold it together."""
        model = model_of(route)
        admitted = next(choice.admitted(), None)
        if admitted is None:
            return no_offer(model, self._view)
        able = next(choice.able(), None)
        if able is None:
            return NotDeterministic(model=model, reason=admitted[0].node.not_deterministic[model])
        fitting = [room.name for room, _ in choice.fitting()]
        if self._view.rules(model).split_over or not fitting:
            info = self._now.models.get(model, able[1])
            return Gathering(route, self._rooms, self._view, failures, info, self._links)
        return failures.verdict(fitting)

    def _make_way_for_group(self, route: Route, gathering: Gathering, choice: Choice) -> ModelError | str:
        """No nodes have room for it together: make some where that can be; why it is not loaded yet."""
        waited_ms = self._waited_ms(route)
        for wanted in (None, False, True) if waited_ms >= self._now.max_wait_ms else (None, False):
            found = gathering.plan(partial(self._reach, wanted))
            if isinstance(found, SplitPlan) and (leaving := self._leaving_for(found, wanted)) is not None:
                self._short_of_memory = True
                return self._clear_group(route, found, leaving)
        if reason := gathering.short_of_memory():
            self._short_of_memory = True
            return reason
        largest = max((room for room, _ in choice.able()), key=lambda room: room.node.memory_budget)
        return gathering.verdict(largest, waited_ms)

    def _make_way(self, route: Route, choice: Choice, more: Another | None) -> bool:
        """No node that has the file has room: the cheapest way to one. True when that is a load."""
        limit = more.gain_s if more else float("inf")
        clearing = choice.clearing(self._givers(wanted=False), wanted=False, below=limit)
        fetch = choice.fetch()
        if fetch and fetch[1] < min(limit, clearing.eviction.cost if clearing else float("inf")):
            self._load(route, fetch[0], choice, more)
            return True
        if more and not clearing:
            return False
        reason = f"idle, makes room for {route}"
        waited_ms = self._waited_ms(route)
        if not clearing and waited_ms >= self._now.max_wait_ms:
            clearing = choice.clearing(self._givers(wanted=True), wanted=True, below=limit)
            reason = _why_driven_out(route, waited_ms)
        self._short_of_memory = True
        if clearing:
            self._clear(route, clearing, choice, reason)
        elif best := next(choice.ready(), None):
            room, offer = best
            self._plan.waits[route] = (
                f"needs {mib(offer.required_bytes)}, {room.name} has {mib(room.free)} free and nothing idle to unload"
            )
        else:
            self._plan.waits[route] = "no node that may load it has its file, and none that could fetch it has room"
        return False

    def _load(self, route: Route, place: Place, choice: Choice, more: Another | None) -> None:
        room, offer = place.room, place.offer
        why = more.reason if more else self._why(route)
        where = f"most free memory: {mib(room.free)}"
        if place.fetch_from:
            where = f"no node with its file has room; it is fetched from {place.fetch_from}; {where}"
        model = model_of(route)
        self._plan.loads.append(
            Load(
                model, room.name, self._view.numerics(route, offer), place.need, offer.n_slots, offer.n_ctx,
                f"{why}; {where}", place.fetch_from, choice.candidates(room, "chosen"),
            )
        )  # fmt: skip
        room.replicas[model] = room.replicas.get(model, 0) + 1
        self._claim(room, place.need)

    def _load_group(self, route: Route, found: SplitPlan, gathering: Gathering) -> None:
        info, head = gathering.info, found.head
        speed = gathering.tokens_per_s(found)
        forecast = f"; forecast {speed:.1f} tokens/s for one job alone" if speed else ""
        parts = ", ".join(f"{share.count} layers on {share.node}" for share in found.shares)
        candidates = tuple(
            Candidate(share.node, self._room_of[share.node].free, share.size, "shard" if share.link else "head")
            for share in found.shares
        )
        self._plan.loads.append(
            Load(
                model_of(route), head.node, gathering.numerics, head.size, info.n_slots, info.n_ctx,
                f"{self._why(route)}; over {len(found.shares)} nodes: {parts}{forecast}",
                candidates=candidates, layers=head.count, forecast_tokens_per_s=speed,
                shards=tuple(ShardLoad(share.node, share.count, share.size) for share in found.shards),
            )
        )  # fmt: skip
        room = self._room_of[head.node]
        room.replicas[info.id] = room.replicas.get(info.id, 0) + 1
        for share in found.shares:
            self._claim(self._room_of[share.node], share.size)

    def _reach(self, wanted: bool | None, room: Room) -> int:
        return room.reach(self._leavers.may_leave(room, wanted=wanted))

    def _leaving_for(self, found: SplitPlan, wanted: bool | None) -> list[Victim] | None:
        """Who must leave before a model can be loaded so; None: operators want too many of them kept."""
        rooms = {share.node: self._room_of[share.node].copy() for share in found.shares}
        gone: Counter[str] = Counter()
        victims: list[Victim] = []
        for share in found.shares:
            room = rooms[share.node]
            eviction = room.eviction(
                share.free, self._leavers.may_leave(room, wanted=wanted, gone=gone), below=float("inf")
            )
            if eviction is None:
                return None
            for victim in eviction.victims:
                gone[victim.instance.model] += 1
                names = {i.instance for i in self._view.group_of(victim.instance)}
                for other in rooms.values():
                    other.unload(names)
            victims += eviction.victims
        return victims

    def _clear_group(self, route: Route, found: SplitPlan, victims: Sequence[Victim]) -> str:
        reason = f"idle, makes room for {route}"
        if any(not self._leavers.is_idle(victim.instance) for victim in victims):
            reason = _why_driven_out(route, self._waited_ms(route))
        for victim in victims:
            self._send_away(victim, reason)
        rooms = [self._room_of[share.node] for share in found.shares]
        for room, share in zip(rooms, found.shares, strict=True):
            self._claim(room, share.free)
        leaving = sorted({victim.instance.model for room in rooms for victim in room.leaving})
        return f"waits until {', '.join(leaving)} is unloaded from {', '.join(room.name for room in rooms)}"

    def _clear(self, route: Route, clearing: Clearing, choice: Choice, reason: str) -> None:
        room, eviction = clearing.place.room, clearing.eviction
        candidates = choice.candidates(room, f"chosen, costs {eviction.cost:.2f} s") if eviction.victims else ()
        for victim in eviction.victims:
            self._send_away(victim, reason, candidates)
        # Promised, so that no other model of this plan counts on the same bytes.
        self._claim(room, clearing.place.need)
        leaving = ", ".join(victim.instance.model for victim in room.leaving)
        self._plan.waits[route] = f"waits until {leaving} is unloaded from {room.name}"

    def _claim(self, room: Room, size: int) -> None:
        """Give a room's memory away, and move it to its new place among the rooms."""
        self._rooms.remove(room)
        room.claim(size)
        bisect.insort(self._rooms, room, key=_by_free)
        self._find_pools(room)

    def _send_away(self, victim: Victim, reason: str, candidates: tuple[Candidate, ...] = ()) -> None:
        """Unload an instance, or the group that it is a part of, and count on the memory to come on all its nodes."""
        instance = self._view.head_of(victim.instance) or victim.instance
        self._unload(instance, reason, round(victim.cost, 3), candidates)
        parts = self._view.group_of(instance)
        names = {part.instance for part in parts}
        has_floor = self._view.floor(ModelId(instance.model))
        for room in self._rooms if has_floor else [self._room_of.get(NodeId(part.node)) for part in parts]:
            # Of a model with a floor fewer may leave elsewhere now.
            if room and (room.unload(names) or has_floor):
                self._find_pools(room)

    def _unload(
        self, instance: InstanceBeat, reason: str, cost: float | None = None, candidates: tuple[Candidate, ...] = ()
    ) -> None:
        name, model, node = InstanceId(instance.instance), ModelId(instance.model), NodeId(instance.node)
        self._plan.unloads.append(Unload(name, model, node, reason, cost, candidates))
        self._leaving.add(instance.instance)
        self._leavers.leaves(instance)

    def _givers(self, *, wanted: bool) -> Iterator[Room]:
        """Nodes that get room when some leave, cheapest first, then those with most free memory."""
        return (key[-1] for key in self._by_cost[wanted])

    def _find_pools(self, room: Room) -> None:
        """Who may leave a node."""
        for wanted in (False, True) if self._leavers.is_overdue else (False,):
            keys = self._by_cost[wanted]
            if before := room.pools.pop(wanted, None):
                del keys[bisect.bisect_left(keys, before.key, key=itemgetter(0, 1, 2))]
            victims = self._leavers.may_leave(room, wanted=wanted)
            if victims or room.leaving:
                room.pools[wanted] = pool = room.pool(victims)
                bisect.insort(keys, (*pool.key, room), key=itemgetter(0, 1, 2))

    def _waited_ms(self, route: Route) -> int:
        """How long its jobs have waited with nobody to serve them; 0: there are none."""
        return self._view.waited_ms(route) if self._now.waiting.get(route) else 0

    def _why(self, route: Route) -> str:
        count = self._now.waiting.get(route, 0)
        return f"{count} jobs wait" if count else "an operator asked for it"

    def _unload_unwanted(self) -> None:
        for instance in self._now.instances:
            is_there = instance.state is InstanceState.READY and instance.instance not in self._leaving
            if is_there and (reason := self._leavers.why_unwanted(instance)):
                self._unload(instance, reason)


def _why_driven_out(route: Route, waited_ms: int) -> str:
    return f"makes room for {route}, whose jobs have waited {waited_ms / 1000:.0f} s with nobody to serve them"


def _by_free(room: Room) -> tuple[int, str]:
    return room.free, room.name
