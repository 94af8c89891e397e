"""From a request for a response to one of OpenAI's chats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packtrain.broker.errors import InvalidParameter
from packtrain.client.dialects.responses.bodies import ResponsesBody
from packtrain.client.dialects.responses.tools import as_function, choose, told_tools
from packtrain.client.dialects.responses.turns import turns_of
from packtrain.client.dialects.translating import extras_in, given, mapping
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

    def is_custom(self, name: str) -> bool:
        """True for tools that take a text instead of arguments."""
        return any(tool["type"] == "custom" and tool.get("name") == name for tool in self.tools)


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
    choice, tools = choose(asked.tool_choice, told_tools(asked.tools or ()))
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
        tools=[as_function(tool) for tool in tools] or None,
        tool_choice=choice,
        parallel_tool_calls=asked.parallel_tool_calls,
        seed=asked.seed,
        chat_template_kwargs=asked.chat_template_kwargs,
    )
    return Asked(parse_call("/v1/chat/completions", chat, user=user), asked, tuple(tools), wants_logprobs)


def _form(form: object) -> dict[str, Any] | None:
    """`text.format` as `response_format`, which nests the schema."""
    if form is None:
        return None
    asked = mapping(form, "text.format")
    if asked.get("type") != "json_schema":
        return dict(asked)
    about = {name: asked[name] for name in ("name", "description", "schema", "strict") if name in asked}
    return {"type": "json_schema", "json_schema": about}
