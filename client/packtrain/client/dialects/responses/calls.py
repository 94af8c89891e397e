"""From a request for a response to one of OpenAI's chats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packtrain.broker.errors import InvalidParameter
from packtrain.client.dialects.responses.bodies import ResponsesBody
from packtrain.client.dialects.responses.turns import turns_of
from packtrain.client.dialects.translating import extras_in, given, listing, mapping, named_choice, unsupported
from packtrain.client.openai import Call, parse_call
from packtrain.client.openai.calls import checked

_LOGPROBS = "message.output_text.logprobs"
_REMEMBERS = ("previous_response_id", "conversation", "prompt", "background")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, understood."""

    call: Call
    body: ResponsesBody
    tools: tuple[Mapping[str, Any], ...]  # that the model is told of
    wants_logprobs: bool


def parse_responses(body: Mapping[str, Any], *, user: str | None = None) -> Asked:
    """POST /v1/responses as a job.

    Raises:
        InvalidParameter, PromptEmpty, UnknownModel
    """
    asked = checked(ResponsesBody, body)
    for name in _REMEMBERS:
        if getattr(asked, name):
            raise InvalidParameter(
                f"{name} needs a server that remembers, and this one keeps nothing; send all items as `input`",
                field=name,
            )
    if asked.input == []:
        raise InvalidParameter("input is an empty list; send at least one item", field="input")
    tools = [tool for index, tool in enumerate(asked.tools or ()) if _is_ours(tool, index)]
    choice, tools = _choice(asked.tool_choice, tools)
    wants_logprobs = asked.top_logprobs is not None or _LOGPROBS in (asked.include or ())
    chat = extras_in(asked) | given(
        messages=turns_of(asked.instructions, asked.input),
        stream=asked.stream,
        service_tier=asked.service_tier,
        max_tokens=asked.max_output_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        logprobs=wants_logprobs or None,
        top_logprobs=asked.top_logprobs,
        response_format=_form((asked.text or {}).get("format")),
        reasoning_effort=(asked.reasoning or {}).get("effort"),
        tools=[_tool(tool) for tool in tools] or None,
        tool_choice=choice,
        parallel_tool_calls=asked.parallel_tool_calls,
        seed=asked.seed,
        chat_template_kwargs=asked.chat_template_kwargs,
    )
    return Asked(parse_call("/v1/chat/completions", chat, user=user), asked, tuple(tools), wants_logprobs)


def _is_ours(tool: Mapping[str, Any], index: int) -> bool:
    """False for tools that OpenAI itself runs, such as `web_search`: nobody here would."""
    if tool.get("type") in ("custom", "shell", "local_shell", "apply_patch", "computer", "namespace"):
        raise unsupported(f"tools.{index}", tool["type"], "describe it as a function, the only kind that works here")
    return tool.get("type") == "function"


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {name: tool.get(name) for name in ("name", "description", "parameters")}}


def _choice(
    choice: str | Mapping[str, Any] | None, tools: list[dict[str, Any]]
) -> tuple[str | dict[str, Any] | None, list[dict[str, Any]]]:
    """How to choose, in the words of chats, and among which tools."""
    if choice is None or isinstance(choice, str):
        return choice, tools
    match choice.get("type"):
        case "function":
            return named_choice(choice.get("name")), tools
        case "allowed_tools":
            allowed = listing(choice.get("tools"), "tool_choice.tools")
            names = [tool.get("name") for tool in allowed if isinstance(tool, Mapping)]
            return choice.get("mode", "auto"), [tool for tool in tools if tool.get("name") in names]
        case kind:
            raise unsupported("tool_choice", kind, "it can be auto, none, required, a function or allowed_tools")


def _form(form: object) -> dict[str, Any] | None:
    """`text.format` as `response_format`, which nests the schema."""
    if form is None:
        return None
    asked = mapping(form, "text.format")
    if asked.get("type") != "json_schema":
        return dict(asked)
    about = {name: asked[name] for name in ("name", "description", "schema", "strict") if name in asked}
    return {"type": "json_schema", "json_schema": about}
