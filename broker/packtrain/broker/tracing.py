"""Sends spans by OTLP, where OpenTelemetry is installed (`packtrain[otel]`) and its standard variables ask for it.

`OTEL_EXPORTER_OTLP_ENDPOINT` switches it on; the other `OTEL_*` variables are read by OpenTelemetry itself: sampler,
headers, service name, queue. Without them this imports nothing, and a job costs no more than a field in its record.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from packtrain.broker.job_spans import Span
from packtrain.broker.trace_context import JobTrace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

#: Any of them says where spans go.
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
#: How long the last spans of a process that ends may take, ms.
FLUSH_MS = 3000


def is_asked_for(env: Mapping[str, str]) -> bool:
    """Whether these variables switch tracing on.

    >>> is_asked_for({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}), is_asked_for({})
    (True, False)
    """
    exporter = env.get("OTEL_TRACES_EXPORTER", "")
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter not in ("", "otlp"):
        return False
    return exporter == "otlp" or any(env.get(name) for name in _ENDPOINTS)


def start_tracing(service: str, **about: str) -> Tracing | None:
    """Begin to send spans of this process; None: nobody asks for them, or OpenTelemetry is not installed.

    Args:
        service: Of this process, where OTEL_SERVICE_NAME does not say.
        about: Attributes of it, by their names without `packtrain.`.
    """
    if not is_asked_for(os.environ):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        logger.warning(
            "OTEL_* variables ask for traces, and OpenTelemetry is not installed; pip install 'packtrain[otel]'",
            extra={"event": "tracing.missing"},
        )
        return None
    return Tracing(service, OTLPSpanExporter(), about)


class Tracing:
    """Sends spans, in batches, from a thread of its own. Safe to share between threads; nothing here raises or blocks.

    Args:
        exporter: Of OpenTelemetry's SDK.
    """

    def __init__(self, service: str, exporter: SpanExporter, about: Mapping[str, str] | None = None) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        named = {f"packtrain.{name}": value for name, value in (about or {}).items()}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            named[SERVICE_NAME] = service
        self._resource = Resource.create(named)
        self._sampler = TracerProvider(resource=self._resource, shutdown_on_exit=False).sampler  # as OTEL_* have it
        self._processor = BatchSpanProcessor(exporter)
        self._scope = InstrumentationScope("packtrain")

    def is_sampled(self, trace: JobTrace) -> bool:
        """Whether a job's trace is recorded: as its door has decided, else by the sampler, alike in every process."""
        if trace.is_sampled is not None:
            return trace.is_sampled
        return bool(self._sampler.should_sample(None, trace.trace_id, "job").decision.is_sampled())  # type: ignore[no-untyped-call]

    def send(self, trace: JobTrace, spans: Callable[[], Iterable[Span]]) -> None:
        """Send spans of a trace, if it is recorded."""
        try:
            if self.is_sampled(trace):
                for span in spans():
                    self._send(trace.trace_id, span)
        except Exception as error:  # a defect here must not cost a job its end
            logger.warning("A span is lost: %r", error, extra={"event": "tracing.failed"})

    def close(self) -> None:
        """Send what is left, at most for `FLUSH_MS`."""
        self._processor.force_flush(FLUSH_MS)

    def _send(self, trace_id: int, span: Span) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
        from opentelemetry.trace.status import Status, StatusCode

        flags = TraceFlags(TraceFlags.SAMPLED)
        parent = SpanContext(trace_id, span.parent_id, True, flags) if span.parent_id else None
        self._processor.on_end(
            ReadableSpan(
                name=span.name,
                context=SpanContext(trace_id, span.span_id, False, flags),
                parent=parent,
                resource=self._resource,
                attributes={**span.attributes, **({"error.type": span.error} if span.error else {})},
                kind=SpanKind.SERVER if span.is_server else SpanKind.INTERNAL,
                status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
                start_time=span.start_ns,
                end_time=max(span.start_ns, span.end_ns),
                instrumentation_scope=self._scope,
            )
        )
