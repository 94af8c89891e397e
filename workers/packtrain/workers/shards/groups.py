"""Groups: what this node does for models that lie on several. It holds shards for heads elsewhere, and leads the way to
shards elsewhere for heads of its own.

Twice a second it asks the broker for the beats of the members that matter here; `membership.py` says what they mean.
While the broker is away nothing is decided by what is not known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from redis.exceptions import RedisError

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.ids import InstanceId
from packtrain.broker.orders import NodeCommand
from packtrain.broker.registry import Registry
from packtrain.broker.states import InstanceState
from packtrain.workers.shards import cache
from packtrain.workers.shards.gathered import GatheredHead
from packtrain.workers.shards.held import HeldShard, Place
from packtrain.workers.shards.membership import fate_of_shard, progress
from packtrain.workers.shards.split import Split
from packtrain.workers.tunnel.certificate import Identity

logger = logging.getLogger(__name__)

LOOK_S = 0.5
#: For tunnels, where the operator names a port.
NUM_PORTS = 16


@dataclass(slots=True)
class GroupNews:
    """What has happened since the last look."""

    ready: list[tuple[NodeCommand, Split]] = field(default_factory=list)  # heads to begin
    ended: list[InstanceBeat] = field(default_factory=list)  # terminal; no process of theirs is left
    drain: list[tuple[InstanceId, str]] = field(default_factory=list)  # heads that run
    kill: list[tuple[InstanceId, str]] = field(default_factory=list)  # heads that run
    is_news: bool = False  # somebody should hear of it before the next beat


class Groups:
    """Belongs to the agent's loop.

    Args:
        identity: Of this node's ends of tunnels.
        listen: Address at which they listen.
        first_port: ... from this port on; 0: at any free ones.
        reached: Says by which address others find them.
        caches: Folder of the caches of shards.
        drain_s: A shard that must leave waits no longer for its head.
    """

    def __init__(
        self,
        registry: Registry,
        identity: Identity,
        *,
        listen: str,
        first_port: int,
        reached: Callable[[], str],
        caches: Path,
        drain_s: float,
    ) -> None:
        self._registry = registry
        self._identity = identity
        self._listen = listen
        self._first_port = first_port
        self._reached = reached
        self._caches = caches
        self._drain_s = drain_s
        self._shards: dict[InstanceId, HeldShard] = {}
        self._heads: dict[InstanceId, GatheredHead] = {}
        self._known: dict[InstanceId, InstanceBeat] = {}
        self._missing_since: dict[InstanceId, float] = {}
        self._next_look = 0.0

    @property
    def certificate(self) -> str:
        """PEM, public."""
        return self._identity.certificate

    @property
    def beats(self) -> list[InstanceBeat]:
        """Of shards, and of heads that have not begun."""
        return [
            *(shard.beat for shard in self._shards.values()),
            *(head.beat for head in self._heads.values() if not head.has_begun),
        ]

    @property
    def staying(self) -> list[InstanceBeat]:
        """The same without those on their way out."""
        leaving = {name for name, shard in self._shards.items() if shard.leaves_since is not None}
        return [beat for beat in self.beats if beat.instance not in leaving]

    def has(self, instance: InstanceId) -> bool:
        """Whether it is one of them."""
        return instance in self._shards or instance in self._heads

    def hold(self, beat: InstanceBeat, command: NodeCommand, *, n_threads: int, disk_free: int) -> None:
        """Begin to be a shard.

        Raises:
            OSError: The folder of its cache cannot be made, or all ports for tunnels are taken.
        """
        logger.info(
            "Starting %s for %s: %s", beat.instance, command.group, command.reason, extra={"event": "shard.start"}
        )
        keeps = command.cache_key and disk_free > cache.SPARE * command.reserved_bytes
        folder = cache.folder_of(self._caches, command.cache_key) if keeps else None
        in_use = {shard.cache for shard in self._shards.values() if shard.cache}
        if folder in in_use:  # two that write into one would take each other's half tensors for whole ones
            folder = None
        if folder:
            cache.sweep(self._caches, keep={folder, *in_use})
        port = self._free_port() if self._first_port else 0
        place = Place(self._identity, self._listen, port, self._reached(), folder, n_threads)
        self._shards[InstanceId(beat.instance)] = HeldShard(beat, command, place)

    def gather(self, beat: InstanceBeat, command: NodeCommand, now: float) -> None:
        """Wait for the shards of a head; `poll` tells when it can begin."""
        logger.info("Gathering the shards of %s: %s", beat.instance, command.reason, extra={"event": "group.gather"})
        self._heads[InstanceId(beat.instance)] = GatheredHead(beat, command, self._identity, since=now)

    def leave(self, instance: InstanceId, reason: str) -> InstanceBeat | None:
        """A member must leave: a shard once its head is gone; a head that has not begun leaves now, with this beat."""
        if shard := self._shards.get(instance):
            shard.begin_drain(reason)
            return None
        head = self._heads.get(instance)
        return self._forget(instance) if head and not head.has_begun else None

    def forget_head(self, instance: InstanceId) -> None:
        """Its process is gone."""
        self._forget(instance)

    def poll(self, now: float) -> GroupNews:
        """Look at every member. Waits for the broker, and for nothing else."""
        news = GroupNews()
        if not self._shards and not self._heads:
            return news
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            try:
                self._ask(now)
            except RedisError:
                # Nobody could tell us of who was missing: count anew once it is back.
                self._missing_since = dict.fromkeys(self._missing_since, now)
        for name, shard in list(self._shards.items()):
            fate = fate_of_shard(self._known.get(shard.head), missing_s=self._missing_s(shard.head, now))
            is_late = shard.leaves_since is not None and now - shard.leaves_since > self._drain_s
            news.is_news |= shard.look(fate if not is_late else fate_of_shard(None, missing_s=float("inf")))
            if shard.beat.state.is_terminal:
                news.ended.append(shard.beat)
                del self._shards[name]
        for name, head in list(self._heads.items()):
            self._look_at_head(name, head, now, news)
        return news

    def note_memory(self) -> None:
        """Before beats go out."""
        for shard in self._shards.values():
            shard.note_memory()

    def said(self, instance: InstanceId) -> str:
        """How far the shards of a head are, for people."""
        head = self._heads.get(instance)
        return progress(head.command.shards, self._known) if head else ""

    def close(self) -> None:
        """End all that is left."""
        for shard in self._shards.values():
            shard.close()
        for head in self._heads.values():
            head.close()

    def _free_port(self) -> int:
        """Raises: OSError: None is left."""
        taken = {shard.port for shard in self._shards.values()}
        ports = range(self._first_port, self._first_port + NUM_PORTS)
        free = next((port for port in ports if port not in taken), None)
        if free is None:
            raise OSError(f"all {NUM_PORTS} ports from {self._first_port} on lead to shards already")
        return free

    def _look_at_head(self, name: InstanceId, head: GatheredHead, now: float, news: GroupNews) -> None:
        missing = {n: self._missing_s(n, now) for n in _shards_of([head])}
        had_begun = head.has_begun
        fate = head.look(self._known, missing, now)
        if isinstance(fate, Split):
            news.ready.append((head.command, fate))
        elif fate.shall == "wait" and not had_begun:
            head.beat = head.beat.model_copy(update={"reason": fate.reason or head.beat.reason})
        elif fate.shall in ("drain", "end") and had_begun:
            (news.drain if fate.shall == "drain" else news.kill).append((name, fate.reason))
        elif fate.shall in ("drain", "end"):
            beat = self._forget(name)
            assert beat
            news.ended.append(beat.model_copy(update={"state": InstanceState.FAILED, "reason": fate.reason}))
            news.is_news = True

    def _ask(self, now: float) -> None:
        wanted = {shard.head for shard in self._shards.values()} | set(_shards_of(self._heads.values()))
        self._known = {InstanceId(beat.instance): beat for beat in self._registry.instances_named(sorted(wanted))}
        missing = wanted - self._known.keys()
        self._missing_since = {name: self._missing_since.get(name, now) for name in missing}

    def _missing_s(self, name: InstanceId, now: float) -> float:
        since = self._missing_since.get(name)
        return 0.0 if since is None else now - since

    def _forget(self, instance: InstanceId) -> InstanceBeat | None:
        head = self._heads.pop(instance, None)
        if head is None:
            return None
        head.close()
        return head.beat


def _shards_of(heads: Iterable[GatheredHead]) -> Iterator[InstanceId]:
    for head in heads:
        yield from (InstanceId(order.instance) for order in head.command.shards)
