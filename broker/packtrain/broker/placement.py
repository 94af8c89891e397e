"""Placement: which instances to load and unload now, as a pure function from a snapshot to a plan with reasons.

One pass over the models, most wanted first; each meets the first case that holds:

    1. it is loaded or on its way         nothing to do
    2. its loads failed too often         reject its waiting jobs with the cause
    3. its last load failed just now      wait (backoff doubles with each failure)
    4. no live node has its file          wait; after a while reject its waiting jobs
       none that has can be deterministic reject the waiting jobs that ask for it
    5. no node could hold it even empty   reject its waiting jobs with the shortfall
    6. some node has room                 load on the one with most free memory
    7. those that leave, and idle ones    unload the least recently used, only if their sum is enough, and wait
    8. otherwise                          wait until memory is free

Jobs that ask for `deterministic` wait on a route of their own and count as another model, which only instances with
such numerics serve; those serve the plain route, too.

Then instances that an operator wants gone or that were idle past their keep-alive are unloaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from packtrain.broker.errors import ModelError, ModelGone, ModelLoadFailed, ModelTooLarge, NotDeterministic
from packtrain.broker.ids import InstanceId, ModelId, NodeId, Route, is_deterministic, model_of, route_of
from packtrain.broker.messages import Desired, InstanceBeat, ModelInfo, NodeBeat, Numerics
from packtrain.broker.states import InstanceState

#: Failed loads of a model after which its waiting jobs are rejected.
MAX_LOAD_FAILURES = 3
#: Wait after the first failed load, ms; doubles with each.
LOAD_BACKOFF_MS = 2_000
#: An instance is not evicted before it has been READY this long, so that two models do not chase each other, ms.
MIN_RESIDENCY_MS = 10_000

#: How long jobs wait for a model that no live node offers, ms. A machine that reboots is back in a few minutes.
OFFER_WAIT_MS = 600_000

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The fleet at one moment, on the broker's clock."""

    now_ms: int
    nodes: Sequence[NodeBeat] = ()
    instances: Sequence[InstanceBeat] = ()
    models: Mapping[ModelId, ModelInfo] = field(default_factory=dict)  # without aliases
    waiting: Mapping[Route, int] = field(default_factory=dict)
    desired: Mapping[ModelId, Desired] = field(default_factory=dict)
    missing_since: Mapping[ModelId, int] = field(default_factory=dict)  # as `missing_since` has it, ms
    offer_wait_ms: int = OFFER_WAIT_MS


