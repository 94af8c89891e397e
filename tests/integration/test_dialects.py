"""APIs of others before a real fleet with a scripted model, which answers each prompt with its text backwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from packtrain.broker.api_keys import ApiKeys
from packtrain.broker.states import JobState
from tests.support.fleets import Fleet, eventually, scripted_fleet
from tests.support.gateways import Gateway, gateway

pytestmark = pytest.mark.integration

TOOL_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    models: dict[str, dict[str, Any]] = {
        "small": {"n_slots": 4, "n_ctx": 512, "step_ms": 1},
        "slow": {"step_ms": 30},
        "idle": {},
        "vectors": {"embeds_only": True},
    }
    with scripted_fleet(tmp_path_factory.mktemp("fleet"), models) as running:
        yield running


@pytest.fixture(scope="module")
def door(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(fleet.url, tmp_path_factory.mktemp("door")) as running:
        yield running


@pytest.fixture(scope="module")
def secret(fleet: Fleet) -> str:
    """Of a key for the model `small`. Once there is one, every gateway of the fleet asks for keys."""
    with Redis.from_url(fleet.url, decode_responses=True) as redis:
        return ApiKeys(redis).create("ann", models=["small"])[1]


@pytest.fixture(scope="module")
def guarded(fleet: Fleet, secret: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(fleet.url, tmp_path_factory.mktemp("guarded")) as running:
        yield running


def said_by(answer: str) -> list[dict[str, str]]:
    """The turns that make the scripted model say this."""
    return [{"role": "user", "content": answer[::-1]}]


def eventually_cancelled(fleet: Fleet, job_id: str) -> None:
    eventually(lambda: fleet.client.job(job_id).status().state is JobState.CANCELLED, f"job {job_id} cancelled", 5)


class TestAnthropic:
    def ask(self, **fields: Any) -> dict[str, Any]:
        # Thinking that is switched off is closed in the prompt, which this model would repeat.
        return {"model": "small", "max_tokens": 400, "thinking": {"type": "adaptive"}, **fields}

    def tool(self) -> dict[str, Any]:
        return {"name": "weather", "input_schema": TOOL_SCHEMA}

    @pytest.mark.parametrize("prefix", ["", "/v1"])
    def test_a_message_is_answered(self, door: Gateway, prefix: str) -> None:
        said = door.answer(f"{prefix}/messages", self.ask(messages=said_by("<think>Hm.</think>Hello")))

        assert [part.get("thinking") or part["text"] for part in said["content"]] == ["Hm.", "Hello"]
        assert (said["stop_reason"], said["usage"]["output_tokens"]) == ("end_turn", 23)

    def test_the_stop_string_that_came_is_named(self, door: Gateway) -> None:
        said = door.answer("/v1/messages", self.ask(messages=said_by("one, two"), stop_sequences=["!", ","]))

        assert (said["content"][0]["text"], said["stop_reason"], said["stop_sequence"]) == ("one", "stop_sequence", ",")

    def test_a_stream_tells_the_same_as_a_whole_answer(self, door: Gateway) -> None:
        body = self.ask(messages=said_by("Look:" + CALL), tools=[self.tool()])
        whole = door.answer("/v1/messages", body)
        events = door.events("/v1/messages", body)

        assert all(event.event == event.json["type"] for event in events)
        told = [event.json for event in events if event.event != "ping"]
        texts: dict[int, str] = {}
        for event in told:
            if event["type"] == "content_block_delta":
                delta = event["delta"]
                texts[event["index"]] = texts.get(event["index"], "") + (delta.get("text") or delta["partial_json"])
        assert texts[0] == whole["content"][0]["text"] == "Look:"
        assert json.loads(texts[1]) == whole["content"][1]["input"] == {"city": "Rome"}
        assert told[-2]["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"
        assert (told[0]["type"], told[-1]["type"]) == ("message_start", "message_stop")

    def test_tokens_are_counted_as_the_answer_counts_them(self, door: Gateway) -> None:
        turns = {"model": "small", "messages": [{"role": "user", "content": "twelve bytes"}]}

        assert door.answer("/v1/messages/count_tokens", {**turns, "thinking": {"type": "adaptive"}}) == {
            "input_tokens": 12
        }

    def test_failures_have_the_shape_and_the_id(self, door: Gateway) -> None:
        for path, body in [("/v1/messages", self.ask()), ("/messages/count_tokens", {"model": "x", "messages": [{}]})]:
            response = door.post(path, body)
            error = response.json()

            assert (response.status_code, error["type"]) == (400, "error")
            assert error["error"]["type"] == "invalid_request_error"
            assert error["request_id"] == response.headers["request-id"]

    def test_what_can_fail_early_fails_before_the_stream(self, door: Gateway) -> None:
        messages = [{"role": "user", "content": "x" * 600}]
        refused = door.post("/v1/messages", self.ask(messages=messages, stream=True))

        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")

    def test_a_failure_in_a_stream_is_its_last_event(self, door: Gateway) -> None:
        slow = {"model": "slow", "messages": said_by("gnol!"), "max_run": 0.7}
        events = door.events("/v1/messages", self.ask(**slow))

        assert "content_block_delta" in {event.event for event in events}
        assert events[-1].json["error"]["type"] == "timeout_error"

    def test_who_hangs_up_cancels(self, fleet: Fleet, door: Gateway) -> None:
        with door.streaming("/v1/messages", self.ask(model="slow", messages=said_by("gnol!"))) as events:
            job_id = next(event.json["message"]["id"] for event in events if event.event == "message_start")

        eventually_cancelled(fleet, job_id.removeprefix("msg_"))


class TestResponses:
    @pytest.mark.parametrize("prefix", ["", "/v1"])
    def test_a_text_is_answered(self, door: Gateway, prefix: str) -> None:
        said = door.answer(f"{prefix}/responses", {"model": "small", "input": "olleH"})

        assert (said["status"], said["output"][0]["content"][0]["text"]) == ("completed", "Hello")

    def test_a_stream_builds_the_response_it_ends_with(self, door: Gateway) -> None:
        tool = {"type": "function", "name": "weather", "parameters": TOOL_SCHEMA}
        body = {"model": "small", "input": said_by("<think>Hm.</think>Look:" + CALL), "tools": [tool]}
        whole = door.answer("/v1/responses", body)
        events = door.events("/v1/responses", body)

        assert all(event.event == event.json["type"] for event in events)
        assert [event.json["sequence_number"] for event in events] == list(range(len(events)))
        built = [event.json["item"] for event in events if event.event == "response.output_item.done"]
        assert events[-1].json["response"]["output"] == built
        assert [item["type"] for item in built] == ["reasoning", "message", "function_call"]
        assert [without_ids(item) for item in whole["output"]] == [without_ids(item) for item in built]

    def test_failures_have_openais_shape(self, door: Gateway) -> None:
        response = door.post("/v1/responses", {"model": "small", "input": "x", "previous_response_id": "resp_1"})

        assert response.status_code == 400
        assert (
            response.json()["error"].items() >= {"param": "previous_response_id", "code": "invalid_parameter"}.items()
        )

    def test_a_failure_in_a_stream_is_its_last_event(self, door: Gateway) -> None:
        events = door.events("/v1/responses", {"model": "slow", "input": "!long", "max_run": 0.7})

        failed = events[-1].json
        assert (failed["type"], failed["response"]["error"]["code"]) == ("response.failed", "job_expired")
        assert failed["response"]["output"][0]["content"][0]["text"].startswith("gnol!")

    def test_who_hangs_up_cancels(self, fleet: Fleet, door: Gateway) -> None:
        with door.streaming("/v1/responses", {"model": "slow", "input": "!long"}) as events:
            job_id = next(event.json["response"]["id"] for event in events if event.event == "response.created")

        eventually_cancelled(fleet, job_id.removeprefix("resp_"))


class TestOllama:
    def lines(self, door: Gateway, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """What a stream says: each line is an object, also the last."""
        response = door.post(path, body)
        assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
        assert response.text.endswith("\n")
        return [json.loads(line) for line in response.text.split("\n")[:-1]]

    def test_a_chat_streams_lines(self, door: Gateway) -> None:
        tool = {"type": "function", "function": {"name": "weather", "parameters": TOOL_SCHEMA}}
        body = {"model": "small:latest", "messages": said_by("<think>Hm.</think>Look:" + CALL), "tools": [tool]}
        *told, last = self.lines(door, "/api/chat", body)
        whole = door.answer("/api/chat", {**body, "stream": False})

        for name in ("content", "thinking"):
            assert "".join(line["message"].get(name, "") for line in told) == whole["message"][name]
        (call,) = [call for line in told for call in line["message"].get("tool_calls", ())]
        assert call["function"] == whole["message"]["tool_calls"][0]["function"]
        assert call["function"]["arguments"] == {"city": "Rome"}
        assert (last["done"], last["done_reason"], whole["model"]) == (True, "stop", "small:latest")
        assert last["eval_count"] == whole["eval_count"] > 0

    def test_a_text_is_generated(self, door: Gateway) -> None:
        said = [
            door.answer("/api/generate", {"model": "small", "prompt": "olleH", "raw": raw, "stream": False})
            for raw in (False, True)
        ]

        assert [answer["response"] for answer in said] == ["Hello", "Hello"]

    def test_texts_are_embedded(self, door: Gateway) -> None:
        new = door.answer("/api/embed", {"model": "vectors", "input": ["a", "b"]})
        old = door.answer("/api/embeddings", {"model": "vectors", "prompt": "b"})

        assert new["embeddings"][1] == old["embedding"]
        assert [len(vector) for vector in new["embeddings"]] == [8, 8]

    def test_a_model_is_loaded_listed_and_unloaded(self, fleet: Fleet, door: Gateway) -> None:
        def running() -> list[str]:
            return [entry["name"] for entry in door.http.get("/api/ps").json()["models"]]

        assert door.answer("/api/generate", {"model": "idle"})["done_reason"] == "load"
        eventually(lambda: "idle:latest" in running(), "the model loaded")
        assert door.answer("/api/chat", {"model": "idle", "messages": [], "keep_alive": 0})["done_reason"] == "unload"
        eventually(lambda: "idle:latest" not in running(), "the model unloaded")

    def test_models_are_listed_and_shown(self, door: Gateway) -> None:
        listed = door.http.get("/api/tags").json()["models"]
        shown = door.answer("/api/show", {"model": "small:latest"})

        assert {"small:latest", "vectors:latest"} <= {entry["model"] for entry in listed}
        assert shown["capabilities"] == ["completion", "tools"]

    def test_clients_find_the_gateway(self, door: Gateway) -> None:
        assert (door.http.get("/").text, door.http.head("/").status_code) == ("Ollama is running", 200)
        assert door.http.get("/api/version").json().keys() == {"version", "packtrain"}

    @pytest.mark.parametrize(
        ("method", "path", "body", "status"),
        [
            ("POST", "/api/chat", {"model": "nope", "messages": [{"role": "user", "content": "x"}]}, 404),
            ("POST", "/api/chat", {"messages": []}, 400),
            ("POST", "/api/show", {"model": "nope"}, 404),
            ("POST", "/api/show", {}, 400),
            ("POST", "/api/pull", {"model": "small"}, 501),
            ("DELETE", "/api/delete", {"model": "small"}, 501),
            ("GET", "/api/nope", {}, 404),
        ],
    )
    def test_failures_are_one_text(
        self, door: Gateway, method: str, path: str, body: dict[str, Any], status: int
    ) -> None:
        response = door.http.request(method, path, json=body)

        assert (response.status_code, response.json().keys()) == (status, {"error"})

    def test_a_failure_in_a_stream_is_its_last_line(self, door: Gateway) -> None:
        body = {"model": "slow", "messages": [{"role": "user", "content": "!long"}], "max_run": 0.7}
        *told, last = self.lines(door, "/api/chat", body)

        assert told
        assert last.keys() == {"error"}

    def test_who_hangs_up_cancels(self, fleet: Fleet, door: Gateway) -> None:
        body = {"model": "slow", "prompt": "!long"}
        with door.http.stream("POST", "/api/generate", json=body) as response:
            job_id = response.headers["x-packtrain-job"]

        eventually_cancelled(fleet, job_id)


class TestTokens:
    @pytest.mark.parametrize("prefix", ["", "/v1"])
    def test_a_text_is_its_tokens_and_they_are_the_text(self, door: Gateway, prefix: str) -> None:
        said = door.answer(f"{prefix}/tokenize", {"model": "small", "content": "aé", "with_pieces": True})
        tokens = [token["id"] for token in said["tokens"]]

        assert said["tokens"][1:] == [{"id": 0xC3, "piece": [0xC3]}, {"id": 0xA9, "piece": [0xA9]}]
        assert door.answer(f"{prefix}/detokenize", {"model": "small", "tokens": tokens})["content"] == "aé"

    def test_of_several_models_one_has_to_be_named(self, door: Gateway) -> None:
        response = door.post("/tokenize", {"content": "a"})

        assert (response.status_code, response.json()["error"]["param"]) == (400, "model")


class TestKeys:
    """Every API asks for keys, and keeps to what they may. The last class: the tests before send none."""

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/messages", {"max_tokens": 9, "messages": said_by("Hello")}),
            ("/v1/messages/count_tokens", {"messages": said_by("Hello")}),
            ("/v1/responses", {"input": "olleH"}),
            ("/api/chat", {"messages": said_by("Hello")}),
            ("/api/generate", {"prompt": "olleH"}),
            ("/api/generate", {}),
            ("/api/show", {}),
            ("/tokenize", {"content": "a"}),
            ("/detokenize", {"tokens": [97]}),
        ],
    )
    def test_a_key_opens_its_own_models_only(
        self, guarded: Gateway, secret: str, path: str, body: dict[str, Any]
    ) -> None:
        with_key = {"x-api-key": secret}
        answers = [
            guarded.post(path, {"model": "small", **body}),
            guarded.post(path, {"model": "slow", **body}, **with_key),
            guarded.post(path, {"model": "small", **body}, **with_key),
        ]

        assert [answer.status_code for answer in answers] == [401, 404, 200]
        if path.startswith("/v1/messages"):
            kinds = [answer.json()["error"]["type"] for answer in answers[:2]]
            assert kinds == ["authentication_error", "not_found_error"]

    def test_models_are_listed_for_those_who_may_use_them(self, guarded: Gateway, secret: str) -> None:
        listed = guarded.http.get("/api/tags", headers={"authorization": f"Bearer {secret}"}).json()["models"]

        assert [entry["name"] for entry in listed] == ["small:latest"]
        assert guarded.http.get("/api/tags").status_code == guarded.http.get("/api/ps").status_code == 401

    def test_unloading_is_for_administrators(self, guarded: Gateway, secret: str) -> None:
        response = guarded.post("/api/generate", {"model": "small", "keep_alive": 0}, **{"x-api-key": secret})

        assert (response.status_code, response.json().keys()) == (403, {"error"})


def without_ids(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}
