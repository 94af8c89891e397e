"""A collector of traces for tests: takes OTLP over HTTP, as exporters send it, and keeps the spans."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True)
class Received:
    """A span as it came."""

    service: str
    name: str
    trace: str
    span: str
    parent: str
    start_ns: int
    end_ns: int
    attributes: dict[str, object]
    is_error: bool


@dataclass
class Collector:
    """What came."""

    url: str
    spans: list[Received] = field(default_factory=list)
    raw: bytes = b""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, trace: str) -> list[Received]:
        """Spans of one trace, in the order of their beginnings."""
        with self.lock:
            return sorted((span for span in self.spans if span.trace == trace), key=lambda span: span.start_ns)

    def take(self, body: bytes) -> None:
        """Keep what an exporter sent."""
        request = ExportTraceServiceRequest.FromString(body)
        with self.lock:
            self.raw += body
            for resource in request.resource_spans:
                about = {each.key: each.value.string_value for each in resource.resource.attributes}
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    told = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
                    self.spans.append(
                        Received(
                            about["service.name"], span.name, span.trace_id.hex(), span.span_id.hex(),
                            span.parent_span_id.hex(), span.start_time_unix_nano, span.end_time_unix_nano, told,
                            span.status.code == 2,
                        )
                    )  # fmt: skip


@contextmanager
def collector() -> Iterator[Collector]:
    """One on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            found.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
