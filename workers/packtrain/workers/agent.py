"""The node agent: runs the instances of one node and tells the fleet about them. It never loads a model itself.

One loop, no locks: commands arrive in an inbox, everything else is looked at on each tick. Since an instance's memory
is counted from the command until its process is *seen* gone, two loads can never claim the same bytes.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

import psutil
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.coordinator import Bells
from packtrain.broker.ids import InstanceId, ModelId
from packtrain.broker.jobs import JobStore
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.orders import NodeCommand
from packtrain.broker.outcome import Cause
from packtrain.broker.registry import Registry
from packtrain.broker.settings import Settings, split_address
from packtrain.broker.states import InstanceState, JobState
from packtrain.workers import machine
from packtrain.workers.consumer_watch import ConsumerWatch
from packtrain.workers.core_dealer import CoreDealer
from packtrain.workers.device_probe import DeviceWatch
from packtrain.workers.devices import memories
from packtrain.workers.files.exchange import Exchange
from packtrain.workers.instance_messages import InstanceConfig
from packtrain.workers.instance_process import InstanceProcess
from packtrain.workers.managed import Managed
from packtrain.workers.node_catalog import NodeCatalog, rpc_build
from packtrain.workers.node_standing import NodeStanding
from packtrain.workers.quarantine import SETTLED_S
from packtrain.workers.remote.catalog import NO_PROOF
from packtrain.workers.shards.groups import Groups
from packtrain.workers.shards.split import Split
from packtrain.workers.step_speed import StepSpeed
from packtrain.workers.supervision import DRAINING_MARGIN_S, Limits, verdict
from packtrain.workers.tunnel.certificate import new_identity
from packtrain.workers.waking import Wakefulness

logger = logging.getLogger(__name__)

TICK_S = 0.25
#: Beats go out this often, and at every change.
BEAT_S = 2.0
SCAN_S = 5.0


class Agent:
    """The agent's loop. `command` may be called from any thread; all else belongs to the loop's thread.

    Args:
        consumer: Sees whether commands arrive.
        devices: Sees which GPUs there are; None: nobody looks.
        standing: Of this node in the fleet.
        version: Of Packtrain.
    """

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        registry: Registry,
        bells: Bells,
        catalog: NodeCatalog,
        consumer: ConsumerWatch,
        devices: DeviceWatch | None,
        standing: NodeStanding,
        version: str,
    ) -> None:
        self._settings = settings
        self._store = store
        self._registry = registry
        self._bells = bells
        self._catalog = catalog
        self._version = version
        self._node = settings.node_id
        self._limits = Limits(settings.load_timeout_s, settings.drain_s, settings.stall_s)
        self._inbox: SimpleQueue[NodeCommand] = SimpleQueue()
        self._instances: dict[InstanceId, Managed] = {}
        self._ended: dict[InstanceId, tuple[InstanceBeat, Cause]] = {}  # waiting to be reported
        self._not_deterministic: dict[str, str] = {}
        self._term_seen = 0
        self._is_stopping = False
        self._reachable_since: float | None = time.monotonic()  # None: the broker is away
        self._next_beat = self._next_scan = 0.0
        self._clock_skew_ms = 0
        self._standing = standing
        self._dealer = CoreDealer(standing.terms.cores, clock=time.monotonic)
        self._dealer.start()
        self._consumer = consumer
        self._devices = devices
        self._deaf = ""  # why no command arrives
        self._waking = Wakefulness()
        self._waking.start()
        self._build = rpc_build()
        self._speed = StepSpeed()
        self._exchange = Exchange(settings, registry, catalog, self._registry_ms)
        self._groups = groups_of(settings, registry, lambda: self._exchange.host) if self._build else None

    @property
    def run_folder(self) -> Path:
        """Where the identities of running instances are noted."""
        return run_folder(self._settings)

    def command(self, command: NodeCommand) -> None:
        """Leave a command for the loop."""
        self._inbox.put(command)

    def tick(self) -> None:
        """Read commands, look at every process, report."""
        now = time.monotonic()
        self._wake_up()
        changed = self._read_inbox() | self._keep_to_terms()
        for managed in list(self._instances.values()):
            changed |= self._look_at(managed, now)
        if now >= self._next_scan:
            self._next_scan = now + SCAN_S
            changed |= self._scan()
            self._exchange.serve()
        changed |= self._catalog.poll()
        if self._devices:
            changed |= self._devices.poll(now)
        changed |= self._look_at_fetches(now)
        changed |= self._look_at_groups(now)
        if changed or self._ended or now >= self._next_beat:
            self._next_beat = now + BEAT_S
            self._report()
        self._deaf = self._consumer.look(time.monotonic(), broker_reachable_s=self._reachable_s(time.monotonic()))

    @property
    def deaf_s(self) -> float:
        """For how long commands have not arrived, though the broker answers."""
        return self._consumer.deaf_s(time.monotonic())

    def drain(self, keep_beating: Callable[[], bool]) -> None:
        """End every instance, politely first; returns when all are gone."""
        self._is_stopping = True
        for beat in self._exchange.beats:
            self._cancel_fetch(InstanceId(beat.instance), "the node stops")
        self._exchange.close()
        for managed in self._instances.values():
            managed.begin_drain("the node stops")
        for beat in self._group_beats():
            self._leave_group(InstanceId(beat.instance), "the node stops")
        while self._instances or (self._group_beats() and keep_beating()):  # unheard, no head lets go of its shard
            for managed in list(self._instances.values()):
                self._look_at(managed, time.monotonic())
            self._look_at_groups(time.monotonic())
            if keep_beating():
                self._report()
            time.sleep(TICK_S)
        self._report()
        if self._groups:
            self._groups.close()
        if self._devices:
            self._devices.close()

    def facts(self) -> dict[str, object]:
        """What Flower shows on the agent's page."""
        memory = machine.memory()
        mib = 1024 * 1024
        return {
            "node": self._node,
            "memory_free_mib": memory.available // mib,
            "memory_budget_mib": self._standing.terms.memory // mib,
            "models": ", ".join(sorted(self._catalog.models)) or "none",
            "instances": ", ".join(f"{m.beat.instance} {m.beat.state}" for m in tuple(self._instances.values())) or "-",
        }

    def _read_inbox(self) -> bool:
        changed = False
        if not self._inbox.empty():
            self._learn_term()
        while True:
            try:
                command = self._inbox.get_nowait()
            except Empty:
                return changed
            changed |= self._obey(command)

    def _learn_term(self) -> None:
        """Ask who leads. A new leader may have had nothing to say to this node, and an old one may still command it."""
        try:
            self._term_seen = self._registry.term()
        except RedisError as error:  # then what came by command has to do
            logger.warning("Cannot ask for the term: %s", error, extra={"event": "term.unknown"})

    def _obey(self, command: NodeCommand) -> bool:
        if command.term < self._term_seen:
            logger.warning(
                "Refused %s: term %d is over, %d leads", command.id, command.term, self._term_seen,
                extra={"event": "command.stale"},
            )  # fmt: skip
            return False
        self._term_seen = command.term
        instance = InstanceId(command.instance)
        if command.verb == "unload":
            managed = self._instances.get(instance)
            if managed and not managed.is_draining:
                managed.begin_drain(command.reason)
                return True
            return self._cancel_fetch(instance, command.reason) or self._leave_group(instance, command.reason)
        if instance in self._instances or self._exchange.has(instance) or not self._takes_new:
            return False  # said before, or too late
        if not (command.shards or command.verb == "shard"):
            self._load(command, instance)
        elif not (self._groups and self._groups.has(instance)):
            self._join_group(command, instance)
        return True

    def _beat_of(self, command: NodeCommand, instance: InstanceId) -> InstanceBeat:
        return InstanceBeat(
            instance=instance, model=command.model, node=self._node, state=InstanceState.STARTING,
            n_slots=command.n_slots, n_ctx=command.n_ctx, numerics=command.numerics,
            reserved_bytes=command.reserved_bytes, requested_ms=self._registry_ms(), served_ms=0,
            group=command.group, layers=command.layers, forecast_tokens_per_s=command.forecast_tokens_per_s,
        )  # fmt: skip

    def _join_group(self, command: NodeCommand, instance: InstanceId) -> None:
        """Hold a shard, or wait for those of a head."""
        beat = self._beat_of(command, instance)
        if self._groups is None:
            reason = f"{self._node} takes no part in groups (any more); set PACKTRAIN_SPLIT=1 for its agent"
            self._end(beat, InstanceState.FAILED, reason)
        elif command.shards:
            self._groups.gather(beat, command, time.monotonic())
        else:
            n_threads, disk_free = self._dealer.next_share(), self._exchange.disk_free
            try:
                self._groups.hold(beat, command, n_threads=n_threads, disk_free=disk_free)
            except OSError as error:
                self._end(beat, InstanceState.FAILED, f"it cannot be a shard now: {error}")

    def _load(self, command: NodeCommand, instance: InstanceId, split: Split | None = None) -> None:
        beat = self._beat_of(command, instance)
        entry = self._catalog.models.get(ModelId(command.model))
        if entry is None and command.fetch_from:
            self._exchange.begin(command, beat, time.monotonic())
            return
        if entry is None:
            reason = f"{self._node} has no file for {command.model!r} (any more)"
            self._end(beat, InstanceState.FAILED, reason)
            return
        info, path = entry
        reserved = min(info.reserved_slots, command.n_slots - 1)
        index = self._free_index(info)
        remote = self._catalog.remote(ModelId(info.id))
        config = InstanceConfig(
            instance=instance, model=info.id, path=str(path), backend=self._catalog.backend,
            worker_name=f"{info.id}.{index}@{self._node}",
            n_slots=command.n_slots, reserved_slots=reserved,
            n_ctx=command.n_ctx, n_threads=1 if remote else self._dealer.next_share(), report_fd=-1,
            options=self._catalog.options(ModelId(info.id)).model_copy(update={"numerics": command.numerics}),
            adapters=self._catalog.adapters(ModelId(info.id)), remote=remote,
            projector=str(self._catalog.projector(ModelId(info.id)) or ""), split=split,
        )  # fmt: skip
        logger.info("Starting %s: %s", instance, command.reason, extra={"event": "instance.start"})
        process = InstanceProcess(
            config,
            on_line=lambda line: logger.info("[%s] %s", instance, line),
            on_report=self._dealer.news,
            pid_file=self.run_folder / f"{instance}.json",
        )
        if not config.remote:  # else it computes nothing
            self._dealer.add(instance, process, config.n_threads)
        told = {"pid": process.pid, "reserved_slots": reserved, "estimated_bytes": info.memory.by_device}
        limit = None
        if split:
            told |= {"group": instance, "estimated_bytes": {}}
            limit = info.weights_bytes - sum(info.layer_bytes[len(info.layer_bytes) - split.num_layers :])
        beat = beat.model_copy(update=told)
        now = time.monotonic()
        self._instances[instance] = Managed(beat, process, config, index, state_since=now, mapped_limit=limit)

    def _end(self, beat: InstanceBeat, state: InstanceState, reason: str) -> None:
        """One that has no process (any more)."""
        if self._groups:
            self._groups.forget_head(InstanceId(beat.instance))
        beat = beat.model_copy(update={"state": state, "reason": reason, "ended_ms": self._registry_ms()})
        self._ended[InstanceId(beat.instance)] = (beat, Cause(instance=beat.instance, reason=reason))

    def _scan(self) -> bool:
        if not self._catalog.scan():
            return False
        self._not_deterministic.clear()  # a file may be another one now
        self._standing.quarantine.other_files()
        return True

    def _look_at_fetches(self, now: float) -> bool:
        news = self._exchange.poll(now)
        for beat in news.failed:
            self._end(beat, InstanceState.FAILED, beat.reason)
        if news.arrived:
            self._scan()
        for command in news.arrived:
            self._load(command.model_copy(update={"fetch_from": ""}), InstanceId(command.instance))
        return news.is_news

    def _look_at_groups(self, now: float) -> bool:
        if self._groups is None:
            return False
        news = self._groups.poll(now)
        for beat in news.ended:
            logger.info("%s is %s: %s", beat.instance, beat.state, beat.reason, extra={"event": "group.ended"})
            self._end(beat, beat.state, beat.reason)
        for command, split in news.ready:
            self._load(command, InstanceId(command.instance), split)
        for instance, reason in news.kill:
            if (managed := self._instances.get(instance)) and not managed.kill_reason:
                managed.kill(f"cannot go on: {reason}")
        for instance, reason in news.drain:
            if (managed := self._instances.get(instance)) and not managed.is_draining:
                managed.begin_drain(reason)
                news.is_news = True
        for managed in self._instances.values():
            if managed.config.split and not managed.is_draining:
                is_loading = managed.beat.state is InstanceState.LOADING
                said = self._groups.said(InstanceId(managed.beat.instance)) if is_loading else ""
                managed.beat = managed.beat.model_copy(update={"reason": said})
        return news.is_news or bool(news.ended or news.ready)

    def _leave_group(self, instance: InstanceId, reason: str) -> bool:
        if self._groups is None or not self._groups.has(instance):
            return False
        if beat := self._groups.leave(instance, reason):
            self._end(beat, InstanceState.STOPPED, reason)
        return True

    def _group_beats(self) -> list[InstanceBeat]:
        return self._groups.beats if self._groups else []

    def _cancel_fetch(self, instance: InstanceId, reason: str) -> bool:
        beat = self._exchange.cancel(instance)
        if beat is None:
            return False
        self._end(beat, InstanceState.STOPPED, reason)
        return True

    def _look_at(self, managed: Managed, now: float) -> bool:
        if managed.process.exit_code() is not None:
            self._bury(managed)
            return True
        changed = managed.take_report(now, self._registry_ms())
        seen = managed.observed(now, broker_reachable_s=self._reachable_s(now), awake_s=self._waking.look())
        reason = managed.kill_reason or verdict(seen, self._limits)
        if reason and not managed.kill_reason:
            managed.kill(reason)
        elif managed.beat.state is InstanceState.READY and now - managed.state_since > SETTLED_S:
            self._standing.quarantine.settled(managed.beat.model)
        return changed

    def _bury(self, managed: Managed) -> None:
        """A process is gone: say why, and give its jobs back at once instead of waiting for their leases."""
        cause = managed.process.reap(managed.kill_reason)
        report = managed.process.last_report
        if report and report.not_deterministic:
            self._not_deterministic[managed.beat.model] = report.not_deterministic
        now_ms = self._registry_ms()
        managed.take_report(time.monotonic(), now_ms)  # READY and gone between two looks: it was loaded all the same
        was = managed.beat
        beat = managed.ended(cause, now_ms)
        instance, has_failed = InstanceId(beat.instance), beat.state is InstanceState.FAILED
        log = logger.error if has_failed else logger.info
        log("%s is %s: %s", instance, beat.state, beat.reason, extra={"event": "instance.ended", "state": beat.state})
        if has_failed and not managed.config.remote and not managed.config.split:  # which tells nothing of this node
            others = [other.beat for other in self._instances.values()]
            self._standing.failed(was, cause, kill_reason=managed.kill_reason, others=others, now_ms=now_ms)
        self._ended[instance] = (beat, cause)
        del self._instances[instance]
        self._speed.forget(instance)
        self._dealer.remove(instance)
        if self._groups:
            self._groups.forget_head(instance)

    def give_back(self, cause: Cause) -> None:
        """Requeue the jobs of an instance that is gone, and ring for them."""
        for reaped in self._store.reap(InstanceId(cause.instance), cause):
            logger.info("Job %s is %s again", reaped.job_id, reaped.state, extra={"event": "job.given_back"})
            if reaped.state is JobState.QUEUED:
                self._bells.ring(reaped.route)

    def _report(self) -> None:
        """Write all beats. While the broker is away nothing is forgotten: ended instances wait for the next time."""
        try:
            self._clock_skew_ms = self._registry.now_ms() - _local_ms()
            for instance, (beat, cause) in list(self._ended.items()):
                self.give_back(cause)
                self._registry.put_instance(beat)
                del self._ended[instance]
            for beat in self._exchange.beats:
                self._registry.put_instance(beat)
            if self._groups:
                self._groups.note_memory()
                self._registry.put_instances(self._groups.beats)
            for managed in self._instances.values():
                managed.beat = managed.beat.model_copy(update={"resident_bytes": managed.resident_bytes(self._catalog)})
                self._registry.put_instance(managed.beat)
                self._note_speed(managed.beat)
            if self._standing.follow(self._registry.node_wish(self._node), now_ms=self._registry_ms()):
                self._dealer.set_budget(self._standing.terms.cores)
            offered = self._catalog.offered()
            self._registry.put_models(offered)
            self._registry.put_offers(self._node, [info for info in offered if not info.alias_of])
            self._registry.put_node(self._node_beat())
        except (RedisError, OperationalError) as error:
            if self._reachable_since is not None:
                logger.warning("Broker is away; instances go on: %s", error, extra={"event": "broker.away"})
            self._reachable_since = None
            return
        if self._reachable_since is None:
            logger.info("Broker is back", extra={"event": "broker.back"})
            self._reachable_since = time.monotonic()

    def _node_beat(self) -> NodeBeat:
        memory, terms = machine.memory(), self._standing.terms
        return NodeBeat(
            node=self._node,
            pid=psutil.Process().pid,
            cores=terms.cores,
            memory_total=memory.total,
            memory_free=memory.available,
            memory_budget=terms.memory,
            devices=memories(memory.total, memory.available, self._devices.found if self._devices else ()),
            models=tuple(sorted(self._catalog.models)),
            faults=self._catalog.faults,
            not_deterministic=self._not_deterministic
            | {m: NO_PROOF for m in self._catalog.models if self._is_remote(m)},
            instances=tuple(
                sorted([*self._instances, *(b.instance for b in (*self._exchange.beats, *self._group_beats()))])
            ),
            term_seen=self._term_seen,
            draining=not self._takes_new,
            quarantine=self._standing.quarantine.reason(self._registry_ms()) or self._deaf,
            labels=terms.labels,
            disk_free=self._exchange.disk_free,
            files_url=self._exchange.url,
            loopback=self._exchange.loopback,
            version=self._version,
            build=self._build,
            split=self._groups is not None,
            links=self._exchange.links,
            certificate=self._groups.certificate if self._groups else "",
            read_rates=self._devices.rates if self._devices else {},
            cpu=self._devices.features if self._devices else "",
            weights_per_s=self._speed.bytes_per_s,
        )

    def _note_speed(self, beat: InstanceBeat) -> None:
        info, _ = self._catalog.models.get(ModelId(beat.model), (None, None))
        if info and info.layer_bytes and not beat.group:
            step_bytes = sum(info.layer_bytes) + info.output_bytes
            self._speed.note(
                beat.instance, time.monotonic(), steps=beat.steps, tokens=beat.tokens_out, step_bytes=step_bytes
            )

    def _is_remote(self, model: ModelId) -> bool:
        return self._catalog.remote(model) is not None

    @property
    def _takes_new(self) -> bool:
        return not self._is_stopping and not self._standing.terms.is_draining

    def _keep_to_terms(self) -> bool:
        """Let go of instances that the node has no room for any more. True: some leave."""
        staying = [managed.beat for managed in self._instances.values() if not managed.is_draining]
        parts = self._groups.staying if self._groups else []
        leaving = self._standing.must_leave([*staying, *self._exchange.beats, *parts])
        for instance, reason in leaving:
            if not self._cancel_fetch(instance, reason) and not self._leave_group(instance, reason):
                self._instances[instance].begin_drain(reason)
        return bool(leaving)

    def _wake_up(self) -> None:
        """After a sleep nobody is late: move the deadlines by it."""
        slept_s = self._waking.take_slept_s()
        if slept_s is None:
            return
        for managed in self._instances.values():
            managed.state_since += slept_s
        self._exchange.forgive(slept_s)
        logger.info("Awake again", extra={"event": "node.awake"})

    def _reachable_s(self, now: float) -> float:
        """For how long the broker has answered, since waking at most; 0 while it is away."""
        return 0.0 if self._reachable_since is None else min(now - self._reachable_since, self._waking.look())

    def _free_index(self, info: ModelInfo) -> int:
        """The lowest replica number of this model that is free here, so that worker names come again."""
        taken = {managed.index for managed in self._instances.values() if managed.beat.model == info.id}
        return next(index for index in itertools.count() if index not in taken)

    def _registry_ms(self) -> int:
        """The broker's clock, by its last known distance from ours: beats must be written while it is away, too."""
        return _local_ms() + self._clock_skew_ms


def groups_of(settings: Settings, registry: Registry, reached: Callable[[], str]) -> Groups | None:
    """What a node that takes part in groups has for that; None: it does not.

    Args:
        reached: Says by which address others find this node.
    """
    if not settings.split or not settings.files_address:
        return None
    listen, _ = split_address(settings.files_address)
    return Groups(
        registry, new_identity(run_folder(settings) / "tunnel", settings.node), listen=listen,
        first_port=settings.split_port, reached=reached,
        caches=settings.home / "shards", drain_s=settings.drain_s + DRAINING_MARGIN_S,
    )  # fmt: skip


def run_folder(settings: Settings) -> Path:
    """Of this node's agent."""
    return settings.home / "run" / settings.node


def _local_ms() -> int:
    return int(time.time() * 1000)
