"""A job as spans of a trace. Pure: `tracing` sends them.

    POST /chat/completions          the gateway, if the job came by one
      └─ job                        submission to end; told by who ends it
           ├─ queued                submission, or the loss of an instance, to a claim
           ├─ attempt               a claim to what became of it; told by the instance, or by who finds it gone
           │    ├─ prefill          the claim to the first token of this attempt
           │    └─ decode           that token to the end
           ├─ queued
           └─ attempt

No span holds a prompt, an answer or an error's words, which may quote them: only ids, figures and codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from packtrain.broker.ids import JobId
from packtrain.broker.outcome import JobStatus, Outcome
from packtrain.broker.trace_context import JobTrace, span_id_of, trace_of

Attributes = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time. Times are nanoseconds since 1970."""

    name: str
    span_id: int
    parent_id: int  # 0: it has none
    start_ns: int
    end_ns: int
    attributes: Attributes = field(default_factory=dict)
    error: str = ""  # a code; empty: it went well
    is_server: bool = False  # it answers a request


@dataclass(frozen=True, slots=True)
class Attempt:
    """One claim of a job, as its instance saw it. Times as in spans."""

    job_id: JobId
    traceparent: str
    epoch: int
    waited_ns: int  # in the queue, before this claim
    queued_ns: int  # since its submission
    claimed_ns: int
    first_ns: int | None  # when the first token of this attempt came
    ended_ns: int
    about: Attributes  # model, node, instance, lane
    end: str  # why it left the engine
    outcome: Outcome | None  # None: it goes on elsewhere


def of_attempt(made: Attempt) -> list[Span]:
    """The spans that an instance tells of one attempt."""
    trace = trace_of(made.job_id, made.traceparent)
    about: Attributes = {**made.about, "packtrain.job": made.job_id, "packtrain.attempt": made.epoch}
    error = _code(made.outcome)
    own = span_id_of(made.job_id, made.epoch)
    spans = [
        Span(
            "queued", span_id_of(made.job_id, made.epoch, "queued"), trace.span_id,
            made.claimed_ns - made.waited_ns, made.claimed_ns, about,
        ),
        Span(
            "attempt", own, trace.span_id, made.claimed_ns, made.ended_ns, {**about, "packtrain.end": made.end}, error
        ),
    ]  # fmt: skip
    until_ns = made.ended_ns if made.first_ns is None else made.first_ns
    spans.append(Span("prefill", span_id_of(own, "prefill"), own, made.claimed_ns, until_ns, about))
    if made.first_ns is not None:
        spans.append(Span("decode", span_id_of(own, "decode"), own, made.first_ns, made.ended_ns, about))
    if made.outcome:
        usage: Attributes = {
            "gen_ai.usage.input_tokens": made.outcome.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": made.outcome.usage.completion_tokens,
            "packtrain.reused_tokens": made.outcome.usage.reused_tokens,
        }
        submitted_ns = made.claimed_ns - made.queued_ns
        spans.append(_job(trace, submitted_ns, made.ended_ns, {**about, **usage}, error))
    return spans


def of_reaped(status: JobStatus, now_ms: int) -> list[Span]:
    """The spans of a job that was taken from its instance, or that its deadline has ended, as its record is then."""
    trace = trace_of(JobId(status.id), status.traceparent)
    about: Attributes = {
        "packtrain.job": status.id, "packtrain.attempt": status.epoch, "gen_ai.request.model": status.model,
        "packtrain.lane": status.lane, "packtrain.node": status.node or "", "packtrain.instance": status.instance or "",
    }  # fmt: skip
    spans = []
    if status.started_ms and status.cause:
        spans.append(
            Span(
                "attempt", span_id_of(status.id, status.epoch), trace.span_id, status.started_ms * 1_000_000,
                now_ms * 1_000_000, about, "instance_lost",
            )
        )  # fmt: skip
    if status.state.is_terminal and status.finished_ms:
        error = _code(status.outcome) or status.state.lower()
        spans.append(_job(trace, status.submitted_ms * 1_000_000, status.finished_ms * 1_000_000, about, error))
    return spans


def _job(trace: JobTrace, start_ns: int, end_ns: int, about: Attributes, error: str) -> Span:
    return Span("job", trace.span_id, trace.parent_id, start_ns, end_ns, about, error)


def _code(outcome: Outcome | None) -> str:
    return str(outcome.error.get("code", "failed")) if outcome and outcome.error else ""
