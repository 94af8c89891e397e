"""`/metrics` for Prometheus: what went through this gateway, and the fleet behind it as it is at the scrape.

Names are vLLM's with our prefix, so that dashboards can be taken over. What a gateway counts is its own: sum over them.
What it tells of the fleet (nodes, instances, what waits and runs) each gateway tells alike: take one, or the maximum.
Labels are bounded: a model stands in one only when jobs of it were taken, a path only as the pattern that it matched.
"""

from __future__ import annotations

import time
from collections import Counter as Count
from collections.abc import Iterable, Mapping, Sequence

from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from packtrain.broker.errors import BrokerUnavailable
from packtrain.broker.ids import model_of
from packtrain.broker.states import InstanceState
from packtrain.client.gateway.access import Access
from packtrain.client.gateway.failures import Refused
from packtrain.client.gateway.fleet_view import FleetView, View
from packtrain.client.openai import Fault
from packtrain.client.result import Result

#: A queue may hold a request for long, so these go far.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_STREAMS = (b"text/event-stream", b"application/x-ndjson")

Labels = tuple[str, ...]


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
        self.success = Counter(
            "packtrain_request_success", "Answers, by why they ended.", ["model", "finished_reason"],
            registry=self.registry,
        )  # fmt: skip
        self.broken = Counter(
            "packtrain_request_broken", "Requests whose jobs failed, or whose client left.", ["model"],
            registry=self.registry,
        )  # fmt: skip
        self.prompt_tokens = Counter("packtrain_prompt_tokens", "Tokens of prompts.", ["model"], registry=self.registry)
        self.generation_tokens = Counter(
            "packtrain_generation_tokens", "Tokens of answers.", ["model"], registry=self.registry
        )
        self.first_token_s = self._seconds(
            "packtrain_time_to_first_token_seconds", "From a job's submission to its first token, the queue included."
        )
        self.queue_s = self._seconds("packtrain_request_queue_time_seconds", "That a job waited for a slot.")
        self.latency_s = self._seconds("packtrain_e2e_request_latency_seconds", "That a request took in all.")

    def _seconds(self, name: str, meaning: str) -> Histogram:
        return Histogram(name, meaning, ["model"], buckets=_SECONDS, registry=self.registry)

    def over(self, model: str, took_s: float, results: Sequence[Result] | None) -> None:
        """A request is over; without results when not all of its jobs ended well."""
        if results is None:
            self.broken.labels(model).inc()
            return
        self.latency_s.labels(model).observe(took_s)
        for result in results:
            self.success.labels(model, result.finish_reason or "done").inc()
            self.prompt_tokens.labels(model).inc(result.usage.prompt_tokens)
            self.generation_tokens.labels(model).inc(result.usage.completion_tokens)
            queued_ms, first_ms = result.timings.queue_ms, result.timings.first_token_ms
            self.queue_s.labels(model).observe(queued_ms / 1000)
            if first_ms is not None:
                self.first_token_s.labels(model).observe((queued_ms + first_ms) / 1000)


def add_metrics(app: FastAPI, metrics: Metrics, view: FleetView, access: Access) -> None:
    """Count every request of `app`, and serve `/metrics`, which needs a key wherever one is needed."""
    router = APIRouter(tags=["Health"])

    @router.get("/metrics", summary="Figures for Prometheus")
    async def scrape(request: Request) -> Response:
        if (await access.caller(request)).models is not None:
            message = "these figures name all models, and this API key is for some; use one that is for all"
            raise Refused(Fault(403, "invalid_request_error", "not_permitted", message, should_retry=False))
        fleet = CollectorRegistry()
        try:
            fleet.register(_Fleet(await view.look()))
        except BrokerUnavailable:
            fleet.register(_Fleet(None))
        return Response(generate_latest(metrics.registry) + generate_latest(fleet), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    app.include_router(router)
    app.add_middleware(_Counting, metrics=metrics)


class _Fleet:
    """A view as metrics; None: the broker is away."""

    def __init__(self, view: View | None) -> None:
        self._view = view

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("packtrain_broker_up", "1: the broker answers.", value=float(self._view is not None))
        if self._view is None:
            return
        yield GaugeMetricFamily("packtrain_nodes", "Live nodes.", value=len(self._view.nodes))
        waiting, running, slots = Count[Labels](), Count[Labels](), Count[Labels]()
        for model in self._view.offered:  # so that a figure is there, and 0, before there is anything to count
            waiting[model, "interactive"] = waiting[model, "bulk"] = running[(model,)] = 0
        for (route, lane), jobs in self._view.waiting.items():
            waiting[model_of(route), lane] += jobs
        yield _family("packtrain_num_requests_waiting", "Jobs that wait.", ("model", "lane"), waiting)
        for instance in self._view.instances:
            if instance.state is InstanceState.READY:
                running[(instance.model,)] += instance.slots_used
                slots[(instance.model,)] += instance.n_slots
        yield _family("packtrain_num_requests_running", "Jobs that run.", ("model",), running)
        yield _family("packtrain_slots", "Jobs that could run at once in what is loaded.", ("model",), slots)
        living = (each for each in self._view.instances if not each.state.is_terminal)
        alive = Count[Labels]((each.model, each.state.lower()) for each in living)
        yield _family("packtrain_instances", "Loaded models, and those that come and go.", ("model", "state"), alive)


def _family(name: str, meaning: str, labels: Sequence[str], values: Mapping[Labels, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


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
        state["began_s"] = time.monotonic()
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
