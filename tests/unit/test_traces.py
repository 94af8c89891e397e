"""Traces: whose a job is, which spans it has, and what is sent of them."""

from __future__ import annotations

from typing import Any

import pytest

from packtrain.broker import trace_context
from packtrain.broker.ids import JobId
from packtrain.broker.job_spans import Attempt, Span, of_attempt, of_reaped
from packtrain.broker.outcome import Cause, JobStatus, Outcome, Usage
from packtrain.broker.states import JobState
from packtrain.broker.trace_context import CURRENT, JobTrace, current, parse, trace_of
from packtrain.broker.tracing import Tracing, is_asked_for

pytestmark = pytest.mark.unit

JOB = JobId("0123456789abcdef0123456789abcdef")
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
DONE = Outcome(state=JobState.SUCCEEDED, text="secret", usage=Usage(prompt_tokens=5, completion_tokens=7))


def attempt(**fields: Any) -> Attempt:
    """One of 1 ms in the queue, 2 ms of prefill, 7 ms of decoding."""
    defaults: dict[str, Any] = {
        "job_id": JOB, "traceparent": PARENT, "epoch": 1, "waited_ns": 1_000_000, "queued_ns": 1_000_000,
        "claimed_ns": 11_000_000, "first_ns": 13_000_000, "ended_ns": 20_000_000, "about": {"packtrain.node": "n1"},
        "end": "stop", "outcome": DONE,
    }  # fmt: skip
    return Attempt(**{**defaults, **fields})


def by_name(spans: list[Span]) -> dict[str, Span]:
    return {span.name: span for span in spans}


@pytest.mark.parametrize(
    "text",
    [
        None, "", "nonsense", f"00-{TRACE}-{SPAN}", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{SPAN}-01-more", f"00-{TRACE}x-{SPAN}-01", "00-" + "a" * 10_000,
    ],
)  # fmt: skip
def test_what_is_no_trace_is_none(text: str | None) -> None:
    assert parse(text) == ""


def test_a_newer_version_of_a_trace_is_taken_as_far_as_it_is_known() -> None:
    assert parse(f" CC-{TRACE.upper()}-{SPAN}-03-more ") == PARENT


def test_a_job_without_a_trace_is_one_of_its_own_and_the_same_in_every_process() -> None:
    assert trace_of(JOB, "") == trace_of(JOB, "nonsense") == JobTrace(int(JOB, 16), trace_of(JOB, PARENT).span_id)
    assert trace_of(JOB, PARENT).parent_id == int(SPAN, 16)
    assert trace_of(JOB, PARENT).is_sampled
    assert trace_of(JOB, f"00-{TRACE}-{SPAN}-00").is_sampled is False


def test_what_is_done_now_belongs_to_our_trace_or_to_that_of_the_program_around() -> None:
    from opentelemetry import trace

    context = trace.SpanContext(int(TRACE, 16), int(SPAN, 16), False, trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        around = current()
        token = CURRENT.set(f"00-{TRACE}-{SPAN}-00")
        ours = current()
        CURRENT.reset(token)

    assert (current(), around, ours) == ("", PARENT, f"00-{TRACE}-{SPAN}-00")


def test_an_attempt_that_ends_its_job_tells_all_of_it() -> None:
    spans = by_name(of_attempt(attempt()))

    assert {name: (span.start_ns, span.end_ns) for name, span in spans.items()} == {
        "job": (10_000_000, 20_000_000), "queued": (10_000_000, 11_000_000), "attempt": (11_000_000, 20_000_000),
        "prefill": (11_000_000, 13_000_000), "decode": (13_000_000, 20_000_000),
    }  # fmt: skip
    assert spans["job"].parent_id == int(SPAN, 16)
    assert spans["queued"].parent_id == spans["attempt"].parent_id == spans["job"].span_id
    assert spans["prefill"].parent_id == spans["decode"].parent_id == spans["attempt"].span_id
    assert spans["job"].attributes["gen_ai.usage.output_tokens"] == 7
    assert len({span.span_id for span in spans.values()}) == 5
    assert "secret" not in str(spans)


def test_an_attempt_after_which_the_job_goes_on_tells_nothing_of_its_end() -> None:
    spans = by_name(of_attempt(attempt(outcome=None, end="released", first_ns=None)))

    assert set(spans) == {"queued", "attempt", "prefill"}
    assert spans["attempt"].attributes["packtrain.end"] == "released"


def test_of_an_error_only_its_code_is_told() -> None:
    failed = Outcome(state=JobState.FAILED, error={"code": "prompt_too_long", "message": "secret"})
    spans = by_name(of_attempt(attempt(outcome=failed)))

    assert (spans["job"].error, spans["attempt"].error) == ("prompt_too_long",) * 2
    assert "secret" not in str(spans)


def test_an_attempt_that_was_lost_is_told_by_who_finds_it() -> None:
    lost = JobStatus(
        id=JOB, state=JobState.QUEUED, model="m", epoch=1, submitted_ms=5, started_ms=11, cause=Cause(reason="gone"),
        traceparent=PARENT,
    )  # fmt: skip
    dead = lost.model_copy(update={"state": JobState.DEAD, "finished_ms": 30})
    (alone,) = of_reaped(lost, now_ms=30)
    first = by_name(of_attempt(attempt()))["attempt"]

    assert (alone.name, alone.error) == ("attempt", "instance_lost")
    assert (alone.start_ns, alone.end_ns) == (11_000_000, 30_000_000)
    assert alone.span_id == first.span_id, "who wakes up too late tells the same span"
    assert [(span.name, span.error) for span in of_reaped(dead, now_ms=30)] == [
        ("attempt", "instance_lost"), ("job", "dead"),
    ]  # fmt: skip


def test_a_job_that_expires_in_the_queue_has_no_attempt() -> None:
    expired = JobStatus(id=JOB, state=JobState.EXPIRED, model="m", submitted_ms=5, finished_ms=9)
    (alone,) = of_reaped(expired, 9)

    assert (alone.name, alone.start_ns, alone.end_ns, alone.error) == ("job", 5_000_000, 9_000_000, "expired")


@pytest.mark.parametrize(
    ("env", "is_on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
    ],
)
def test_standard_variables_switch_it_on(env: dict[str, str], is_on: bool) -> None:
    assert is_asked_for(env) is is_on


def test_spans_are_sent_as_opentelemetry_has_them_unless_the_door_records_none() -> None:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing = Tracing("packtrain-test", exporter, {"node": "n1"})
    for parent in (PARENT, f"00-{TRACE}-{SPAN}-00"):
        tracing.send(trace_of(JOB, parent), lambda parent=parent: of_attempt(attempt(traceparent=parent)))  # type: ignore[misc]
    tracing.send(trace_of(JOB, PARENT), lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    tracing.close()
    sent = exporter.get_finished_spans()
    job = next(span for span in sent if span.name == "job")

    assert len(sent) == 5
    assert {span.context.trace_id for span in sent if span.context} == {int(TRACE, 16)}
    assert job.parent
    assert job.parent.span_id == int(SPAN, 16)
    assert job.resource.attributes["service.name"] == "packtrain-test"
    assert job.resource.attributes["packtrain.node"] == "n1"


def test_nothing_of_opentelemetry_is_loaded_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from packtrain.broker.tracing import start_tracing; from packtrain.broker import trace_context;"
        "assert start_tracing('x') is None; assert trace_context.current() == '';"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    assert trace_context.HEADER == "traceparent"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": ""})
