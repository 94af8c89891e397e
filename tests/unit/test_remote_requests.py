"""What is sent to a remote server for a job, and what its words mean."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.chat import join_calls
from packtrain.broker.errors import InvalidParameter, InvalidRequest, PacktrainError, PromptTooLong, RemoteFailed
from packtrain.broker.job_spec import JobSpec
from packtrain.workers.chat.deltas import Delta
from packtrain.workers.remote.answers import Answer, BrokenAnswer, usage_of, vector_of
from packtrain.workers.remote.failures import Refusal, error_of, next_wait_s, refusal, retry_after_s
from packtrain.workers.remote.options import RemoteOptions
from packtrain.workers.remote.requests import request_of
from packtrain.workers.remote.turns import WINDOW_S, Turns

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
OPTIONS = RemoteOptions(url="https://api.example.com/v1", model="big-70b", key_env="BIG_KEY", retry_s=10)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


def chat(text: str = "hi", **fields: Any) -> JobSpec:
    return JobSpec.model_validate({"model": "far", "messages": [{"role": "user", "content": text}], **fields})


def sent(spec: JobSpec) -> dict[str, Any]:
    """The body, less what every chat has."""
    always = ("model", "messages", "stream", "stream_options")
    return {name: value for name, value in request_of(spec, "big-70b").body.items() if name not in always}


def test_only_what_a_job_says_is_sent() -> None:
    assert sent(chat()) == {}
    assert sent(chat(params={"temperature": 0, "top_k": 5, "penalty_last_n": 9, "stop": ["x"], "max_tokens": 3})) == {
        "temperature": 0.0, "top_k": 5, "repeat_last_n": 9, "stop": ["x"], "max_tokens": 3,
    }  # fmt: skip
    assert sent(chat(params={"logprobs": 2, "logit_bias": {5: -1}})) == {
        "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": -1.0},
    }  # fmt: skip
    assert sent(chat(reasoning="off", template_args={"thinking": False})) == {
        "reasoning_effort": "none", "chat_template_kwargs": {"thinking": False},
    }  # fmt: skip


def test_forms_tools_and_turns_are_in_openais_shape() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    assert sent(chat(params={"response_format": {"type": "json_schema", "schema": SCHEMA}})) == {
        "response_format": form
    }
    assert sent(chat(tools=[TOOL], parallel_tool_calls=False, tool_choice=TOOL | {"function": {"name": "f"}})) == {
        "tools": [TOOL | {"function": {"name": "f", "description": "", "parameters": SCHEMA}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False,
    }  # fmt: skip
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "b"},
    ]
    spec = JobSpec.model_validate({"model": "far", "messages": turns})
    assert request_of(spec, "big").body["messages"] == turns


def test_texts_and_vectors_have_requests_of_their_own() -> None:
    text = request_of(JobSpec(kind="complete", model="far", prompt="a", suffix="b"), "big")
    assert (text.path, text.body["prompt"], text.body["suffix"]) == ("/completions", "a", "b")
    vector = request_of(JobSpec(kind="embed", model="far", prompt="a", dimensions=5), "big")
    assert vector.body == {"model": "big", "input": "a", "encoding_format": "float", "dimensions": 5}


@pytest.mark.parametrize(
    "fields",
    [
        {"deterministic": True},
        {"kind": "count"},
        {"adapters": {"pirate": None}},
        {"params": {"prompt_logprobs": 1}},
        {"params": {"response_format": {"type": "grammar", "grammar": 'root ::= "a"'}}},
        {"params": {"response_format": {"type": "json_schema", "schema": SCHEMA, "prefix": "x"}}},
    ],
)
def test_what_no_such_server_can_do_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="answered by another server, which"):
        request_of(chat(**fields), "big")


# Answers.


def event(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> str:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return json.dumps({"model": "big-2026", "choices": choices, **more})


def test_an_answer_is_taken_apart() -> None:
    answer = Answer("chat")
    told = Delta()
    for data in (
        event({"role": "assistant", "content": ""}),
        event({"reasoning": "Hm."}),
        event({"content": "Yes"}),
        event({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}),
        event({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
        event({}, "tool_calls"),
        event(usage={"prompt_tokens": 5, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}),
    ):
        told = told + answer.take(data).delta

    assert (told.content, told.reasoning, answer.finish) == ("Yes", "Hm.", "stop")
    (call,) = join_calls(told.calls)
    assert (call.id, call.function.name, call.function.arguments) == ("c", "f", "{}")
    usage = usage_of(answer.usage, 9, OPTIONS.model_copy(update={"price_in": 1.0, "price_out": 2.0}))
    assert (usage.prompt_tokens, usage.completion_tokens, usage.reused_tokens) == (5, 4, 2)
    assert usage.cost == pytest.approx((5 + 8) / 1e6)
    answer.is_over()


def test_logprobs_come_as_ours_in_both_forms() -> None:
    likely = {"token": "a", "logprob": -0.5, "bytes": None}
    told = json.loads(event({"content": "a"}))
    told["choices"][0]["logprobs"] = {"content": [likely | {"id": 7, "top_logprobs": [likely]}]}
    (entry,) = Answer("chat").take(json.dumps(told)).logprobs
    assert (entry.token, entry.text, entry.logprob, entry.top[0].token) == (7, "a", -0.5, -1)

    lists = {"tokens": ["a", "b"], "token_logprobs": [None, -1], "top_logprobs": [None, {"c": -2, "b": -1}]}
    (entry,) = Answer("text").take(json.dumps({"choices": [{"text": "ab", "logprobs": lists}]})).logprobs
    assert (entry.text, [likely.text for likely in entry.top]) == ("b", ["b", "c"])


@pytest.mark.parametrize(
    "data",
    [
        "no json", "[]", "7", '{"choices": 5}', '{"choices": [5]}', '{"choices": [{"delta": 5}]}',
        '{"choices": [{"delta": {"content": 5}}]}', '{"choices": [{"delta": {"tool_calls": 5}}]}',
        '{"choices": [{"delta": {"tool_calls": [{"index": -1}]}}]}',
        '{"choices": [{"delta": {"tool_calls": [{"index": 1e9}]}}]}',
        '{"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {}}]}}]}',
        '{"choices": [{"delta": {}, "logprobs": {"content": [{"logprob": "x"}]}}]}', "[" * 100_000,
        '{"error": {"message": "out of memory"}}', '{"error": "out of memory"}',
    ],
)  # fmt: skip
def test_what_has_not_the_form_of_an_answer_is_broken(data: str) -> None:
    with pytest.raises(BrokenAnswer):
        Answer("chat").take(data)


NAMES = [
    "choices",
    "delta",
    "text",
    "content",
    "tool_calls",
    "index",
    "usage",
    "function",
    "name",
    "logprobs",
    "tokens",
]
LEAVES = st.none() | st.booleans() | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "data"]), inner)
)


@given(ANYTHING)
def test_no_answer_is_worse_than_broken(value: Any) -> None:
    for read in (Answer("chat").take, Answer("text").take, vector_of):
        try:
            read(json.dumps(value))
        except BrokenAnswer:
            continue


def test_an_answer_that_has_not_said_how_it_ends_breaks_off() -> None:
    answer = Answer("chat")
    answer.take(event({"content": "a"}))
    with pytest.raises(BrokenAnswer, match="breaks off"):
        answer.is_over()


def test_a_vector_has_length_one_and_bad_ones_are_none() -> None:
    data, usage = vector_of(json.dumps({"data": [{"embedding": [3, 0.0, 4]}], "usage": {"prompt_tokens": 2}}))
    assert np.frombuffer(data, "<f4") == pytest.approx([0.6, 0, 0.8])
    assert usage_of(usage, 0, OPTIONS).prompt_tokens == 2
    for bad in ([], ["a"], [0, 0], [True], "text", [1e400], None):
        with pytest.raises(BrokenAnswer):
            vector_of(json.dumps({"data": [{"embedding": bad}]}))


# Refusals.


def test_the_words_of_a_refusal_are_found_in_every_form_and_without_the_key() -> None:
    for body in (
        {"error": {"message": "no sk-1", "param": "top_k"}}, {"error": "no sk-1"}, {"detail": "no sk-1"},
        {"message": "no sk-1"}, "no sk-1", [{"error": {"message": "no sk-1"}}],
    ):  # fmt: skip
        text = body if isinstance(body, str) else json.dumps(body)
        assert refusal(400, {}, text.encode(), now=NOW, secret="sk-1").said == "no ***"
    long = {"error": {"message": "no", "type": "exceed_context_size_error", "code": 400}}
    assert refusal(400, {}, json.dumps(long).encode(), now=NOW).code == "exceed_context_size_error"
    assert refusal(500, {}, b"\xff\x00" * 5000, now=NOW).said.isprintable()
    assert refusal(500, {}, b"", now=NOW).said == "it said no more"


def test_a_server_that_says_whether_to_try_again_is_believed() -> None:
    assert not refusal(500, {"x-should-retry": "false"}, b"", now=NOW).is_temporary
    assert refusal(404, {"x-should-retry": "true"}, b"", now=NOW).is_temporary
    assert refusal(500, {}, b"", now=NOW).is_temporary


def test_an_error_event_says_what_it_would_have_been() -> None:
    for error, status in (
        ({"message": "no", "type": "invalid_request_error", "code": "fleet_loop"}, 400),
        ({"message": "no", "code": 503}, 503), ({"message": "no", "type": "server_error"}, None), ("no", None),
    ):  # fmt: skip
        with pytest.raises(BrokenAnswer, match="it said: no") as caught:
            Answer("chat").take(json.dumps({"error": error}))
        assert caught.value.status == status


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s({"retry-after": "1.5"}, NOW) == 1.5
    assert retry_after_s({"retry-after": "Sun, 29 Nov 2026 12:00:20 GMT"}, NOW) == 20
    assert retry_after_s({"retry-after": "Sun, 29 Nov 2026 11:00:00 GMT"}, NOW) == 0
    for nothing in ("", "soon", "nan", "inf", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"):
        assert retry_after_s({"retry-after": nothing}, NOW) is None
    assert retry_after_s({}, NOW) is None


def test_the_wait_is_what_the_server_asks_for_or_doubles_and_ends_with_the_bound() -> None:
    busy = Refusal("x", 429)
    assert next_wait_s(Refusal("x", 429, 7.0), 1, 0, 10, 0.5) == 7
    assert next_wait_s(Refusal("x", 429, 7.0), 1, 4, 10, 0.5) is None
    assert [next_wait_s(busy, tries, 0, 1000, 0) for tries in (1, 2, 3, 9)] == [0.5, 1, 2, 20]
    assert next_wait_s(Refusal("x", 429, 0.0), 2, 0, 1000, 0) == 1  # that is not asked for, but said without thinking
    waits = [next_wait_s(busy, 3, 0, 1000, random.random()) or 0 for _ in range(50)]
    assert 1 <= min(waits) < max(waits) <= 2
    for status in (400, 401, 404, 501):
        assert next_wait_s(Refusal("x", status), 1, 0, 10, 0) is None
    for later in (None, 408, 500, 529):
        assert next_wait_s(Refusal("x", later), 1, 0, 10, 0) is not None


@pytest.mark.parametrize(
    ("failed", "cls", "remedy"),
    [
        (Refusal("no", 400, field="top_k"), InvalidParameter, "correct it"),
        (Refusal("no", 400, code="context_length_exceeded"), PromptTooLong, "shorten it"),
        (Refusal("no", 401), RemoteFailed, "BIG_KEY"),
        (Refusal("no", 404), RemoteFailed, r"url or model \('big-70b'\)"),
        (Refusal("no", 503), RemoteFailed, "retry_s"),
        (Refusal("no connection"), RemoteFailed, "does not answer: no connection; try again later"),
        (Refusal("no", 418), RemoteFailed, r"\[models.far.remote\]"),
    ],
)
def test_an_error_says_what_happened_and_the_remedy(failed: Refusal, cls: type[PacktrainError], remedy: str) -> None:
    error = error_of(failed, OPTIONS, "far")

    assert type(error) is cls
    assert error.data["status"] == failed.status
    with pytest.raises(cls, match=remedy):
        raise PacktrainError.from_wire(error.to_wire())


# Turns.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_no_window_has_more_turns_than_allowed() -> None:
    clock = Clock()
    turns = Turns(3, clock)
    taken: list[float] = []
    chance = random.Random(1)
    for _ in range(500):
        clock.now += chance.expovariate(1 / 7)
        if wait_s := turns.take():
            clock.now += wait_s + 1e-6
            assert turns.take() == 0
        taken.append(clock.now)

    assert all(later - first >= WINDOW_S - 1e-6 for first, later in zip(taken, taken[3:], strict=False))


def test_a_turn_given_back_is_free_again() -> None:
    turns = Turns(1, Clock())
    assert [turns.take(), turns.take()] == [0, WINDOW_S]
    assert not turns.has_free()
    turns.give_back()
    assert turns.has_free()
    assert turns.take() == 0


def test_a_pause_holds_all_turns_for_a_while() -> None:
    clock = Clock()
    turns = Turns(None, clock)
    turns.pause(5)
    assert [turns.take(), turns.has_free()] == [5, False]
    clock.now = 5

    assert [turns.take(), turns.has_free()] == [0, True]


def test_nobody_waits_for_a_turn_once_they_are_closed() -> None:
    turns = Turns(None, Clock())
    was_open = turns.wait()
    turns.close()

    assert [was_open, turns.wait()] == [True, False]
