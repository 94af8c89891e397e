"""An instance as its agent holds it: the process, what is told of it, and what its reports change about that."""

from __future__ import annotations

import logging
import signal
import time
from dataclasses import dataclass, field
from typing import Protocol

import psutil

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.outcome import Cause
from packtrain.broker.states import InstanceState
from packtrain.workers.instance_messages import InstanceConfig
from packtrain.workers.instance_process import InstanceProcess
from packtrain.workers.memory_book import Readings
from packtrain.workers.own_memory import own_memory
from packtrain.workers.step_speed import StepSpeed
from packtrain.workers.supervision import Observed, is_out_of_memory

logger = logging.getLogger(__name__)

#: The rate of tokens is that of so many seconds.
RATE_S = 2.0


class Learner(Protocol):
    """The part of `NodeCatalog` that learns what instances take."""

    def note_readings(self, config: InstanceConfig, readings: Readings) -> int | None:
        """Learn. Bytes of mapped files that it needs; None: all that it has mapped."""
        ...


@dataclass(slots=True)
class Managed:
    """One instance. Belongs to the agent's loop."""

    beat: InstanceBeat
    process: InstanceProcess
    config: InstanceConfig
    index: int  # among the instances of its model here
    state_since: float  # monotonic seconds
    kill_reason: str = ""
    tokens_before: tuple[float, int] = (0.0, 0)  # for the rate
    is_draining: bool = False
    most_private: int = 0  # bytes of its own memory, the most that was seen
    mapped_limit: int | None = None  # bytes of its files that count; None: as the catalog says
    alone: StepSpeed = field(default_factory=StepSpeed)  # of a head: how fast one job alone got on

    def begin_drain(self, reason: str) -> None:
        """Ask it to finish its jobs and end."""
        self.is_draining = True
        self.beat = self.beat.model_copy(update={"state": InstanceState.DRAINING, "reason": reason})
        self.state_since = time.monotonic()
        self.process.drain()
        logger.info("Draining %s: %s", self.beat.instance, reason, extra={"event": "instance.drain"})

    def kill(self, reason: str) -> None:
        """End it now."""
        self.kill_reason = reason
        logger.error("Killing %s: it %s", self.beat.instance, reason, extra={"event": "instance.kill"})
        self.process.kill()

    def observed(self, now: float, *, broker_reachable_s: float, awake_s: float) -> Observed:
        """What supervision judges it by."""
        report = self.process.last_report
        return Observed(
            state=self.beat.state,
            state_age_s=now - self.state_since,
            report_age_s=now - self.process.last_report_at,
            is_busy=bool(report and report.is_busy),
            step_age_s=report.step_age_s if report else 0,
            hub_age_s=report.hub_age_s if report else 0,
            broker_reachable_s=broker_reachable_s,
            awake_s=awake_s,
        )

    def take_report(self, now: float, now_ms: int) -> bool:
        """Take over what it reported last; True when its state is another one now.

        Args:
            now_ms: The broker's clock.
        """
        report = self.process.last_report
        if report is None:
            return False
        before = self.beat
        # Once it was told to drain it stays DRAINING, whatever it said just before it heard. And it has not ended, with
        # its memory free, before the process is seen gone.
        state = before.state if self.is_draining or report.state.is_terminal else report.state
        update: dict[str, object] = {
            "state": state,
            "recipe": report.recipe,
            "numerics_class": report.numerics_class,
            "slots_used": report.slots_used,
            "steps": report.steps,
            "batch_peak": report.batch_peak,
            "tokens_out": report.tokens_out,
            "tokens_reused": report.tokens_reused,
            "batches": report.batches,
            "batched": report.batched,
            "kv_tokens": report.kv_tokens,
            "parked": report.parked,
            "parkings": report.parkings,
            "images_seen": report.images_seen,
            "job_s": report.job_s,
            "threads": report.threads,
        }
        if report.steps != before.steps or report.slots_used:
            update["last_used_ms"] = now_ms
        if before.is_head:
            # One byte a step: then its bytes a second are tokens.
            self.alone.note(before.instance, now, steps=report.steps, tokens=report.tokens_out, step_bytes=1)
            update["alone_tokens_per_s"] = round(self.alone.bytes_per_s, 1)
        if state is InstanceState.READY and not before.ready_ms:
            update["ready_ms"] = update["last_used_ms"] = now_ms
            seconds = now - self.process.started_at
            logger.info("%s is ready after %.1f s", before.instance, seconds, extra={"event": "instance.ready"})
        if report.has_served and not before.served_ms:
            update["served_ms"] = now_ms
        since, tokens = self.tokens_before
        if now - since >= RATE_S:
            rate = (report.tokens_out - tokens) / (now - since) if since else 0.0
            update["tokens_per_s"] = round(rate, 1)
            self.tokens_before = (now, report.tokens_out)
        self.beat = before.model_copy(update=update)
        if state is not before.state:
            self.state_since = now
            return True
        return False

    def ended(self, cause: Cause, now_ms: int) -> InstanceBeat:
        """Its last beat, once the process is gone."""
        # While it loads nothing handles the signal yet, so it ends by it.
        stopped = self.is_draining and self.process.exit_code() in (0, -signal.SIGTERM)
        state = InstanceState.STOPPED if stopped else InstanceState.FAILED
        update = {
            "state": state,
            "reason": self.beat.reason if stopped else str(cause),
            "slots_used": 0,
            "resident_bytes": 0,
            "tokens_per_s": 0.0,
            "ended_ms": now_ms,
            "out_of_memory": not stopped and is_out_of_memory(cause, self.kill_reason),
        }
        return self.beat.model_copy(update=update)

    def resident_bytes(self, learner: Learner) -> int:
        """What it holds; and let the catalog know, for the next estimate.

        Of a model file that was copied into another order the pages stay mapped, and need not: they do not count.
        """
        try:
            now = own_memory(self.process.pid)
        except psutil.Error:  # it is gone, and will be buried
            return 0
        if self.mapped_limit is not None:
            return now.private + min(now.mapped, self.mapped_limit)
        report = self.process.last_report
        if self.beat.state is not InstanceState.READY or not report or not report.before_load or not report.loaded:
            return now.resident
        self.most_private = max(self.most_private, now.private)
        readings = Readings(report.before_load, report.loaded, self.most_private)
        needed = learner.note_readings(self.config, readings)
        return now.resident if needed is None else now.private + min(now.mapped, needed)
