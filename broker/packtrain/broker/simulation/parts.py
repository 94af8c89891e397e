"""The parts of a simulated fleet, and what each would say of itself: the very beats that the planner reads."""

from __future__ import annotations

from dataclasses import dataclass

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.errors import InvalidParameter
from packtrain.broker.job_spec import Lane
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.rates import smoothed_run_s
from packtrain.broker.simulation.fleet_file import ModelSection, NodeSection
from packtrain.broker.simulation.service import Rates, Service
from packtrain.broker.states import InstanceState

#: Of a simulation, on the clock of the beats, where 0 stands for never.
BEGIN_MS = 1_000_000_000


@dataclass(slots=True, eq=False)
class Job:
    """One job on its way."""

    number: int
    at: float  # when it came
    model: str
    user: str
    lane: Lane
    prompt: int  # tokens to prefill; after a move those that it had produced, too
    output: int  # tokens to produce yet
    tag: float = 0.0
    begun: float = 0.0  # the last time
    waited: float | None = None  # until it first began
    num_moves: int = 0  # times that it was given back before its end


class Node:
    """A machine. Instances on it that are at work share it evenly."""

    def __init__(self, name: str, section: NodeSection, models: tuple[str, ...]) -> None:
        self.name = name
        self.section = section
        self.resident = 0  # bytes
        self.disk_free = section.disk_free
        self.models = models
        self.working: dict[str, Instance] = {}
        self.was_cleared = False  # since its last load somebody had to leave
        self.byte_s = self.slot_s = self.used_slot_s = 0.0
        self._beat: NodeBeat | None = None

    def beat(self) -> NodeBeat:
        """What its agent would say."""
        if self._beat is None:
            self._beat = NodeBeat(
                node=self.name, cores=self.section.cores, memory_total=self.section.memory,
                memory_free=self.section.memory - self.resident, memory_budget=self.section.memory_budget,
                models=self.models, labels=self.section.labels, disk_free=self.disk_free,
                files_url=f"http://{self.name}:1",
            )  # fmt: skip
        return self._beat

    def take(self, num_bytes: int) -> None:
        """So many bytes more are in use; negative: fewer."""
        self.resident += num_bytes
        self._beat = None

    def fetched(self, model: str, file_bytes: int) -> None:
        """It has the file of one model more."""
        if model not in self.models:
            self.models, self.disk_free = (*self.models, model), self.disk_free - file_bytes
            self._beat = None


class Instance:
    """A loaded model."""

    def __init__(self, beat: InstanceBeat, node: Node, model: ModelSection, rates: Rates) -> None:
        self.name, self.node, self.model = beat.instance, node, model
        self.state = beat.state
        self.service: Service[Job] = Service(rates)
        self.num_bulk = 0
        self._num_slots, self._num_bulk_slots = model.slots, model.bulk_slots
        self.idle_since = 0.0
        self.watched: int | None = None  # tick for which an event looks whether it was idle for long enough to go
        self.requested, self.ready = to_s(beat.requested_ms), 0.0
        self._run_s = 0.0
        self._first_end: float | None = None
        self._beat = beat
        self._is_stale = False

    @property
    def model_id(self) -> str:
        return self._beat.model

    @property
    def reserved(self) -> int:
        """Bytes, from its load to its end."""
        return self._beat.reserved_bytes

    def has_seat(self) -> bool:
        """True when a slot is free."""
        return self.state is InstanceState.READY and len(self.service) < self._num_slots

    def may_bulk(self) -> bool:
        """True when a bulk job may have that slot."""
        return self.num_bulk < self._num_bulk_slots

    def turn(self, state: InstanceState, now: float, *, resident: int) -> None:
        """It is in another state now."""
        update: dict[str, object] = {"state": state, "resident_bytes": resident}
        if state is InstanceState.READY:
            update["ready_ms"] = update["last_used_ms"] = to_ms(now)
            self.ready = self.idle_since = now
        self.state = state
        self._beat = self._beat.model_copy(update=update)

    def begin(self, job: Job, now: float) -> None:
        """A job takes a slot."""
        job.begun = now
        self.num_bulk += job.lane == "bulk"
        self.service.join(job, job.prompt, job.output, now)
        self._is_stale = True

    def ended(self, job: Job, now: float, *, counts: bool = True) -> None:
        """It has left its slot.

        Args:
            counts: False: it goes on elsewhere.
        """
        self.num_bulk -= job.lane == "bulk"
        self.node.used_slot_s += now - job.begun
        if counts:
            self._run_s = smoothed_run_s(self._run_s, now - job.begun)
            self._first_end = self._first_end or now
        if not self.service:
            self.idle_since = now
        self._is_stale = True

    def beat(self, now: float) -> InstanceBeat:
        """What its agent would say."""
        if self._is_stale:
            # Before the first job has ended it is how long the oldest has run so far, see workers/job_times.py.
            is_measured = self._run_s > 0 or not self.service
            run_s = self._run_s if is_measured else now - min(job.begun for job in self.service.jobs())
            served = [at for at in (self.service.first_token(now), self._first_end) if at is not None]
            self._beat = self._beat.model_copy(
                update={
                    "slots_used": len(self.service), "job_s": run_s, "last_used_ms": to_ms(self.idle_since),
                    "served_ms": to_ms(min(served)) if served else 0,
                }
            )  # fmt: skip
            self._is_stale = not (is_measured and served)
        return self._beat


def to_ms(seconds: float) -> int:
    """A time as beats have it."""
    return BEGIN_MS + round(seconds * 1000)


def to_s(milliseconds: int) -> float:
    """And back."""
    return (milliseconds - BEGIN_MS) / 1000


def info_of(name: str, model: ModelSection) -> ModelInfo:
    """What a node's catalog would say of a model."""
    return ModelInfo(
        id=name, n_slots=model.slots, n_ctx=model.context, required_bytes=model.memory, weights_bytes=model.file_bytes,
        keep_alive_s=model.keep_alive, pinned=model.pinned, min_replicas=model.replicas.min,
        max_replicas=model.replicas.max or 0, nodes=model.nodes, file_bytes=model.file_bytes, fetchable=True,
    )  # fmt: skip


def load_s(model: ModelSection, node: NodeSection, start_s: float, *, fetches: bool) -> float:
    """Seconds of a load, with the fetch of its file if it must be fetched first."""
    read_s = start_s + model.file_bytes / node.disk if model.load is None else model.load
    return read_s + (model.file_bytes / node.network if fetches else 0.0)


def rates_of(name: str, model: ModelSection) -> Rates:
    """How fast its instances are.

    Raises:
        InvalidParameter: The file does not say.
    """
    if model.decode is None or model.prefill is None:
        raise InvalidParameter(
            f"models.{name} has no decode or prefill rate, so nobody can say how long its jobs take; add "
            "decode = {alone = 30, full = 120} and prefill = 400, tokens a second, as `packtrain ps` shows them",
            field=f"models.{name}",
        )
    return Rates.of(model.decode.alone, model.decode.full, model.prefill, model.slots)
