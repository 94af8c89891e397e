"""The trace of a request: taken from its `traceparent` and passed on to its jobs, and a span of it where asked for."""

from __future__ import annotations

import secrets
import time
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from packtrain.broker.job_spans import Span
from packtrain.broker.trace_context import CURRENT, HEADER, JobTrace, made, parse
from packtrain.broker.tracing import Tracing


class Traces:
    """Middleware. Without tracing a request's trace is only passed on: who runs the job may still send spans."""

    def __init__(self, app: ASGIApp, tracing: Tracing | None) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":  # nothing else hands in jobs
            await self._app(scope, receive, send)
            return
        came_with = parse(dict(scope["headers"]).get(HEADER.encode(), b"").decode("latin-1"))
        if self._tracing is None:
            CURRENT.set(came_with)
            await self._app(scope, receive, send)
            return
        trace = _begin(came_with)
        is_sampled = self._tracing.is_sampled(trace)
        CURRENT.set(made(trace.trace_id, trace.span_id, is_sampled=is_sampled))
        start_ns, status = time.time_ns(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._tracing.send(trace, partial(_spans, trace, scope, start_ns, status))


def _begin(came_with: str) -> JobTrace:
    """The trace that a request's own span is part of, with the id of that span."""
    own = secrets.randbits(63) + 1
    if not came_with:
        return JobTrace(secrets.randbits(127) + 1, own)
    _, trace, parent, flags = came_with.split("-")
    return JobTrace(int(trace, 16), own, int(parent, 16), flags == "01")


def _spans(trace: JobTrace, scope: Scope, start_ns: int, status: int) -> list[Span]:
    route = getattr(scope.get("route"), "path", "none")
    about = {"http.request.method": scope["method"], "http.route": route, "http.response.status_code": status or 499}
    error = str(status) if status >= 500 else ""
    return [
        Span(
            f"{scope['method']} {route}", trace.span_id, trace.parent_id, start_ns, time.time_ns(), about, error,
            is_server=True,
        )
    ]  # fmt: skip
