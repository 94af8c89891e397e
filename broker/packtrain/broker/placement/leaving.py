"""Leaving: who may be unloaded from a node and what that costs, and who is not needed there any more.

A shard is idle, wanted, pinned and on its way out as its head is, and has the head's regret: it leaves only with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.ids import ModelId, NodeId
from packtrain.broker.placement.replicas import why_unwanted
from packtrain.broker.placement.rooms import Room, Victim
from packtrain.broker.placement.view import View, is_up
from packtrain.broker.placement.worth import held_bytes, idle_ms, regret, residency_ms, stay_ms, swap_cost
from packtrain.broker.states import InstanceState


class Leavers:
    """Of one plan: it counts how many of each model are left in the course of it."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._now = now = view.now
        # By model, less those that leave in the course of this plan.
        self._ready = Counter(
            (i.model, i.numerics) for i in now.instances if i.state is InstanceState.READY and not self._is_sent_away(i)
        )
        self.is_overdue = any(view.waited_ms(route) >= now.max_wait_ms for route in now.unserved_since)

    def leaves(self, instance: InstanceBeat) -> None:
        """One is unloaded by this plan."""
        self._ready[instance.model, instance.numerics] -= not self._is_sent_away(instance)

    def room(self, name: NodeId) -> Room:
        """An open node, with who may leave it."""
        node, now = self._view.open_nodes[name], self._now
        here = self._view.alive_on.get(name)
        if not here:
            return Room(node, node.memory_budget, node.memory_free, [], [], [])
        coming = sum(max(0, i.reserved_bytes - i.resident_bytes) for i in here if i.state.is_coming_up)
        leaving, idle, wanted = [], [], []
        for instance in here:
            replicas = self._num_ready(instance.model)
            head = self._view.head_of(instance)  # for all but shards the instance itself
            drains = InstanceState.DRAINING in (instance.state, head.state) if head else True
            if head is None or drains or (head is not instance and head.state.is_terminal):
                leaving.append(Victim(instance, regret(head or instance, now.now_ms, replicas)))
            elif head.state is not InstanceState.READY or self._is_pinned(head):
                continue
            elif self.is_idle(head) and idle_ms(head, now.now_ms) >= residency_ms(head, now.min_residency_ms):
                idle.append(Victim(instance, regret(head, now.now_ms, replicas)))
            elif self.is_overdue and stay_ms(head, now.now_ms) >= now.min_residency_ms:
                wanted.append(Victim(instance, swap_cost(head, now.now_ms)))
        return Room(
            node,
            budget=node.memory_budget - sum(map(held_bytes, here)),
            machine=node.memory_free - coming,
            leaving=leaving,
            idle=idle,
            wanted=wanted,
            replicas=dict(Counter(i.model for i in here if is_up(i))),
        )

    def may_leave(self, room: Room, *, wanted: bool | None, gone: Mapping[str, int] | None = None) -> list[Victim]:
        """Instances of a node that may be unloaded, less those that operators want kept.

        Args:
            wanted: Those that jobs wait for, too; None: nobody.
            gone: By model, how many more are unloaded elsewhere.
        """
        if wanted is None or (not room.idle and not (wanted and room.wanted)):
            return []
        pool = sorted((*room.idle, *(room.wanted if wanted else ())), key=lambda v: v.cost)
        spare: dict[str, int] = {}
        found = []
        for victim in pool:
            model = victim.instance.model
            if model not in spare:
                floor = self._view.floor(ModelId(model))
                left = self._num_ready(model) - (gone.get(model, 0) if gone else 0)
                spare[model] = left - floor if floor else len(pool)
            if spare[model] > 0:
                spare[model] -= 1
                found.append(victim)
        return found

    def why_unwanted(self, instance: InstanceBeat) -> str:
        """Why a READY instance should go now; empty: it should not."""
        if self._is_sent_away(instance):
            return "an operator asked for it"
        if self._is_pinned(instance) or not self.is_idle(instance):
            return ""
        model = ModelId(instance.model)
        floor = self._view.floor(model)
        if floor and self._num_ready(model) <= floor:
            return ""
        is_fast = instance.numerics == "fast"
        beside = (self._num_ready(model) if is_fast else self._ready[model, "deterministic"]) - 1
        offer = self._view.offer(instance.node, model)
        idle_s = idle_ms(instance, self._now.now_ms) / 1000
        return why_unwanted(instance, idle_s, beside, offer.keep_alive_s if offer else 0)

    def is_idle(self, instance: InstanceBeat) -> bool:
        """True when it does nothing and no job waits that it could run."""
        head = self._view.head_of(instance) or instance
        return head.slots_used == 0 and not self._view.is_waited_for(head)

    def _num_ready(self, model: str) -> int:
        return self._ready[model, "fast"] + self._ready[model, "deterministic"]

    def _is_sent_away(self, instance: InstanceBeat) -> bool:
        """True when an operator wants it gone."""
        return instance.requested_ms < self._view.unload_before_ms(ModelId(instance.model))

    def _is_pinned(self, instance: InstanceBeat) -> bool:
        offer = self._view.offer(instance.node, ModelId(instance.model))
        return bool(offer and offer.pinned)
