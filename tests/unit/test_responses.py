"""OpenAI's Responses: requests as jobs, results as items and typed events."""

from __future__ import annotations

from typing import Any

import pytest

from packtrain.broker.chat import CallDelta, FunctionCall, NamedTool, ToolCall
from packtrain.broker.errors import InvalidParameter, JobFailed
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.outcome import Timings, Usage
from packtrain.broker.pieces import TokenLogprob
from packtrain.client.dialects.responses import form
from packtrain.client.dialects.responses.calls import Asked, parse_responses
from packtrain.client.openai import Stamp, fault_of
from packtrain.client.result import AnswerDelta, Result

pytestmark = pytest.mark.unit

STAMP = Stamp("7f", 1_700_000_000, "smollm2")
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
TIME = {"type": "function", "name": "time", "parameters": {"type": "object"}}
#: Of the resource, which OpenResponses wants to be there and no null.
NEVER_NULL = {
    *("id", "object", "created_at", "status", "model", "output", "tools", "tool_choice", "truncation", "text"),
    *("parallel_tool_calls", "top_p", "temperature", "presence_penalty", "frequency_penalty", "top_logprobs"),
    *("store", "background", "service_tier", "metadata"),
}
MAY_BE_NULL = {
    *("completed_at", "incomplete_details", "previous_response_id", "instructions", "error", "reasoning", "usage"),
    *("max_output_tokens", "max_tool_calls", "safety_identifier", "prompt_cache_key"),
}


def asked(**fields: Any) -> Asked:
    return parse_responses({"model": "smollm2", "input": "Hi", **fields})


def spec_of(**fields: Any) -> JobSpec:
    return asked(**fields).call.specs[0]


def turns_of(*items: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return [turn.model_dump(exclude_defaults=True) for turn in spec_of(input=list(items), **fields).messages]


def ended(text: str = "", reason: Any = "stop", **fields: Any) -> Result:
    usage = Usage(prompt_tokens=10, completion_tokens=4, reused_tokens=3)
    return Result("7f", text, reason, usage, Timings(queue_ms=500, run_ms=1600), **fields)


def entry(text: str) -> TokenLogprob:
    return TokenLogprob(token=1, text=text, logprob=-0.5)


def test_a_text_with_instructions_is_a_chat() -> None:
    spec = spec_of(instructions="Be kind.", max_output_tokens=9, temperature=0.5, top_p=0.9, stream=True, seed=7)

    assert [(turn.role, turn.content) for turn in spec.messages] == [("system", "Be kind."), ("user", "Hi")]
    params = spec.params
    assert (params.max_tokens, params.temperature, params.top_p, params.seed, spec.stream) == (9, 0.5, 0.9, 7, True)


def test_what_only_openais_service_knows_changes_nothing() -> None:
    known = {"store": True, "metadata": {"a": "b"}, "truncation": "auto", "prompt_cache_key": "k", "include": []}

    assert spec_of(**known) == spec_of()


def test_items_of_one_assistants_turn_become_one_turn() -> None:
    turns = turns_of(
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Ask."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "One moment."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Now."}], "encrypted_content": "x"},
        {"role": "assistant", "content": "Mixed."},
        {"role": "assistant", "content": "Really."},
        tools=[TOOL],
    )

    assert turns == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "One moment.",
            "reasoning_content": "Ask.",
            "tool_calls": (
                {"id": "c1", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
                {"id": "c2", "function": {"name": "weather"}},
            ),
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "tool", "tool_call_id": "c2", "content": "rain"},
        {"role": "assistant", "content": "Mixed.", "reasoning_content": "Now."},
        {"role": "assistant", "content": "Really."},
    ]


def test_a_call_alone_is_a_turn() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}

    assert [turn["role"] for turn in turns_of({"role": "user", "content": "?"}, call)] == ["user", "assistant"]


