"""Tells a trace of each lease of an instance, where traces are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable

from packtrain.broker.job_spans import of_attempt
from packtrain.broker.outcome import Outcome
from packtrain.broker.trace_context import trace_of
from packtrain.broker.tracing import Tracing
from packtrain.workers.engine.sequence import Ended
from packtrain.workers.leased_job import LeasedJob


def lease_tracer(
    tracing: Tracing | None, *, model: str, instance: str, node: str
) -> Callable[[LeasedJob, Ended, Outcome | None], None]:
    """What a publisher tells ended leases; nothing where there is no tracing."""
    if tracing is None:
        return lambda *_: None
    about = {"gen_ai.request.model": model, "packtrain.instance": instance, "packtrain.node": node}

    def tell(job: LeasedJob, ended: Ended, outcome: Outcome | None) -> None:
        made = job.attempt(ended, outcome, about, now_ns=time.time_ns())
        tracing.send(trace_of(made.job_id, made.traceparent), lambda: of_attempt(made))

    return tell
