"""Instances of a simulation, and their beats, which are made anew only when something has changed."""

from __future__ import annotations

from dataclasses import dataclass, field

from packtrain.broker.messages import InstanceBeat
from packtrain.broker.simulation.fleet import SimJob, SimModel
from packtrain.broker.states import InstanceState

#: Weight of the newest job in the measured time of one, as instances have it.
NEWEST = 0.1


@dataclass(slots=True, eq=False)
class Unit:
    """An instance. Times in ms of the virtual clock."""

    beat: InstanceBeat
    model: SimModel
    speed: float
    running: int = 0
    bulk: int = 0
    job_s: float = 0.0
    last_used_ms: float = 0.0
    up_since: float = 0.0
    busy_ms: float = 0.0  # of all slots, jobs that have ended
    is_changed: bool = field(default=False)

    @property
    def can_begin(self) -> bool:
        """True when it has a slot for a job."""
        return self.beat.state is InstanceState.READY and self.running < self.beat.n_slots

    @property
    def can_begin_bulk(self) -> bool:
        """True when it has one for a bulk job."""
        return self.bulk < self.beat.n_slots - self.model.info.reserved_slots

    def begin(self, job: SimJob, now_ms: float) -> float:
        """A job takes a slot; when it will end."""
        job.begun_ms = now_ms
        self.running += 1
        self.bulk += job.lane == "bulk"
        self.last_used_ms, self.is_changed = now_ms, True
        per_slot = self.model.tokens_per_s / self.beat.n_slots
        seconds = job.prompt_tokens / self.model.prefill_per_s + job.output_tokens / per_slot
        return now_ms + 1000 * seconds / self.speed

    def end(self, job: SimJob, now_ms: float) -> None:
        """It leaves its slot."""
        self.running -= 1
        self.bulk -= job.lane == "bulk"
        self.last_used_ms, self.is_changed = now_ms, True
        took_ms = now_ms - job.begun_ms
        self.busy_ms += took_ms
        seconds = took_ms / 1000
        self.job_s = seconds if not self.job_s else self.job_s + NEWEST * (seconds - self.job_s)

    def change(self, **fields: object) -> None:
        """Set fields of its beat now."""
        self.beat = self.beat.model_copy(update=fields)

    def look(self) -> InstanceBeat:
        """Its beat as it is now."""
        if self.is_changed:
            self.is_changed = False
            self.change(slots_used=self.running, last_used_ms=int(self.last_used_ms), job_s=self.job_s)
        return self.beat