def test_tools_and_their_choice_are_flat_there() -> None:
    spec = spec_of(tools=[TOOL, TIME], tool_choice={"type": "function", "name": "time"}, parallel_tool_calls=False)

    assert [tool.function.name for tool in spec.tools] == ["weather", "time"]
    assert isinstance(spec.tool_choice, NamedTool)
    assert (spec.tool_choice.function.name, spec.parallel_tool_calls) == ("time", False)


def test_allowed_tools_are_those_the_model_is_told_of() -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]}
    spec = spec_of(tools=[TOOL, TIME], tool_choice=choice)

    assert ([tool.function.name for tool in spec.tools], spec.tool_choice) == (["time"], "required")


def test_tools_that_openai_itself_runs_are_left_out_and_the_answer_shows_it() -> None:
    request = asked(tools=[TOOL, {"type": "web_search"}])

    assert [tool.function.name for tool in request.call.specs[0].tools] == ["weather"]
    assert form.response(request, STAMP, ended("a"))["tools"] == [TOOL]


PATCH = {
    "type": "custom",
    "name": "patch",
    "description": "Patch a file.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
}


def test_a_custom_tool_is_a_function_of_one_text() -> None:
    spec = spec_of(tools=[PATCH, TOOL], tool_choice={"type": "custom", "name": "patch"})

    function = spec.tools[0].function
    assert (function.name, function.parameters["required"]) == ("patch", ["input"])
    assert function.description == "Patch a file.\n\nThe input follows this grammar (lark):\nstart: /.+/"
    assert form.response(asked(tools=[PATCH], tool_choice={"type": "custom", "name": "patch"}), STAMP, ended("a"))[
        "tool_choice"
    ] == {"type": "custom", "name": "patch"}


def test_calls_of_custom_tools_go_there_and_back() -> None:
    request = asked(tools=[PATCH])
    stream = form.ResponseStream(request, STAMP)
    events = stream.piece(AnswerDelta(calls=(CallDelta(0, '{"input": "a\\nb', "c1", "patch"), CallDelta(0, '"}'))))
    events += stream.closing(ended("", "tool_calls"))

    assert [event["type"].removeprefix("response.") for event in events] == [
        *("output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done"),
        "completed",
    ]
    (item,) = events[-1]["response"]["output"]
    assert item.items() >= {"type": "custom_tool_call", "id": "ctc_7f_0", "input": "a\nb"}.items()
    output = {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"}
    turns = turns_of({"role": "user", "content": "?"}, item, output, tools=[PATCH])
    assert turns[1]["tool_calls"][0]["function"] == {"name": "patch", "arguments": '{"input": "a\\nb"}'}
    assert turns[2] == {"role": "tool", "tool_call_id": "c1", "content": "done"}


@pytest.mark.parametrize("arguments", ["no JSON", '{"text": "a"}'])
def test_what_a_model_wrote_for_a_custom_tool_is_not_lost(arguments: str) -> None:
    call = ToolCall(id="c1", function=FunctionCall(name="patch", arguments=arguments))
    said = form.response(asked(tools=[PATCH]), STAMP, ended("", "tool_calls", tool_calls=(call,)))

    assert said["output"][0]["input"] == arguments


def test_a_form_and_an_effort_have_their_names() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    text = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}, "verbosity": "low"}

    assert spec_of(text=text).params.response_format.type == "json_schema"
    assert spec_of(text={"format": {"type": "json_object"}}).params.response_format.type == "json_object"
    assert spec_of(reasoning={"effort": "high", "summary": "auto"}).reasoning == "high"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"input": []}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "local_shell"}]}, "tools.0"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"type": "computer_call"}]}, "input.0"),
        ({"input": [{"role": "user", "content": ["Hi"]}]}, "input.0.content.0"),
        ({"text": {"format": "json"}}, "text.format"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning_effort"),
    ],
)
def test_what_cannot_be_taken_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        asked(**fields)

    assert refused.value.data["field"] == named


