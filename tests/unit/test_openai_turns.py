"""The turns and tools of OpenAI's chats as a job has them."""

from __future__ import annotations

from typing import Any

import pytest

from packtrain.broker.chat import NamedTool
from packtrain.broker.errors import InvalidParameter, PromptEmpty
from packtrain.broker.job_spec import JobSpec
from packtrain.client.openai import parse_call
from tests.support.pictures import hostile
from tests.support.pictures import part as picture_part

pytestmark = pytest.mark.unit

WEATHER: dict[str, Any] = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": WEATHER}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
HI = {"role": "user", "content": "Hi"}


def chat(*turns: Any, **fields: Any) -> JobSpec:
    body = {"model": "m", "messages": [*turns] or [HI], **fields}
    (spec,) = parse_call("/v1/chat/completions", body).specs
    return spec


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_roles_stay_as_they_are(role: str) -> None:
    turn = chat({"role": role, "content": "x", "name": "ann"}, HI).messages[0]

    assert (turn.role, turn.content, turn.name) == (role, "x", "ann")


def test_an_unknown_role_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidParameter, match=r"messages\.0\.role = 'robot'.*'system', 'developer', 'user'"):
        chat({"role": "robot", "content": "x"})


def test_a_conversation_with_tools_comes_back_as_it_was_answered() -> None:
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "audio": None, "x": 1}
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "Rain"}]}
    asked, called, told = chat(HI, answer, result).messages

    assert asked.content == "Hi"
    assert called.tool_calls[0].model_dump() == CALL
    assert (called.content, told.content, told.tool_call_id) == ("", "Rain", "call_1")


def test_functions_are_tools_by_their_old_name() -> None:
    spec = chat(HI, functions=[WEATHER], function_call={"name": "weather"})

    assert [tool.function.name for tool in spec.tools] == ["weather"]
    assert isinstance(spec.tool_choice, NamedTool)
    assert chat(HI, functions=[WEATHER], function_call="none").tool_choice == "none"


def test_a_conversation_with_functions_keeps_its_calls() -> None:
    answer = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}}
    _, called, told = chat(HI, answer, {"role": "function", "name": "weather", "content": "Rain"}).messages

    assert called.tool_calls[0].function.model_dump() == {"name": "weather", "arguments": "{}"}
    assert (told.role, told.tool_call_id) == ("tool", called.tool_calls[0].id)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_comes_back_by_either_name(field: str) -> None:
    assert chat({"role": "assistant", "content": "a", field: "hm"}, HI).messages[0].reasoning_content == "hm"


def test_other_turns_have_no_reasoning_and_no_calls() -> None:
    turn = {**HI, "reasoning_content": "hm", "tool_calls": []}

    assert chat(turn).messages[0].reasoning_content == ""


@pytest.mark.parametrize(
    "part",
    [{"type": "text", "text": "b"}, {"type": "input_text", "text": "b"}, {"type": "output_text", "text": "b"}, "b"],
)
def test_every_kind_of_text_part_is_text(part: Any) -> None:
    for role in ("system", "user", "assistant"):
        assert chat({"role": role, "content": [{"type": "text", "text": "a"}, part]}, HI).messages[0].content == "a\nb"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ],
)
def test_parts_other_than_texts_images_and_sounds_are_refused(part: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match=f"a content part of type '{part['type']}' is not supported") as error:
        chat({"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]})

    assert error.value.data["field"] == "messages.0.content"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://169.254.169.254/latest/meta-data", "scheme 'http' is not fetched"),
        ("https://example.org/cat.png", "scheme 'https' is not fetched"),
        ("file:///etc/passwd", "scheme 'file' is not fetched"),
        ("/etc/passwd", "scheme '/etc/passwd' is not fetched"),
        ("data:image/png;base64,!!!", "is no base64"),
        ("data:image/png,plain", "has to be of base64"),
        (None, "an image is like"),
        (5, "an image is like"),
    ],
)
def test_images_are_sent_and_nothing_is_fetched(url: object, said: str) -> None:
    for given in ({"url": url}, url):
        with pytest.raises(InvalidParameter, match=said) as error:
            chat({"role": "user", "content": [{"type": "image_url", "image_url": given}]})

        assert error.value.data["field"] == "messages.0.content"


@pytest.mark.parametrize(("what", "data"), list(hostile()), ids=lambda value: value if isinstance(value, str) else "")
def test_what_no_model_is_shown_is_refused_at_the_door_or_left_to_the_decoder(what: str, data: bytes) -> None:
    content = [picture_part(data), {"type": "text", "text": "?"}]
    if what in ("truncated", "damaged pixels", "a header alone"):
        assert chat({"role": "user", "content": content})
    else:
        with pytest.raises(InvalidParameter, match=r"messages\.0\.content.* the image ") as error:
            chat({"role": "user", "content": content})
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("content", [None, 5, {"type": "text", "text": "x"}, [{"type": "text"}], [5], "\ud800"])
def test_what_is_no_content_is_refused(content: Any) -> None:
    with pytest.raises(InvalidParameter, match=r"messages\.0"):
        chat({"role": "user", "content": content})


@pytest.mark.parametrize("turn", [{"role": "user", "content": ""}, {"role": "user", "content": []}])
def test_nothing_to_answer(turn: dict[str, Any]) -> None:
    with pytest.raises(PromptEmpty):
        chat(turn)


# --- tools ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_choices_among_tools(choice: str) -> None:
    assert chat(tools=[TOOL], tool_choice=choice).tool_choice == choice


def test_a_named_choice() -> None:
    choice = chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "weather"}}).tool_choice

    assert isinstance(choice, NamedTool)
    assert choice.function.name == "weather"


def test_a_tool_may_say_more_than_we_know() -> None:
    rich = {**TOOL, "function": {**WEATHER, "strict": None, "description": None, "x-unknown": 1}, "cache_control": {}}

    assert chat(tools=[rich], parallel_tool_calls=False).tools == chat(tools=[TOOL]).tools
    assert not chat(tools=[rich], parallel_tool_calls=False).parallel_tool_calls


@pytest.mark.parametrize("fields", [{"tools": []}, {"tools": [], "tool_choice": "auto"}, {"tool_choice": "none"}])
def test_no_tools_are_no_tools(fields: dict[str, Any]) -> None:
    assert chat(**fields) == chat()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "request"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0"),
        ({"tools": [TOOL, TOOL]}, "request"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": "none"}}]}, "tools.0.function"),
        ({"tools": "weather"}, "tools"),
        ({"functions": ["weather"]}, "functions.0"),
    ],
)
def test_tools_that_cannot_be_are_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        chat(**fields)

    assert str(error.value.data["field"]).startswith(field)


# --- reasoning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reasoning"),
    [
        ({}, "auto"),
        ({"reasoning_effort": "none"}, "off"),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "medium"}, "medium"),
        ({"reasoning_effort": "high"}, "high"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "off"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "on"),
    ],
)
def test_effort(fields: dict[str, Any], reasoning: str) -> None:
    assert chat(**fields).reasoning == reasoning
    assert chat(**fields).template_args == {}


def test_variables_of_the_template_reach_it_and_its_own_do_not() -> None:
    assert chat(chat_template_kwargs={"builtin": "x"}).template_args == {"builtin": "x"}
    with pytest.raises(InvalidParameter, match="'messages' is set by Packtrain itself"):
        chat(chat_template_kwargs={"messages": "x"})
