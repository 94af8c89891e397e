"""The run: a fleet on paper works its jobs off, on a clock that jumps from one event to the next.

Events are: a job comes; the first sequence of an instance ends; an instance is ready, must stop, is gone; the planner
looks. The planner is the coordinator's own, and sees a snapshot of the same form; jobs stand in the same fair queue
(`claims.Line`). It looks at each tick at which its answer could be another one than "nothing": when an instance came
or went, or has been idle for long enough to go, and while jobs wait for a model that is not loaded or that is worth one
more replica. Anything else that it decides by needs one of these.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from packtrain.broker import placement
from packtrain.broker.beats import InstanceBeat
from packtrain.broker.claims import Line
from packtrain.broker.fairness import cost
from packtrain.broker.ids import ModelId, NodeId, model_of, route_of
from packtrain.broker.placement import Load, Reject, Unload
from packtrain.broker.placement.replicas import SCALE_IN_S
from packtrain.broker.simulation.arrivals import Arrival, arrivals
from packtrain.broker.simulation.fleet_file import FleetFile, TraceLine
from packtrain.broker.simulation.outcome import Account, Outcome
from packtrain.broker.simulation.parts import Instance, Job, Node, info_of, load_s, rates_of, to_ms
from packtrain.broker.simulation.planning import Planning
from packtrain.broker.states import InstanceState

#: When jobs wait and nothing runs, comes up or leaves for this long beyond all waits that end by themselves, s.
STUCK_S = 60.0
#: A job that was given back so often will be for ever: its stays are too short for it.
MAX_MOVES = 100
#: A time this near a tick is on it.
NEAR = 1e-9


class Simulation:
    """One run. The same fleet, seed and trace give the same outcome.

    Args:
        trace: Further jobs, sorted by time.
        every_tick: Let the planner look at every tick: slow, and the same outcome.
        on_begin: Told of each job that takes a slot.

    Attributes:
        history: What was loaded and unloaded: seconds, verb, model, node.

    Raises:
        InvalidParameter: A model that jobs ask for has no rates.
    """

    def __init__(
        self,
        fleet: FleetFile,
        seed: int,
        trace: Iterable[TraceLine] = (),
        *,
        every_tick: bool = False,
        on_begin: Callable[[Job], None] | None = None,
    ) -> None:
        self.history: list[tuple[float, str, str, str]] = []
        self.account = Account()
        self._fleet = fleet
        self._settings = fleet.settings
        self._every_tick = every_tick
        self._on_begin = on_begin
        self._arrivals = arrivals(fleet.jobs, trace, seed)
        self._rates = {name: rates_of(name, model) for name, model in fleet.models.items()}
        self._nodes = {
            name: Node(name, section, section.files(fleet.models)) for section in fleet.nodes for name in section.names
        }
        infos = {ModelId(name): info_of(name, model) for name, model in fleet.models.items()}
        self._planning = Planning(fleet.settings, infos, {name: node.models for name, node in self._nodes.items()})
        self._instances: dict[str, Instance] = {}
        self._ready: dict[str, dict[str, Instance]] = {name: {} for name in fleet.models}
        self._up: dict[str, dict[str, Instance]] = {name: {} for name in fleet.models}  # ready or coming up
        self._lines: dict[str, Line[Job]] = {name: Line() for name in fleet.models}
        self._num_of: dict[str, int] = defaultdict(int)  # instances of each model so far
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._num_events = self._num_waiting = self._num_running = 0
        self._now = self._last_move = 0.0
        self._ticked, self._next_tick = -1, -1  # numbers of ticks; -1: none
        self._is_stirred = True  # an instance came or went since the last plan, or may have to go
        self._nobody_since: dict[str, float] = {}  # jobs wait for these models and no instance is ready
        self._reasons: dict[str, str] = {}
        self._is_hopeless = False

    def run(self) -> Outcome:
        """Work all jobs off."""
        self._look_at(0.0)
        coming = next(self._arrivals, None)
        while coming or self._num_waiting or self._num_running:
            if coming and (not self._events or coming.at <= self._events[0][0]):
                self._now = coming.at
                self._arrive(coming)
                coming = next(self._arrivals, None)
                continue
            if not self._events:
                break
            self._now, _, act, on = heapq.heappop(self._events)
            act(on)
            if self._is_hopeless or (not coming and self._is_stuck()):
                break
        return self._outcome()

    def _at(self, when: float, act: Callable[[Any], None], on: Any) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (when, self._num_events, act, on))

    # Jobs

    def _arrive(self, arrival: Arrival) -> None:
        self.account.submitted += 1
        job = Job(
            self.account.submitted, arrival.at, arrival.model, arrival.user, arrival.lane, arrival.prompt,
            arrival.output,
        )  # fmt: skip
        line = self._lines[job.model]
        is_behind = line.has(job.lane)  # no slot is open to that lane
        job.tag = line.enter(job, job.lane, job.user, cost(arrival.prompt, arrival.most))
        self._num_waiting += 1
        self.account.most_waiting = max(self.account.most_waiting, self._num_waiting)
        if instance := None if is_behind else self._free_for(job):
            self._fill(instance)
        else:
            self._look_at(self._now)
            self._note_unserved(job.model)

    def _note_unserved(self, model: str) -> None:
        if self._lines[model] and not self._ready[model]:
            self._nobody_since.setdefault(model, self._now)

    def _free_for(self, job: Job) -> Instance | None:
        """Of the instances that may take it the one with fewest at work."""
        best: Instance | None = None
        for instance in self._ready[job.model].values():
            if not instance.service:
                return instance
            is_open = instance.has_seat() and (job.lane == "interactive" or instance.may_bulk())
            if is_open and (best is None or len(instance.service) < len(best.service)):
                best = instance
        return best

    def _fill(self, instance: Instance) -> None:
        """Free slots take what waits for them."""
        line = self._lines[instance.model_id]
        while instance.has_seat() and (taken := line.take(bulk=instance.may_bulk())):
            job = taken[1]
            self._num_waiting -= 1
            self._num_running += 1
            if job.waited is None:
                job.waited = self._now - job.at
                self.account.began(job, self._now)
            instance.begin(job, self._now)
            if self._on_begin:
                self._on_begin(job)
        self._changed(instance)

    def _changed(self, instance: Instance) -> None:
        """Its company is another one: when the next ends, and what part of the node each instance at work has."""
        working = instance.node.working
        if bool(instance.service) == (instance.name in working):
            self._expect_end(instance)
            return
        if instance.service:
            working[instance.name] = instance
        else:
            del working[instance.name]
            self._watch(instance)
        for each in working.values():
            each.service.share(instance.node.section.speed / len(working), self._now)
            self._expect_end(each)

    def _expect_end(self, instance: Instance) -> None:
        if (end := instance.service.next_end()) is not None:
            self._at(max(end, self._now), self._on_end, (instance, instance.service.version))

    def _on_end(self, expected: tuple[Instance, int]) -> None:
        instance, version = expected
        if version != instance.service.version:  # something has changed since
            return
        for job in instance.service.end(self._now):
            instance.ended(job, self._now)
            self.account.succeeded += 1
            self.account.tokens += job.output
            self._num_running -= 1
        self.account.last_end = self._last_move = self._now
        self._fill(instance)
        if instance.state is InstanceState.DRAINING and not instance.service:
            self._at(self._now + self._settings.stop, self._on_gone, instance)

    # Instances

    def _on_ready(self, instance: Instance) -> None:
        model, node = ModelId(instance.model_id), instance.node
        node.take(instance.model.memory)
        if model not in node.models:
            node.fetched(model, instance.model.file_bytes)
            self._planning.fetched(model, NodeId(node.name))
        instance.turn(InstanceState.READY, self._now, resident=instance.model.memory)
        self._ready[model][instance.name] = instance
        self.account.unserved(model, self._now - self._nobody_since.pop(model, self._now))
        self._last_move = self._now
        self._fill(instance)
        if not instance.service:
            self._watch(instance)
        self._stir()

    def _on_drained(self, instance: Instance) -> None:
        """Its jobs have had their time: they go on elsewhere."""
        if not instance.service:
            return
        for job, left in instance.service.leave(self._now):
            instance.ended(job, self._now, counts=False)
            self.account.tokens += job.output - left
            job.prompt, job.output = job.prompt + job.output - left, left
            self._lines[job.model].put_back(job, job.lane, job.tag)
            self._num_running -= 1
            self._num_waiting += 1
            self.account.moved += 1
            job.num_moves += 1
            if job.num_moves > MAX_MOVES:
                self._is_hopeless = True
                self._reasons[job.model] = (
                    f"a job was given back {MAX_MOVES} times before its end, for the stays of its model are too short; "
                    "allow a longer min_residency or drain"
                )
        self._note_unserved(instance.model_id)
        self._changed(instance)
        self._at(self._now + self._settings.stop, self._on_gone, instance)
        for other in tuple(self._ready[instance.model_id].values()):
            self._fill(other)
        self._look_at(self._now)

    def _on_gone(self, instance: Instance) -> None:
        instance.state = InstanceState.STOPPED
        instance.node.take(-instance.model.memory)
        self._count_stay(instance)
        del self._instances[instance.name]
        self._last_move = self._now
        self._stir()

    def _count_stay(self, instance: Instance) -> None:
        node = instance.node
        node.byte_s += instance.reserved * (self._now - instance.requested)
        if instance.ready:
            node.slot_s += instance.model.slots * (self._now - instance.ready)
        for job in instance.service.jobs():
            node.used_slot_s += self._now - job.begun

    def _watch(self, instance: Instance, after: int | None = None) -> None:
        """Have the planner look at the first tick at which an idle instance has been so for long enough to go.

        Args:
            after: That tick comes after this one; None: after the last one.
        """
        keep_alive, seen = instance.model.keep_alive, self._ticked if after is None else after
        due = [self._tick_beyond(instance.idle_since, limit) for limit in (SCALE_IN_S, keep_alive)]
        if keep_alive < 0 or max(due) <= seen:
            return
        tick = min(tick for tick in due if tick > seen)
        if instance.watched is None or tick < instance.watched:
            instance.watched = tick
            # Half a tick early, so that the plan of this very tick is made.
            when = max(self._now, (tick - 0.5) * self._settings.tick)
            self._at(when, self._on_idle, (instance, instance.idle_since, tick))

    def _on_idle(self, watched: tuple[Instance, float, int]) -> None:
        instance, since, tick = watched
        if tick != instance.watched:  # it was watched for something earlier later on
            return
        instance.watched = None
        if instance.state is not InstanceState.READY or instance.service:
            return
        if since != instance.idle_since:  # it was at work since
            self._watch(instance)
            return
        self._stir()
        self._watch(instance, after=tick)

    def _tick_beyond(self, since: float, limit: float) -> int:
        """The first tick at which more than `limit` seconds have passed, as the planner counts them."""
        tick = math.ceil((since + limit) / self._settings.tick - NEAR)
        while to_ms(tick * self._settings.tick) - to_ms(since) <= limit * 1000:
            tick += 1
        return tick

    # Plans

    def _look_at(self, when: float) -> None:
        """Have the planner look at the first tick from then on."""
        tick = max(self._ticked + 1, math.ceil(when / self._settings.tick - NEAR))
        if self._next_tick < 0 or tick < self._next_tick:
            self._next_tick = tick
            self._at(max(self._now, tick * self._settings.tick), self._on_tick, tick)

    def _stir(self) -> None:
        self._is_stirred = True
        self._look_at(self._now)

    def _on_tick(self, tick: int) -> None:
        if tick != self._next_tick:  # an earlier one was asked for later
            return
        self._ticked, self._next_tick = tick, -1
        if self._num_waiting or self._every_tick:
            self._look_at(self._now + self._settings.tick)
        waiting = {route_of(ModelId(name)): len(line) for name, line in self._lines.items() if line}
        if not (self._is_stirred or self._every_tick):
            up = {route: [i.beat(self._now) for i in self._up[model_of(route)].values()] for route in waiting}
            if not self._planning.is_worth_it(to_ms(self._now), waiting, up):
                self._planning.skip()
                return
        self._is_stirred = False
        self.account.plans += 1
        plan = self._planning.plan(
            to_ms(self._now),
            waiting,
            [node.beat() for node in self._nodes.values()],
            [instance.beat(self._now) for instance in self._instances.values()],
        )
        for reject in plan.rejects:
            self._reject(reject)
        for load in plan.loads:
            self._load(load)
        for unload in plan.unloads:
            self._unload(unload)
        for route, reason in plan.waits.items():
            self._reasons[model_of(route)] = reason
        if plan.loads or plan.unloads or plan.rejects:
            self._stir()

    def _load(self, load: Load) -> None:
        model, node = self._fleet.models[load.model], self._nodes[load.node]
        self._num_of[load.model] += 1
        name = f"{load.model}-{self._num_of[load.model]}"
        beat = InstanceBeat(
            instance=name, model=load.model, node=load.node, state=InstanceState.LOADING, n_slots=load.n_slots,
            n_ctx=load.n_ctx, numerics=load.numerics, reserved_bytes=load.reserved_bytes,
            requested_ms=to_ms(self._now),
        )  # fmt: skip
        instance = self._instances[name] = Instance(beat, node, model, self._rates[load.model])
        self._up[load.model][name] = instance
        took = load_s(model, node.section, self._settings.start, fetches=bool(load.fetch_from))
        self._at(self._now + took, self._on_ready, instance)
        self.account.loads += 1
        self.account.loads_on[node.name] += 1
        self.account.swaps += node.was_cleared
        node.was_cleared = False
        self._last_move = self._now
        self.history.append((self._now, "load", load.model, load.node))

    def _unload(self, unload: Unload) -> None:
        instance = self._instances[unload.instance]
        if unload.cost is None:
            self.account.idle_unloads += 1
        else:
            self.account.evictions += 1
            self.account.driven_out += bool(self._lines[unload.model] or instance.service)
            instance.node.was_cleared = True
        self.history.append((self._now, "unload", unload.model, unload.node))
        del self._ready[unload.model][instance.name], self._up[unload.model][instance.name]
        self._note_unserved(unload.model)
        instance.turn(InstanceState.DRAINING, self._now, resident=instance.model.memory)
        if instance.service:
            self._at(self._now + self._settings.drain, self._on_drained, instance)
        else:
            self._at(self._now + self._settings.stop, self._on_gone, instance)
        self._last_move = self._now

    def _reject(self, reject: Reject) -> None:
        model = model_of(reject.route)
        gone = sum(1 for _ in self._lines[model].clear())
        self._nobody_since.pop(model, None)
        self._num_waiting -= gone
        self.account.rejected += gone
        self._reasons[model] = str(reject.error)
        self._last_move = self._now

    def _is_stuck(self) -> bool:
        """True when jobs wait and nothing moves, nor will."""
        patience = placement.OFFER_WAIT_MS / 1000 + self._settings.max_wait + self._settings.min_residency + STUCK_S
        is_still = not self._num_running and all(i.state is InstanceState.READY for i in self._instances.values())
        return is_still and self._now - self._last_move > patience

    def _outcome(self) -> Outcome:
        for instance in self._instances.values():
            self._count_stay(instance)
        never_served = self._num_waiting + self._num_running
        reasons = self._reasons if never_served or self.account.rejected else {}
        return self.account.outcome(list(self._nodes.values()), self._now, never_served, reasons)
