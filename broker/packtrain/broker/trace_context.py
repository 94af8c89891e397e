"""Which trace a job belongs to: W3C's `traceparent`, taken from who hands the job in and kept in its record.

    00-<trace id, 32 hex digits>-<span id, 16>-<flags, 2>          flags 01: the trace is recorded

A job has a span of its own under that of its door, with an id that follows from the job's, so that every process can
hang its part under it without asking. A job that came without a trace is one: its id has as many digits as that of one.
"""

from __future__ import annotations

import hashlib
import re
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from packtrain.broker.ids import JobId

HEADER: Final = "traceparent"
#: Of what is done now in this thread or task; empty: no trace that we know of.
CURRENT: ContextVar[str] = ContextVar("traceparent", default="")

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class JobTrace:
    """Where the spans of one job hang."""

    trace_id: int
    span_id: int  # of the job's own span
    parent_id: int = 0  # of its door's; 0: it has none
    is_sampled: bool | None = None  # whether its door records it; None: nobody has decided


def parse(text: str | None) -> str:
    """A `traceparent` as we pass it on; empty: it is none.

    >>> parse("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01")
    '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    """
    found = _FORM.fullmatch((text or "").strip().lower()[:256])
    if not found:
        return ""
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace, 16) or not int(span, 16):
        return ""
    return made(int(trace, 16), int(span, 16), is_sampled=bool(int(flags, 16) & 1))


def made(trace_id: int, span_id: int, *, is_sampled: bool) -> str:
    """A `traceparent`."""
    return f"00-{trace_id:032x}-{span_id:016x}-{int(is_sampled):02x}"


def current() -> str:
    """That of what is done now: ours, else that of the program that uses us, if it has OpenTelemetry loaded."""
    if own := CURRENT.get():
        return own
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return made(context.trace_id, context.span_id, is_sampled=bool(context.trace_flags & 1))


def trace_of(job_id: JobId, traceparent: str) -> JobTrace:
    """The trace of a job that was handed in with this `traceparent`."""
    span_id = span_id_of(job_id)
    if not (found := parse(traceparent)):
        return JobTrace(int(job_id, 16) or 1, span_id)
    _, trace, parent, flags = found.split("-")
    return JobTrace(int(trace, 16), span_id, int(parent, 16), flags == "01")


def span_id_of(*names: object) -> int:
    """The id of a span that follows from what it is of."""
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") or 1