def test_an_image_is_refused_as_one() -> None:
    part = {"type": "input_image", "image_url": "data:image/png;base64,aGk="}

    with pytest.raises(InvalidParameter, match="image cannot be read"):
        asked(input=[{"role": "user", "content": [part]}])


def test_a_response_has_every_field_that_openresponses_demands() -> None:
    said = form.response(asked(metadata={"a": "b"}), STAMP, ended("Hello"))

    assert said.keys() >= NEVER_NULL | MAY_BE_NULL
    assert not [name for name in NEVER_NULL if said[name] is None]
    assert (said["id"], said["object"], said["status"]) == ("resp_7f", "response", "completed")
    assert (said["temperature"], said["top_p"], said["tool_choice"]) == (0.8, 0.95, "auto")  # as they were used
    assert (said["created_at"], said["completed_at"], said["metadata"]) == (1_700_000_000, 1_700_000_003, {"a": "b"})


def test_reasoning_text_and_calls_are_items() -> None:
    call = ToolCall(id="c1", function=FunctionCall(name="weather", arguments='{"city": "Rome"}'))
    said = form.response(asked(), STAMP, ended("Let me see.", "tool_calls", reasoning="Hm.", tool_calls=(call,)))

    thought, message, asked_for = said["output"]
    assert (thought["type"], thought["content"]) == ("reasoning", [{"type": "reasoning_text", "text": "Hm."}])
    assert (message["type"], message["content"][0]["text"]) == ("message", "Let me see.")
    assert asked_for == {
        "type": "function_call",
        "id": "fc_7f_2",
        "status": "completed",
        "call_id": "c1",
        "name": "weather",
        "arguments": '{"city": "Rome"}',
    }
    assert (said["usage"]["total_tokens"], said["usage"]["input_tokens_details"]["cached_tokens"]) == (14, 3)


def test_an_answer_that_was_cut_is_incomplete() -> None:
    said = form.response(asked(), STAMP, ended("Hel", "length"))

    assert (said["status"], said["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert said["output"][0]["status"] == "incomplete"


def test_logprobs_come_when_they_are_asked_for() -> None:
    request = asked(include=["message.output_text.logprobs"])
    whole = form.response(request, STAMP, ended("ab", logprobs=(entry("a"), entry("b"))))
    stream = form.ResponseStream(request, STAMP)
    told = [*stream.piece(AnswerDelta("", logprobs=(entry("a"),))), *stream.piece(AnswerDelta("a"))]
    told += [*stream.piece(AnswerDelta("b", logprobs=(entry("b"),))), *stream.closing(ended("ab"))]

    tokens = [token["token"] for token in whole["output"][0]["content"][0]["logprobs"]]
    assert tokens == ["a", "b"]
    assert told[-1]["response"]["output"] == whole["output"]
    deltas = [event["logprobs"] for event in told if event["type"] == "response.output_text.delta"]
    assert [[token["token"] for token in delta] for delta in deltas] == [["a"], ["b"]]


def test_events_build_the_response_that_ends_the_stream() -> None:
    stream = form.ResponseStream(asked(), STAMP)
    calls = (CallDelta(0, '{"a"', "c1", "f"), CallDelta(0, ":1}"))
    events = [
        *stream.opening(),
        *stream.piece(AnswerDelta(reasoning="Hm.")),
        *stream.piece(AnswerDelta("Yes", calls=calls)),
        *stream.closing(ended("Yes", "tool_calls")),
    ]

    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done
    assert done[2]["arguments"] == '{"a":1}'


def test_a_stream_that_fails_ends_with_the_reason_and_what_came() -> None:
    stream = form.ResponseStream(asked(), STAMP)
    stream.piece(AnswerDelta("Hel"))
    event = stream.failing(fault_of(JobFailed("it broke; try another")))[0]

    failed = event["response"]
    assert (event["type"], failed["status"]) == ("response.failed", "failed")
    assert failed["error"] == {"code": "job_failed", "message": "it broke; try another"}
    assert failed["output"][0]["content"][0]["text"] == "Hel"