@dataclass(frozen=True, slots=True)
class Load:
    """Start an instance of `model` on `node`."""

    model: ModelId
    node: NodeId
    numerics: Numerics
    reserved_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Drain and stop an instance."""

    instance: InstanceId
    model: ModelId
    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Reject:
    """Fail the jobs that wait on `route`."""

    route: Route
    error: ModelError


@dataclass(slots=True)
class Plan:
    """What to do now, and for every route that must wait, why."""

    loads: list[Load] = field(default_factory=list)
    unloads: list[Unload] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    waits: dict[Route, str] = field(default_factory=dict)


def plan(now: Snapshot) -> Plan:
    """The plan for this snapshot. Same snapshot, same plan."""
    result = Plan()
    rooms = {NodeId(node.node): _room(node, now) for node in now.nodes if not node.draining}
    wanted = {route: count for route, count in now.waiting.items() if count}
    for model, want in now.desired.items():
        if want.replicas:
            wanted.setdefault(route_of(model), 0)
    for route in sorted(wanted, key=lambda route: (-wanted[route], route)):
        _place(route, now, rooms, result)
    _unload_unwanted(now, wanted, result)
    return result


def missing_since(now: Snapshot, before: Mapping[ModelId, int]) -> dict[ModelId, int]:
    """Models that jobs wait for and that no live node offers, each with when that was first seen, ms.

    Args:
        before: What this gave the last time. What nobody looked at does not count: a fleet that was down with its
            coordinator has had no time to come back yet.
    """
    offered = {model for node in now.nodes if not node.draining for model in node.models}
    wanted = {model_of(route) for route, count in now.waiting.items() if count}
    return {model: before.get(model, now.now_ms) for model in sorted(wanted) if model not in offered}


@dataclass(slots=True)
class _Room:
    """What a node has left in the course of one plan, bytes.

    A new instance must fit into the smaller of two truths: the budget less what instances hold or have reserved, and
    the machine's free memory less what instances on their way up have reserved but not yet taken.
    """

    budget: int
    machine: int
    leaving: list[InstanceBeat]
    idle: list[InstanceBeat]  # may be unloaded; least recently used first

    @property
    def free(self) -> int:
        return min(self.budget, self.machine)

    def claim(self, size: int) -> None:
        """Give this much away, now or, when `free` is less, as soon as those that leave are gone."""
        self.budget -= size
        self.machine -= size

    def victims(self, size: int) -> list[InstanceBeat] | None:
        """Idle instances that must leave, too, before `size` fits; None when not even all of them would do."""
        gone, victims = list(self.leaving), list[InstanceBeat]()
        for instance in self.idle:
            if self._free_without(gone + victims) >= size:
                break
            victims.append(instance)
        if self._free_without(gone + victims) < size:
            return None
        for instance in reversed(victims):  # a small one that was taken before a large one may be spared
            rest = [v for v in victims if v is not instance]
            if self._free_without(gone + rest) >= size:
                victims = rest
        return victims

    def unload(self, victims: Sequence[InstanceBeat]) -> None:
        self.idle = [i for i in self.idle if i not in victims]
        self.leaving += victims

    def _free_without(self, gone: Sequence[InstanceBeat]) -> int:
        return min(self.budget + sum(map(_held_bytes, gone)), self.machine + sum(i.resident_bytes for i in gone))


def _held_bytes(instance: InstanceBeat) -> int:
    return max(instance.resident_bytes, instance.reserved_bytes)


def _room(node: NodeBeat, now: Snapshot) -> _Room:
    here = [i for i in now.instances if i.node == node.node and not i.state.is_terminal]
    coming = sum(max(0, i.reserved_bytes - i.resident_bytes) for i in here if i.state.is_coming_up)
    idle = [
        i for i in here if _is_evictable(i, now) and now.now_ms - max(i.ready_ms, i.last_used_ms) >= MIN_RESIDENCY_MS
    ]
    return _Room(
        budget=node.memory_budget - sum(map(_held_bytes, here)),
        machine=node.memory_free - coming,
        leaving=[i for i in here if i.state is InstanceState.DRAINING],
        idle=sorted(idle, key=lambda i: (i.last_used_ms, i.instance)),
    )


def serving(route: Route, now: Snapshot) -> set[str]:
    """Names that a waiting job of this route may be meant for: instances and nodes that serve it.

    When none does, all nodes, for one of them will load it.
    """
    instances = [i for i in now.instances if _serves(i, route) and not i.state.is_terminal]
    nodes = {i.node for i in instances} or {n.node for n in now.nodes}
    return {i.instance for i in instances} | nodes


def numerics_classes(route: Route, now: Snapshot) -> set[tuple[str, str]]:
    """Classes that waiting jobs of this route can be computed in, when that is certain; empty while one comes up.

    Each with whom a job may be meant for to be computed there: nobody ("") or the instance or its node.
    """
    instances = [i for i in now.instances if _serves(i, route) and not i.state.is_terminal]
    if any(not i.numerics_class for i in instances):
        return set()
    computing = [i for i in instances if i.state is not InstanceState.DRAINING]
    return {(name, i.numerics_class) for i in computing for name in ("", i.instance, i.node)}


def _serves(instance: InstanceBeat, route: Route) -> bool:
    fits = instance.numerics == "deterministic" or not is_deterministic(route)
    return instance.model == model_of(route) and fits


def _place(route: Route, now: Snapshot, rooms: dict[NodeId, _Room], result: Plan) -> None:
    model = model_of(route)
    info = now.models.get(model)
    numerics: Numerics = "deterministic" if is_deterministic(route) or info is None else info.numerics
    serving = [i for i in now.instances if _serves(i, route)]
    if any(not i.state.is_terminal and i.state is not InstanceState.DRAINING for i in serving):
        return
    # One that crashed after it was READY is no failed load: the next may well live.
    failed = [i for i in serving if i.state is InstanceState.FAILED and not i.ready_ms and i.numerics == numerics]
    if failed and (verdict := _after_failures(model, failed, now.now_ms)):
        if isinstance(verdict, ModelError):
            result.rejects.append(Reject(route, verdict))
        else:
            result.waits[route] = verdict
        return
    offering = [n for n in now.nodes if model in n.models and not n.draining]
    if info is None or not offering:
        _wait_for_offer(route, now, result)
        return
    if is_deterministic(route):
        able = [n for n in offering if model not in n.not_deterministic]
        if not able:
            reason = offering[0].not_deterministic[model]
            result.rejects.append(Reject(route, NotDeterministic(model=model, reason=reason)))
            return
        offering = able
    need = info.required_bytes
    largest = max(offering, key=lambda n: n.memory_budget)
    if need > largest.memory_budget:
        result.rejects.append(Reject(route, _too_large(info, largest)))
        return
    by_free = sorted((NodeId(n.node) for n in offering), key=lambda n: (rooms[n].free, n), reverse=True)
    best = by_free[0]
    if need <= rooms[best].free:
        count = now.waiting.get(route, 0)
        why = f"{count} jobs wait" if count else "an operator asked for it"
        reason = f"{why}; most free memory: {rooms[best].free // MIB} MiB"
        result.loads.append(Load(model, best, numerics, need, reason))
        rooms[best].claim(need)
        return
    for node in by_free:
        if (victims := rooms[node].victims(need)) is not None:
            _make_room(route, need, node, victims, rooms[node], result)
            return
    free = max(0, rooms[best].free)
    result.waits[route] = f"needs {need // MIB} MiB, {best} has {free // MIB} MiB free and nothing idle to unload"


def _wait_for_offer(route: Route, now: Snapshot, result: Plan) -> None:
    model = model_of(route)
    missing_ms = now.now_ms - now.missing_since.get(model, now.now_ms)
    if missing_ms >= now.offer_wait_ms:
        known = sorted({known for node in now.nodes for known in node.models})
        result.rejects.append(Reject(route, ModelGone(model=model, waited_s=missing_ms / 1000, known=known)))
    else:
        left_s = (now.offer_wait_ms - missing_ms) / 1000
        result.waits[route] = f"no live node has its file; its jobs fail in {left_s:.0f} s"


def _make_room(
    route: Route, need: int, node: NodeId, victims: Sequence[InstanceBeat], room: _Room, result: Plan
) -> None:
    for victim in victims:
        reason = f"idle, makes room for {route}"
        result.unloads.append(Unload(InstanceId(victim.instance), ModelId(victim.model), node, reason))
    room.unload(victims)
    # Promised, so that no other model of this plan counts on the same bytes.
    room.claim(need)
    result.waits[route] = "waits until " + ", ".join(i.model for i in room.leaving) + " is unloaded"


def _after_failures(model: ModelId, failed: Sequence[InstanceBeat], now_ms: int) -> ModelError | str | None:
    last = max(failed, key=lambda i: i.requested_ms)
    if len(failed) >= MAX_LOAD_FAILURES:
        return ModelLoadFailed(
            f"{model!r} could not be loaded on {last.node}, {len(failed)} tries: {last.reason}; "
            "mend that and submit again (it is tried again ten minutes after the last failure)",
            model=model,
            node=last.node,
        )
    retry_ms = last.requested_ms + LOAD_BACKOFF_MS * 2 ** (len(failed) - 1)
    if now_ms < retry_ms:
        return f"its last load failed ({last.reason}); next try in {(retry_ms - now_ms) / 1000:.0f} s"
    return None


def _too_large(info: ModelInfo, largest: NodeBeat) -> ModelTooLarge:
    short = info.required_bytes - largest.memory_budget
    kv_per_slot = info.kv_bytes_per_token * info.n_ctx
    fixed = info.required_bytes - kv_per_slot * info.n_slots
    remedy = "use a smaller quantisation or a node with more memory"
    if kv_per_slot and (slots := (largest.memory_budget - fixed) // kv_per_slot) >= 1:
        remedy = f"set slots = {min(slots, info.n_slots)} for it in packtrain.toml"
    elif info.kv_bytes_per_token and (context := (largest.memory_budget - fixed) // info.kv_bytes_per_token) >= 256:
        remedy = f"set slots = 1 and context = {context // 256 * 256} for it in packtrain.toml"
    return ModelTooLarge(
        f"{info.id!r} needs {info.required_bytes // MIB} MiB ({info.n_slots} slots of {info.n_ctx} tokens), the "
        f"largest node {largest.node} may use {largest.memory_budget // MIB} MiB, {short // MIB + 1} less; {remedy}",
        model=info.id,
        required_bytes=info.required_bytes,
        short_bytes=short,
    )


def _is_evictable(instance: InstanceBeat, now: Snapshot) -> bool:
    model = ModelId(instance.model)
    info = now.models.get(model)
    return (
        instance.state is InstanceState.READY
        and instance.slots_used == 0
        and not any(count and _serves(instance, route) for route, count in now.waiting.items())
        and not (info and info.pinned)
        and not now.desired.get(model, Desired()).replicas
    )


def _unload_unwanted(now: Snapshot, wanted: Mapping[Route, int], result: Plan) -> None:
    leaving = {unload.instance for unload in result.unloads}
    for instance in now.instances:
        model, instance_id = ModelId(instance.model), InstanceId(instance.instance)
        if instance.state is not InstanceState.READY or instance_id in leaving:
            continue
        reason = ""
        if instance.requested_ms < now.desired.get(model, Desired()).unload_before_ms:
            reason = "an operator asked for it"
        elif not any(_serves(instance, route) for route in wanted) and _is_evictable(instance, now):
            info = now.models.get(model)
            keep_alive_s = info.keep_alive_s if info else 0
            idle_s = (now.now_ms - max(instance.ready_ms, instance.last_used_ms)) / 1000
            if keep_alive_s >= 0 and idle_s > keep_alive_s:
                reason = f"idle for {idle_s:.0f} s, keep-alive is {keep_alive_s:g} s"
        if reason:
            result.unloads.append(Unload(instance_id, model, NodeId(instance.node), reason))
