"""The turns of a chat and the tools a model may call, in OpenAI's shape.

A model never runs a tool: it answers with a `ToolCall`, the caller runs it and sends the result as a turn of role
`tool`. So a `ToolCall` of a result can stand in the next request as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, field_validator, model_validator

from packtrain.broker.fields import Input, Report, Text, check_json
from packtrain.broker.media import MAX_MEDIA, MediaRef, joined

#: Bounds of one tool's description as JSON: real ones have some 1,000 characters and 6 levels.
MAX_TOOL_CHARS, MAX_TOOL_DEPTH = 64 * 1024, 32
FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")]


class FunctionCall(Report):
    """Which function, with what. A model may write arguments that are no valid JSON."""

    name: Text
    arguments: Text = Field("{}", description="a JSON object as text")


class ToolCall(Report):
    """A call that a model asks for."""

    id: Annotated[Text, StringConstraints(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: FunctionCall


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a tool call as it comes. The first piece has id and name, the arguments of all are joined."""

    index: int  # of the call in the answer
    arguments: str = ""
    id: str = ""
    name: str = ""


def join_calls(deltas: Iterable[CallDelta]) -> tuple[ToolCall, ...]:
    """The calls whose pieces these are, in order."""
    first: dict[int, CallDelta] = {}
    arguments: dict[int, str] = {}
    for delta in deltas:
        first.setdefault(delta.index, delta)
        arguments[delta.index] = arguments.get(delta.index, "") + delta.arguments
    return tuple(
        ToolCall(id=first[index].id, function=FunctionCall(name=first[index].name, arguments=arguments[index] or "{}"))
        for index in sorted(first)
    )


class Function(Input):
    """What a model is told of a function."""

    name: FunctionName
    description: Text = ""
    parameters: dict[str, Any] = Field(default_factory=dict, description="JSON schema of its arguments")
    strict: bool | None = Field(None, description="taken for OpenAI's sake, changes nothing")

    @field_validator("parameters")
    @classmethod
    def _bounded(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        check_json(parameters, max_chars=MAX_TOOL_CHARS, max_depth=MAX_TOOL_DEPTH)
        return parameters


class Tool(Input):
    """A tool the model may call."""

    type: Literal["function"] = "function"
    function: Function


class NamedFunction(Input):
    """A function by its name."""

    name: FunctionName


class NamedTool(Input):
    """The one tool that has to be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


def _known_choice(choice: object) -> object:
    function = choice.get("function") if isinstance(choice, Mapping) else None
    is_named = isinstance(function, Mapping) and isinstance(function.get("name"), str)
    if is_named or isinstance(choice, NamedTool) or choice in ("auto", "none", "required"):
        return choice
    raise ValueError('is "auto", "none", "required" or {"type": "function", "function": {"name": ...}}')


ToolChoice = Annotated[Literal["auto", "none", "required"] | NamedTool, BeforeValidator(_known_choice)]


def _parts(content: object) -> tuple[object, list[dict[str, Any]]]:
    try:
        return joined(content)
    except ValueError as error:
        # A complaint about `content`, as if its own validator had made it.
        raise ValidationError.from_exception_data(
            "Message", [{"type": "value_error", "loc": ("content",), "input": content, "ctx": {"error": error}}]
        ) from None


class Message(Input):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text = Field("", description="a text, or a list of parts: text, image_url and input_audio")
    media: tuple[MediaRef, ...] = Field((), max_length=MAX_MEDIA, description="of a user or tool, at their places")
    name: Annotated[Text, StringConstraints(max_length=256)] | None = None
    tool_calls: tuple[ToolCall, ...] = Field((), max_length=128, description="of an assistant: what it asked for")
    tool_call_id: Annotated[Text, StringConstraints(max_length=256)] | None = Field(
        None, description="of a tool: which call this answers"
    )
    reasoning_content: Text = Field("", description="of an assistant: its reasoning, where the template takes it")

    @model_validator(mode="before")
    @classmethod
    def _as_one_text(cls, fields: Any) -> Any:
        """Parts become one text with media in it. And OpenAI's clients send null for what a turn does not have."""
        if not isinstance(fields, Mapping):
            return fields
        calls = fields.get("tool_calls")
        optional = {"name", "tool_calls", "tool_call_id", "reasoning_content"} | ({"content"} if calls else set())
        given = {key: value for key, value in fields.items() if value is not None or key not in optional}
        if "content" not in given and not calls:
            given["content"] = None
        text, media = _parts(given.get("content"))
        if media:
            given["media"] = media
        if text is not given.get("content"):
            given["content"] = text
        return given

    @model_validator(mode="after")
    def _role_fits(self) -> Self:
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("a turn of role 'tool' needs tool_call_id, the id of the call it answers")
        if self.role != "assistant" and (self.tool_calls or self.reasoning_content):
            raise ValueError("only turns of role 'assistant' have tool_calls or reasoning_content")
        return self

    @model_validator(mode="after")
    def _media_fit(self) -> Self:
        if self.media and self.role not in ("user", "tool"):
            raise ValueError(
                f"a turn of role {self.role!r} has no images or sounds; put them into a turn of role 'user'"
            )
        places = [ref.at for ref in self.media]
        if places != sorted(places) or any(at > len(self.content) for at in places):
            raise ValueError("media stand in the order of their places, and within the content")
        return self

    @property
    def size(self) -> int:
        """Characters of it."""
        calls = sum(len(call.function.name) + len(call.function.arguments) for call in self.tool_calls)
        return len(self.content) + len(self.reasoning_content) + calls
