"""The gateway as OpenAI's clients meet it: answers, streams, errors, and what becomes of jobs whose client has left."""

from __future__ import annotations

import base64
import json
import signal
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from packtrain.broker.outcome import JobStatus
from packtrain.broker.states import JobState
from tests.support.fleets import Fleet, eventually, scripted_fleet
from tests.support.gateways import Gateway, Sent, gateway

pytestmark = pytest.mark.integration

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
#: The scripted model answers with the prompt read backwards: this one makes it call a tool.
CALLS = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'[::-1]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@dataclass
class Door:
    fleet: Fleet
    gateway: Gateway
    small: Gateway  # one that takes little: its queues, bodies and waits are short

    def state(self, job_id: str) -> JobState:
        return self.fleet.client.job(job_id).status().state

    def newest(self) -> str:
        return self.fleet.client.jobs(1)[0].id


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    home = tmp_path_factory.mktemp("home")
    models: dict[str, dict[str, Any]] = {
        "echo": {},
        "steps": {"step_ms": 10},
        "slow": {"step_ms": 50, "n_slots": 1},
        "late": {"step_ms": 1500},
    }
    quick = {"PACKTRAIN_HTTP_KEEPALIVE_S": "0.2"}
    narrow = {
        "PACKTRAIN_HTTP_MAX_BODY": "2048",
        "PACKTRAIN_MAX_WAITING": "1",
        "PACKTRAIN_HTTP_CORS": "https://a.example",
    }
    (home / "small").mkdir()
    with (
        scripted_fleet(home, models) as fleet,
        gateway(fleet.url, home, **quick) as whole,
        gateway(fleet.url, home / "small", **narrow) as small,
    ):
        for model in models:
            fleet.client.load(model)
        for model in models:
            fleet.instance(model)
        yield Door(fleet, whole, small)


