"""Anthropic's messages: requests as jobs, results as messages and events."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from packtrain.broker.chat import CallDelta, FunctionCall, NamedTool, ToolCall
from packtrain.broker.errors import InvalidParameter, JobFailed, ModelLoadFailed, QueueFull, UnknownModel
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.outcome import Usage
from packtrain.client.dialects.anthropic import form
from packtrain.client.dialects.anthropic.calls import parse_count, parse_messages
from packtrain.client.openai import Fault, Stamp, fault_of
from packtrain.client.result import AnswerDelta, Result
from tests.support.pictures import png

pytestmark = pytest.mark.unit

STAMP = Stamp("7f", 1_700_000_000, "smollm2")
TOOL = {"name": "weather", "description": "of a city", "input_schema": {"type": "object"}}


def spec_of(**fields: Any) -> JobSpec:
    body = {"model": "smollm2", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return parse_messages(body).specs[0]


def turns_of(*messages: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    spec = spec_of(messages=list(messages), **fields)
    return [turn.model_dump(exclude_defaults=True) for turn in spec.messages]


def ended(text: str = "", reason: Any = "stop", **fields: Any) -> Result:
    return Result("7f", text, reason, Usage(prompt_tokens=10, completion_tokens=4, reused_tokens=3), **fields)


def test_sampling_and_stops_have_their_names() -> None:
    spec = spec_of(temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["#"], stream=True, metadata={"user_id": "ann"})

    params = spec.params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (9, 0.5, 0.9, 5)
    assert (params.stop, spec.stream, spec.user) == (("#",), True, "ann")


def test_what_only_anthropics_service_knows_changes_nothing() -> None:
    control = {"cache_control": {"type": "ephemeral"}}
    block = {"type": "text", "text": "Hi", **control}

    assert spec_of(messages=[{"role": "user", "content": [block]}], service_tier="auto", **control) == spec_of()


def test_a_system_text_is_the_first_turn() -> None:
    assert turns_of({"role": "user", "content": "Hi"}, system="Be kind.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]
    blocks = [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind."}]
    assert turns_of({"role": "user", "content": "Hi"}, system=blocks)[0]["content"] == "Be\nkind."


def test_calls_and_results_of_tools_become_turns_in_their_order() -> None:
    turns = turns_of(
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Ask.", "signature": "x"},
                {"type": "text", "text": "One moment."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Köln"}},
                {"type": "tool_use", "id": "t2", "name": "weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]},
                {"type": "tool_result", "tool_use_id": "t2", "is_error": True},
                {"type": "text", "text": "And now?"},
            ],
        },
        tools=[TOOL],
    )

    assert turns[1] == {
        "role": "assistant",
        "content": "One moment.",
        "reasoning_content": "Ask.",
        "tool_calls": (
            {"id": "t1", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}},
            {"id": "t2", "function": {"name": "weather"}},
        ),
    }
    assert turns[2:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "sun"},
        {"role": "tool", "tool_call_id": "t2"},
        {"role": "user", "content": "And now?"},
    ]


@pytest.mark.parametrize(("choice", "expected"), [("auto", "auto"), ("any", "required"), ("none", "none")])
def test_tool_choices_have_openais_names(choice: str, expected: str) -> None:
    spec = spec_of(tools=[TOOL], tool_choice={"type": choice, "disable_parallel_tool_use": True})

    assert (spec.tool_choice, spec.parallel_tool_calls) == (expected, False)


def test_one_tool_can_be_demanded() -> None:
    choice = spec_of(tools=[TOOL], tool_choice={"type": "tool", "name": "weather"}).tool_choice

    assert isinstance(choice, NamedTool)
    assert choice.function.name == "weather"


def test_tools_that_anthropic_itself_runs_are_left_out() -> None:
    spec = spec_of(tools=[{"type": "web_search_20250305", "name": "web_search"}, {**TOOL, "type": "custom"}])

    assert [tool.function.name for tool in spec.tools] == ["weather"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "off"),
        ({"thinking": {"type": "disabled"}}, "off"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "on"),
        ({"thinking": {"type": "adaptive"}}, "auto"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "high"),
    ],
)
def test_who_asks_for_no_thinking_gets_none(fields: dict[str, Any], expected: str) -> None:
    assert spec_of(**fields).reasoning == expected


def test_the_form_of_an_output_is_enforced() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = spec_of(output_config={"format": {"type": "json_schema", "schema": schema}}).params.response_format

    assert form.type == "json_schema"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"tool_choice": {"type": "some"}}, "tool_choice"),
        ({"tools": [{"name": "weather"}]}, "tools.0.input_schema"),
        ({"thinking": {"type": "deep"}}, "thinking"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}, "messages.0.content.0"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
    ],
)
def test_what_cannot_be_taken_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        spec_of(**fields)

    assert refused.value.data["field"] == named


def test_an_image_is_refused_as_one() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}

    with pytest.raises(InvalidParameter, match="image cannot be read"):
        spec_of(messages=[{"role": "user", "content": [image]}])


def test_an_image_stands_where_its_block_stood() -> None:
    data = base64.b64encode(png(8, 8)).decode()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}

    (turn,) = spec_of(messages=[{"role": "user", "content": [image, {"type": "text", "text": "Hi"}]}]).messages

    assert (turn.content, [each.at for each in turn.media]) == ("\nHi", [0])


def test_an_unknown_model_is_not_taken_for_a_key() -> None:
    with pytest.raises(UnknownModel):
        spec_of(model="Claude Sonnet*")


def test_counting_takes_the_same_request_without_a_limit() -> None:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "system": "Be kind.", "tools": [TOOL]}
    call = parse_count(body)

    assert call.specs[0].kind == "count"
    assert (len(call.specs[0].messages), len(call.specs[0].tools), call.stream) == (2, 1, False)


def test_an_answer_is_a_message() -> None:
    call = ToolCall(id="t1", function=FunctionCall(name="weather", arguments='{"city": "Rome"}'))
    said = form.message(STAMP, ended("Let me see.", "tool_calls", reasoning="Hm.", tool_calls=(call,)), 9)

    assert (said["id"], said["type"], said["role"], said["model"]) == ("msg_7f", "message", "assistant", "smollm2")
    assert said["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
    ]
    assert said["usage"] == {
        "input_tokens": 7,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
        "output_tokens": 4,
    }


@pytest.mark.parametrize(
    ("result", "max_tokens", "reason", "stop"),
    [
        (ended("a"), 9, "end_turn", None),
        (ended("a", stopped_by="#"), 9, "stop_sequence", "#"),
        (ended("a", "length"), 4, "max_tokens", None),
        (ended("a", "length"), 9, "model_context_window_exceeded", None),
        (ended("", "tool_calls"), 9, "tool_use", None),
    ],
)
def test_the_reason_of_an_end_is_told(result: Result, max_tokens: int, reason: str, stop: str | None) -> None:
    said = form.message(STAMP, result, max_tokens)

    assert (said["stop_reason"], said["stop_sequence"]) == (reason, stop)


def test_a_stream_opens_fills_and_closes_each_block() -> None:
    stream = form.MessageStream(STAMP, 9)
    calls = (CallDelta(0, '{"a"', "t1", "f"), CallDelta(0, ":1}"))
    events = [
        *stream.opening(),
        *stream.piece(AnswerDelta(reasoning="Hm.")),
        *stream.piece(AnswerDelta("Yes", calls=calls)),
        *stream.closing(ended("Yes", "tool_calls")),
    ]

    assert [event["type"] for event in events] == [
        *("message_start", "ping"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"] == [
        *("thinking_delta", "signature_delta", "text_delta", "input_json_delta", "input_json_delta")
    ]
    started = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert started[2] == {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 4


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (fault_of(UnknownModel(model="x", known=[])), "not_found_error"),
        (fault_of(QueueFull(model="x", waiting=1, limit=1, retry_after_s=3)), "rate_limit_error"),
        (fault_of(JobFailed("it broke; try another")), "api_error"),
        (fault_of(ModelLoadFailed("no; mend it")), "api_error"),
        (Fault(401, "invalid_request_error", "invalid_api_key", "who are you?"), "authentication_error"),
        (Fault(413, "invalid_request_error", "body_too_large", "less"), "request_too_large"),
        (Fault(405, "invalid_request_error", "method_not_allowed", "no"), "invalid_request_error"),
        (Fault(503, "unavailable_error", "broker_unavailable", "later"), "overloaded_error"),
        (Fault(504, "timeout_error", "job_expired", "late", should_retry=False), "timeout_error"),
    ],
)
def test_failures_have_anthropics_types(fault: Fault, kind: str) -> None:
    assert form.error(fault, "req_1") == {
        "type": "error",
        "error": {"type": kind, "message": fault.message},
        "request_id": "req_1",
    }
