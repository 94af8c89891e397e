"""Traces of a real fleet, sent to a real collector: one for each job, from the door to the last token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from packtrain.broker import trace_context
from tests.support.fleets import Fleet, eventually, scripted_fleet, until_first_text
from tests.support.gateways import Gateway, gateway
from tests.support.otlp import Collector, Received, collector

pytestmark = pytest.mark.integration

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "zanzibar"


@dataclass(frozen=True)
class Scene:
    """A fleet that sends traces, a gateway before it, and who takes them."""

    fleet: Fleet
    door: Gateway
    collector: Collector

    def spans(self, trace: str, *names: str) -> list[Received]:
        """Of a trace, once spans of these names have come."""
        wanted = Counter(names)
        eventually(lambda: wanted <= Counter(span.name for span in self.collector.of(trace)), f"spans {names}")
        return self.collector.of(trace)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("traces")
    models = {"m1": {"n_slots": 2, "n_ctx": 256}, "slow": {"n_slots": 1, "n_ctx": 4096, "step_ms": 20}}
    with collector() as taken:
        at, delay = taken.url, "100"
        with (
            scripted_fleet(folder, models, OTEL_EXPORTER_OTLP_ENDPOINT=at, OTEL_BSP_SCHEDULE_DELAY=delay) as fleet,
            gateway(fleet.url, folder, OTEL_EXPORTER_OTLP_ENDPOINT=at, OTEL_BSP_SCHEDULE_DELAY=delay) as door,
        ):
            yield Scene(fleet, door, taken)


def test_a_request_and_its_job_are_one_trace_under_that_of_its_client(scene: Scene) -> None:
    asked = {"model": "m1", "prompt": f"{SECRET} abc", "stream": True}
    scene.door.chunks("/v1/completions", asked, traceparent=f"00-{TRACE}-{SPAN}-01")
    spans = {span.name: span for span in scene.spans(TRACE, "POST /completions", "job", "decode", "prefill")}

    assert set(spans) == {"POST /completions", "job", "queued", "attempt", "prefill", "decode"}
    request, job = spans["POST /completions"], spans["job"]
    assert request.parent == SPAN
    assert job.parent == request.span
    assert {spans["queued"].parent, spans["attempt"].parent} == {job.span}
    assert {spans["prefill"].parent, spans["decode"].parent} == {spans["attempt"].span}
    assert (request.service, job.service) == ("packtrain-gateway", "packtrain-instance")
    assert request.attributes["http.response.status_code"] == 200
    assert job.attributes["gen_ai.request.model"] == "m1"
    assert job.attributes["gen_ai.usage.output_tokens"]
    assert job.start_ns <= spans["attempt"].start_ns <= spans["decode"].start_ns <= job.end_ns
    assert request.start_ns - 5_000_000 <= job.start_ns  # the broker's clock has whole milliseconds
    assert not any(span.is_error for span in spans.values())


def test_a_job_of_a_program_without_traces_is_one_of_its_own(scene: Scene) -> None:
    job = scene.fleet.client.submit("m1", f"{SECRET} abc")
    job.result()

    found = {span.name: span for span in scene.spans(job.id, "job", "attempt", "queued", "prefill", "decode")}
    assert found["job"].parent == ""


def test_what_a_trace_does_not_record_is_not_sent(scene: Scene) -> None:
    quiet = "1" + TRACE[1:]
    scene.door.answer("/v1/completions", {"model": "m1", "prompt": "abc"}, traceparent=f"00-{quiet}-{SPAN}-00")
    last = scene.fleet.client.submit("m1", "abc")
    last.result()
    scene.spans(last.id, "job")

    assert scene.collector.of(quiet) == []


def test_an_attempt_whose_instance_was_killed_is_in_the_trace_beside_the_one_that_went_on(scene: Scene) -> None:
    token = trace_context.CURRENT.set(f"00-{'2' + TRACE[1:]}-{SPAN}-01")
    job = scene.fleet.client.submit("slow", f"!long {SECRET}", max_tokens=300)
    trace_context.CURRENT.reset(token)
    until_first_text(job)
    scene.fleet.kill(scene.fleet.instance("slow").pid)
    job.result()
    spans = scene.spans("2" + TRACE[1:], "attempt", "attempt", "queued", "job")
    lost, went_on = (span for span in spans if span.name == "attempt")

    assert lost.is_error
    assert lost.attributes["error.type"] == "instance_lost"
    assert lost.service in ("packtrain-agent", "packtrain-coordinator")
    assert not went_on.is_error
    assert (lost.attributes["packtrain.attempt"], went_on.attributes["packtrain.attempt"]) == (1, 2)
    again = [span for span in spans if span.name == "queued"][-1]
    assert lost.end_ns - 50_000_000 <= again.start_ns <= again.end_ns == went_on.start_ns
    assert lost.parent == went_on.parent == next(span.span for span in spans if span.name == "job")


def test_no_span_holds_what_was_asked(scene: Scene) -> None:
    assert scene.collector.raw
    assert SECRET.encode() not in scene.collector.raw
