"""From Anthropic's requests to those of OpenAI's chats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from packtrain.broker.errors import InvalidParameter
from packtrain.client.dialects.anthropic.bodies import CountBody, MessagesBody
from packtrain.client.dialects.anthropic.turns import turns_of
from packtrain.client.dialects.translating import extras_in, given, mapping, named_choice
from packtrain.client.openai import Call, parse_call
from packtrain.client.openai.calls import checked

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
#: Anthropic's steps of effort as OpenAI's.
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def parse_messages(body: Mapping[str, Any], *, user: str | None = None) -> Call:
    """POST /v1/messages as a job.

    Raises:
        InvalidParameter, PromptEmpty, UnknownModel
    """
    asked = checked(MessagesBody, body)
    chat = _chat(asked) | given(
        max_tokens=asked.max_tokens,
        stream=asked.stream,
        stop=asked.stop_sequences or None,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        seed=asked.seed,
    )
    if isinstance(name := (asked.metadata or {}).get("user_id"), str):
        chat["user"] = name
    return parse_call("/v1/chat/completions", chat, user=user)


def parse_count(body: Mapping[str, Any], *, user: str | None = None) -> Call:
    """POST /v1/messages/count_tokens as a job that counts.

    Raises:
        InvalidParameter, PromptEmpty, UnknownModel
    """
    call = parse_call("/v1/chat/completions", _chat(checked(CountBody, body)), user=user)
    return replace(call, specs=tuple(spec.model_copy(update={"kind": "count"}) for spec in call.specs))


def _chat(body: CountBody) -> dict[str, Any]:
    chat = extras_in(body) | {"messages": turns_of(body.system, body.messages)} | _reasoning(body)
    tools = [_tool(tool, index) for index, tool in enumerate(body.tools or ()) if _is_ours(tool)]
    if tools:
        chat["tools"] = tools
    if choice := body.tool_choice:
        kind = str(choice.get("type"))
        if kind not in _CHOICES and kind != "tool":
            raise InvalidParameter(
                f'tool_choice.type = {kind!r} is none of {", ".join(_CHOICES)}, tool; send {{"type": "auto"}}',
                field="tool_choice",
            )
        chat["tool_choice"] = named_choice(choice.get("name")) if kind == "tool" else _CHOICES[kind]
        if choice.get("disable_parallel_tool_use"):
            chat["parallel_tool_calls"] = False
    return chat


def _is_ours(tool: Mapping[str, Any]) -> bool:
    """False for tools such as `web_search_20250305`: Anthropic runs them, or has taught its models what they are."""
    return tool.get("type") in (None, "custom")


def _tool(tool: Mapping[str, Any], index: int) -> dict[str, Any]:
    schema = mapping(tool.get("input_schema"), f"tools.{index}.input_schema")
    about = {"name": tool.get("name"), "description": tool.get("description"), "parameters": dict(schema)}
    return {"type": "function", "function": about}


def _reasoning(body: CountBody) -> dict[str, Any]:
    """Thinking as OpenAI's effort and Qwen's switch. Who does not ask for thinking gets none, as at Anthropic."""
    config = body.output_config or {}
    fields: dict[str, Any] = {}
    if form := config.get("format"):
        fields["response_format"] = _form(mapping(form, "output_config.format"))
    kind = (body.thinking or {}).get("type", "disabled")
    match kind:
        case "disabled":
            return fields | {"reasoning_effort": "none"}
        case "enabled" | "adaptive" | "between_tools":
            effort = config.get("effort")
            if isinstance(effort, str) and effort in _EFFORTS:
                return fields | {"reasoning_effort": _EFFORTS[effort]}
            return fields | ({"chat_template_kwargs": {"enable_thinking": True}} if kind == "enabled" else {})
    raise InvalidParameter(
        f"thinking.type = {kind!r} is none of enabled, adaptive, between_tools, disabled; choose one", field="thinking"
    )


def _form(form: Mapping[str, Any]) -> dict[str, Any]:
    if form.get("type") != "json_schema":
        raise InvalidParameter(
            f"output_config.format is of type {form.get('type')!r}; send json_schema or leave it out",
            field="output_config.format",
        )
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": form.get("schema")}}
