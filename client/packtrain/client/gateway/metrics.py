"""`/metrics` for Prometheus: the requests of this gateway, and the fleet behind it as `metrics_fleet` tells it.

Names are vLLM's with our prefix where it has such a figure, so that dashboards can be taken over. What a gateway counts
is its own: sum over them. A path stands in a label only as the pattern that it matched, a model only when jobs of it
were taken.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterable
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from packtrain.broker.errors import BrokerUnavailable
from packtrain.broker.tally_store import Counted, Counters
from packtrain.client.gateway.access import Access
from packtrain.client.gateway.failures import Refused
from packtrain.client.gateway.fleet_view import FleetView, View
from packtrain.client.gateway.metrics_fleet import fleet_metrics
from packtrain.client.openai import Fault

_STREAMS = (b"text/event-stream", b"application/x-ndjson")


class Metrics:
    """What one gateway counts."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # half of all lines, which nobody draws
        self.registry = CollectorRegistry()
        self.http_requests = Counter(
            "packtrain_http_requests",
            "Requests answered, by the pattern of their path, without /v1.",
            ["route", "method", "status", "model"],
            registry=self.registry,
        )
        self.streams_open = Gauge("packtrain_streams_open", "Streams being sent.", registry=self.registry)
        build = Gauge("packtrain_build_info", "Of this gateway.", ["version", "python"], registry=self.registry)
        build.labels(version("packtrain"), platform.python_version()).set(1)


def add_metrics(app: FastAPI, metrics: Metrics, view: FleetView, counters: Counters | None, access: Access) -> None:
    """Count every request of `app`, and serve `/metrics`, which needs a key wherever one is needed.

    Only administrators read there what other users have used.

    Args:
        counters: Of the fleet; None: there is no broker, as in tests.
    """
    router = APIRouter(tags=["Health"])

    async def look() -> tuple[View, Counted | None] | None:
        try:
            seen = await view.look()
            return seen, await asyncio.to_thread(counters.look) if counters else None
        except (BrokerUnavailable, RedisError):
            return None

    @router.get("/metrics", summary="Figures for Prometheus")
    async def scrape(request: Request) -> Response:
        caller = await access.caller(request)
        if caller.models is not None:
            message = "these figures name all models, and this API key is for some; use one that is for all"
            raise Refused(Fault(403, "invalid_request_error", "not_permitted", message, should_retry=False))
        fleet = CollectorRegistry()
        fleet.register(_Fleet(await look(), with_users=caller.is_admin))
        text = await asyncio.to_thread(generate_latest, fleet)  # of 200 models some 50,000 lines
        return Response(generate_latest(metrics.registry) + text, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    app.include_router(router)
    app.add_middleware(_Counting, metrics=metrics)


class _Fleet:
    """A look at a fleet as metrics; None: the broker is away."""

    def __init__(self, seen: tuple[View, Counted | None] | None, *, with_users: bool) -> None:
        self._seen = seen
        self._with_users = with_users

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry would collect once more to know the names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("packtrain_broker_up", "1: the broker answers.", value=float(self._seen is not None))
        if self._seen:
            yield from fleet_metrics(*self._seen, with_users=self._with_users)


class _Counting:
    """Counts requests, and streams while they are sent."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        status, is_stream = 0, False

        async def noted(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                kind = dict(message.get("headers", [])).get(b"content-type", b"")
                if kind.startswith(_STREAMS):
                    is_stream = True
                    self._metrics.streams_open.inc()
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            if is_stream:
                self._metrics.streams_open.dec()
            route = getattr(scope.get("route"), "path", "none").removeprefix("/v1")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.http_requests.labels(route, method, status or 499, state.get("model", "")).inc()


#: Others are made up by who sends them.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