def chat(text: str, model: str = "echo", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def fault(response: httpx2.Response, status: int) -> dict[str, Any]:
    """The error object of a response; all of its four keys have to be there."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    body = response.json()
    assert body.keys() == {"error"}
    assert {"message", "type", "param", "code"} <= body["error"].keys()
    return dict(body["error"])


def choice(chunk: dict[str, Any]) -> dict[str, Any]:
    (found,) = chunk["choices"]
    assert isinstance(found, dict)
    return found


# --- answers -------------------------------------------------------------------------------------------------------


def test_a_chat_and_a_completion(door: Door) -> None:
    said = door.gateway.answer(CHAT, chat("abc"))
    continued = door.gateway.answer(COMPLETIONS, {"model": "echo", "prompt": ["abc", "de"]})

    assert choice(said)["message"]["content"] == "cba"
    assert said["usage"]["total_tokens"] == 6
    assert [(one["index"], one["text"]) for one in continued["choices"]] == [(0, "cba"), (1, "ed")]


def test_prompts_may_be_token_ids(door: Door) -> None:
    """What evaluation harnesses send. A token of the scripted model is a byte."""
    ids, others = [*b"abc"], [*b"de"]
    scored = door.gateway.answer(
        COMPLETIONS, {"model": "echo", "prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 0}
    )
    several = door.gateway.answer(COMPLETIONS, {"model": "echo", "prompt": [ids, others]})
    by_ids = door.gateway.answer(EMBEDDINGS, {"model": "echo", "input": [ids, others]})
    by_text = door.gateway.answer(EMBEDDINGS, {"model": "echo", "input": ["abc", "de"]})

    assert choice(scored)["text"] == "abc"
    assert choice(scored)["logprobs"]["tokens"] == ["a", "b", "c"]
    assert [one["text"] for one in several["choices"]] == ["cba", "ed"]
    assert by_ids["data"] == by_text["data"]


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_a_stream_with_echo_has_the_logprobs_of_the_prompt_before_those_of_the_answer(
    door: Door, max_tokens: int
) -> None:
    asked = {"model": "echo", "prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": max_tokens, "n": 2, "seed": 1}

    whole = door.gateway.answer(COMPLETIONS, asked)["choices"]
    chunks = door.gateway.chunks(COMPLETIONS, asked)

    for choice in whole:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        told = {name: [one for part in parts if part["logprobs"] for one in part["logprobs"][name]] for name in names}
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert told == choice["logprobs"]
        assert "".join(told["tokens"]) == choice["text"]
        assert [part["finish_reason"] for part in parts] == [None, choice["finish_reason"]]


def test_bare_paths_work_for_who_forgets_the_v1(door: Door) -> None:
    assert choice(door.gateway.answer("/chat/completions", chat("abc")))["message"]["content"] == "cba"
    assert door.gateway.http.get("/models").json() == door.gateway.http.get("/v1/models").json()


def test_models_are_listed_and_shown(door: Door) -> None:
    listed = door.gateway.http.get("/v1/models").json()["data"]

    assert [model["id"] for model in listed] == ["echo", "late", "slow", "steps"]
    assert door.gateway.http.get("/v1/models/echo").json() == listed[0]
    assert listed[0]["context_length"] == 512
    error = fault(door.gateway.http.get("/v1/models/org/no:such"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_several_choices_are_several_jobs(door: Door) -> None:
    said = door.gateway.answer(CHAT, chat("abc", n=3, seed=1))

    assert [one["index"] for one in said["choices"]] == [0, 1, 2]
    assert {one["message"]["content"] for one in said["choices"]} == {"cba"}
    assert said["usage"]["prompt_tokens"] == 3
    assert len({job["seed"] for job in said["packtrain"]["jobs"]}) == 3


def test_vectors_in_both_encodings_are_the_same(door: Door) -> None:
    body = {"model": "echo", "input": ["slow", "two"]}
    floats = door.gateway.answer(EMBEDDINGS, body)
    coded = door.gateway.answer(EMBEDDINGS, {**body, "encoding_format": "base64"})

    assert [item["index"] for item in floats["data"]] == [0, 1]
    for plain, code in zip(floats["data"], coded["data"], strict=True):
        found = struct.unpack("<8f", base64.b64decode(code["embedding"]))
        assert found == pytest.approx(plain["embedding"], abs=1e-6)


def test_what_headers_say_of_a_job_counts_as_the_body(door: Door) -> None:
    response = door.gateway.post(CHAT, chat("abc"), **{"X-Packtrain-Lane": "bulk", "X-Packtrain-Deterministic": "true"})

    job = response.headers["x-packtrain-job"]
    assert response.json()["id"] == f"chatcmpl-{job}"
    assert response.json()["packtrain"]["jobs"][0]["receipt"]["numerics"] == "deterministic"


# --- streams -------------------------------------------------------------------------------------------------------


def test_a_stream_has_one_id_begins_with_the_role_and_has_no_empty_pieces(door: Door) -> None:
    text = "a man, a plan, a canal"
    chunks = door.gateway.chunks(CHAT, chat(text, "steps"))

    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all({"id", "object", "created", "model", "choices"} <= chunk.keys() for chunk in chunks)
    first, *middle, last = [choice(chunk) for chunk in chunks]
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert len(middle) > 2
    assert all(piece["delta"]["content"] and piece["finish_reason"] is None for piece in middle)
    assert "".join(piece["delta"]["content"] for piece in middle) == text[::-1]
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")


def test_usage_comes_only_when_asked_for_and_last(door: Door) -> None:
    silent = door.gateway.chunks(CHAT, chat("abc"))
    asked = door.gateway.chunks(CHAT, chat("abc", stream_options={"include_usage": True}))

    assert all(chunk["choices"] and "usage" not in chunk for chunk in silent)
    *others, usage = asked
    assert all(chunk["choices"] for chunk in others)
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 6


@pytest.mark.parametrize("cut", [{}, {"stop": "f"}, {"stop": "fe"}, {"max_tokens": 3}])
def test_a_stream_joined_is_the_whole(door: Door, cut: dict[str, Any]) -> None:
    body = {"model": "steps", "prompt": "abcdefgh", "logprobs": 1, **cut}
    whole = choice(door.gateway.answer(COMPLETIONS, body))
    pieces = [choice(chunk) for chunk in door.gateway.chunks(COMPLETIONS, body)]

    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    assert pieces[-1]["finish_reason"] == whole["finish_reason"]
    tokens = [token for piece in pieces if piece["logprobs"] for token in piece["logprobs"]["tokens"]]
    assert tokens == whole["logprobs"]["tokens"]


def test_choices_stream_side_by_side(door: Door) -> None:
    chunks = [choice(chunk) for chunk in door.gateway.chunks(CHAT, chat("abc def", "steps", n=3))]

    for index in range(3):
        mine = [piece for piece in chunks if piece["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(piece["delta"].get("content", "") for piece in mine) == "fed cba"
        assert mine[-1]["finish_reason"] == "stop"


def test_a_tool_call_streams_with_its_name_once(door: Door) -> None:
    whole = choice(door.gateway.answer(CHAT, chat(CALLS, "steps", tools=[WEATHER])))
    chunks = [choice(chunk) for chunk in door.gateway.chunks(CHAT, chat(CALLS, "steps", tools=[WEATHER]))]

    (call,) = whole["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
    pieces = [piece for chunk in chunks for piece in chunk["delta"].get("tool_calls", [])]
    assert [piece["index"] for piece in pieces] == [0] * len(pieces)
    assert [piece["function"].get("name") for piece in pieces] == ["weather", *[None] * (len(pieces) - 1)]
    assert [("id" in piece, "type" in piece) for piece in pieces[1:]] == [(False, False)] * (len(pieces) - 1)
    assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]
    assert whole["finish_reason"] == chunks[-1]["finish_reason"] == "tool_calls"


def test_a_stream_that_waits_is_kept_open_by_comments(door: Door) -> None:
    with door.gateway.streaming(CHAT, chat("ab", "late")) as events:
        seen = list(events)

    assert Sent(comment="waiting") in seen
    assert "".join(choice(e.json)["delta"].get("content", "") for e in seen if e.data.startswith("{")) == "ba"


def test_who_asks_hears_its_place_in_the_queue(door: Door) -> None:
    blocked = [door.fleet.client.submit("slow", "!long x", raw=True, max_tokens=400) for _ in range(2)]
    try:
        body = chat("ab", "slow", stream_options={"include_queue": True})
        with door.gateway.streaming(CHAT, body) as events:
            told = next(event for event in events if event.event == "packtrain.queue").json
    finally:
        for job in blocked:
            job.cancel()

    assert told["state"] == "QUEUED"
    assert told["ahead"] == 1
    assert {"id", "reason", "position", "eta_s"} <= told.keys()


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (chat("x", "nobody"), 404, "model_not_found", "model"),
        (chat("x", "Nobody/Has:It"), 404, "model_not_found", "model"),
        (chat("x" * 600), 400, "context_length_exceeded", None),
        (chat("x" * 3_000_000), 400, "context_length_exceeded", None),
        (chat("x" * 5_000_000), 400, "invalid_parameter", None),
        (chat("x", temperature=9), 400, "invalid_parameter", "temperature"),
        (chat(""), 400, "prompt_empty", None),
        (chat("!fail"), 500, "job_failed", None),
        (chat("x", response_format={"type": "json_object"}), 400, "invalid_parameter", "response_format"),
    ],
    ids=["unknown", "no-name", "long", "huge", "too-huge", "range", "empty", "failing", "form"],
)
def test_errors_have_their_own_status_in_streams_too(
    door: Door, body: dict[str, Any], status: int, code: str, param: str | None, stream: bool
) -> None:
    response = door.gateway.post(CHAT, {**body, "stream": stream})
    error = fault(response, status)

    assert error["code"] == code
    assert param is None or error["param"] == param
    if code == "model_not_found":
        assert "echo, late, slow, steps" in error["message"]


def test_what_goes_wrong_later_is_an_event_and_ends_the_stream(door: Door) -> None:
    *_, last = door.gateway.events(CHAT, chat("!fail", "late"))

    assert last.json["error"]["code"] == "job_failed"
    assert {"message", "type", "param"} <= last.json["error"].keys()


def test_a_full_queue_says_when_to_come_back(door: Door) -> None:
    running = [door.fleet.client.submit("slow", "!long x", raw=True, max_tokens=400)]
    eventually(lambda: running[0].status().state is JobState.RUNNING, "a job that runs")
    running.append(door.fleet.client.submit("slow", "x", raw=True))
    try:
        plain = door.small.post(CHAT, chat("x", "slow"))
        stream = door.small.post(CHAT, chat("x", "slow", stream=True))
        several = door.small.post(COMPLETIONS, {"model": "slow", "prompt": ["a", "b", "c"]})
        waiting = sum(door.fleet.client.waiting().values())
    finally:
        for job in running:
            job.cancel()

    for response in (plain, stream, several):
        error = fault(response, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert 1 <= int(response.headers["retry-after"]) <= 120
    assert waiting == 1  # none of those that were refused has left a job behind


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/", 405),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/v1/models/%ff%fe", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
    ],
)
def test_wrong_addresses_have_the_error_object_too(door: Door, method: str, path: str, status: int) -> None:
    response = door.gateway.http.request(method, path)

    fault(response, status)
    if status == 405:
        assert response.headers["allow"] in ("GET", "POST")


def test_head_is_get_without_the_body(door: Door) -> None:
    response = door.gateway.http.head("/v1/models")

    assert (response.status_code, response.content) == (200, b"")
    assert door.gateway.http.head("/v1/models/nobody").status_code == 404


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "echo", "seed": ' + b"9" * 5000 + b"}",
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:24]),
)
def test_bodies_that_are_no_requests(door: Door, content: bytes) -> None:
    response = door.gateway.http.post(CHAT, content=content)

    assert fault(response, 400)["type"] == "invalid_request_error"


def test_a_body_that_is_too_large_is_not_read(door: Door) -> None:
    whole = door.small.post(CHAT, chat("x" * 3000))
    pieces = door.small.http.post(CHAT, content=iter([b"x" * 1024] * 3))  # without a length

    for response in (whole, pieces):
        error = fault(response, 413)
        assert "PACKTRAIN_HTTP_MAX_BODY" in error["message"]


def test_web_pages_of_listed_origins_may_call(door: Door) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    listed = door.small.http.options(CHAT, headers={"Origin": "https://a.example", **asked})
    other = door.small.http.options(CHAT, headers={"Origin": "https://b.example", **asked})
    answer = door.small.post(CHAT, chat("abc"), Origin="https://a.example")

    assert listed.status_code == 200
    assert listed.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in other.headers
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


# --- clients that leave --------------------------------------------------------------------------------------------


def test_a_reader_that_leaves_cancels_its_job(door: Door) -> None:
    with door.gateway.http.stream("POST", CHAT, json=chat("!long x", "slow", stream=True)) as response:
        job = response.headers["x-packtrain-job"]
        assert sum(bool(line) for line, _ in zip(response.iter_lines(), range(5), strict=False)) > 1

    eventually(lambda: door.state(job) is JobState.CANCELLED, "a cancelled job", 2)


def test_a_stream_that_has_not_begun_is_cancelled_too(door: Door) -> None:
    before = door.newest()
    with pytest.raises(httpx2.ReadTimeout):
        door.gateway.http.post(CHAT, json=chat("!long x", "late", stream=True), timeout=0.5)

    job = door.newest()
    assert job != before
    eventually(lambda: door.state(job) is JobState.CANCELLED, "a cancelled job", 2)


def test_a_client_that_does_not_wait_for_its_answer_cancels_all_its_jobs(door: Door) -> None:
    before = door.newest()
    with pytest.raises(httpx2.ReadTimeout):
        door.gateway.http.post(CHAT, json=chat("!long x", "slow", n=3), timeout=0.5)

    jobs = [job.id for job in door.fleet.client.jobs(3)]
    assert before not in jobs
    eventually(lambda: {door.state(job) for job in jobs} == {JobState.CANCELLED}, "three cancelled jobs", 2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_with_a_key_waits_for_who_comes_back(door: Door, stream: bool) -> None:
    body = chat("abcdefghijklmnop", "slow", n=2, stream=stream)
    key = {"Idempotency-Key": f"key-{stream}"}
    if stream:
        with door.gateway.streaming(CHAT, body, **key) as events:
            assert next(events).data
        chunks = [choice(chunk) for chunk in door.gateway.chunks(CHAT, body, **key)]
        texts = ["".join(c["delta"].get("content", "") for c in chunks if c["index"] == index) for index in (0, 1)]
    else:
        with pytest.raises(httpx2.ReadTimeout):
            door.gateway.http.post(CHAT, json=body, headers=key, timeout=0.3)
        first = door.gateway.answer(CHAT, body, **key)
        assert door.gateway.answer(CHAT, body, **key)["choices"] == first["choices"]
        texts = [one["message"]["content"] for one in first["choices"]]
    assert texts == [body["messages"][0]["content"][::-1]] * 2


def test_a_key_that_was_used_for_another_request_is_a_conflict(door: Door) -> None:
    door.gateway.answer(CHAT, chat("abc", idempotency_key="twice"))
    response = door.gateway.post(CHAT, chat("other", idempotency_key="twice"))

    assert fault(response, 409)["code"] == "idempotency_conflict"
    assert response.headers["x-should-retry"] == "false"


def test_a_gateway_that_is_told_to_stop_finishes_its_streams(door: Door, tmp_path: Path) -> None:
    with gateway(door.fleet.url, tmp_path, PACKTRAIN_DRAIN_S="20") as leaving:
        with leaving.streaming(CHAT, chat("abcdefghij", "slow")) as events:
            first = next(events)
            leaving.process.terminate()
            rest = list(events)
        leaving.process.wait(10)

    assert first.json["choices"][0]["delta"]["role"] == "assistant"
    assert rest[-1].data == "[DONE]"
    assert leaving.process.returncode in (0, -signal.SIGTERM)  # uvicorn ends by the signal it was told by
    assert "Traceback" not in leaving.log.read_text()


def test_a_gateway_that_ends_before_its_requests_cancels_their_jobs_and_says_so(door: Door, tmp_path: Path) -> None:
    body = chat("x" * 400, "slow", n=3)
    with gateway(door.fleet.url, tmp_path, PACKTRAIN_DRAIN_S="1") as leaving, ThreadPoolExecutor(4) as callers:
        asked = [callers.submit(leaving.post, CHAT, body) for _ in range(4)]
        eventually(lambda: all(map(is_open, door.fleet.client.jobs(12))), "all jobs wait or run")
        jobs = door.fleet.client.jobs(12)
        leaving.process.terminate()
        answers = [each.result() for each in asked]
        leaving.process.wait(10)

    for answer in answers:
        assert fault(answer, 503)["code"] == "gateway_ends"
        assert answer.headers["retry-after"]
    eventually(lambda: {door.state(job.id) for job in jobs} == {JobState.CANCELLED}, "all jobs are cancelled")
    assert "Traceback" not in leaving.log.read_text()


def is_open(job: JobStatus) -> bool:
    return job.model == "slow" and not job.state.is_terminal


def test_nothing_unexpected_was_logged(door: Door) -> None:
    time.sleep(0.1)

    for each in (door.gateway, door.small):
        assert "Traceback" not in each.log.read_text()
