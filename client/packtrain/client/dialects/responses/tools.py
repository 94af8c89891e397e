"""Tools of responses as functions of chats.

A custom tool takes a text, whatever it likes; a model here knows functions only. So it is told of a function with one
argument, and what it writes there is the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from packtrain.client.dialects.blocks import Block
from packtrain.client.dialects.translating import listing, named_choice, unsupported

Tool = Mapping[str, Any]

_INPUT = "input"
_CUSTOM_PARAMETERS = {
    "type": "object",
    "properties": {_INPUT: {"type": "string"}},
    "required": [_INPUT],
    "additionalProperties": False,
}
#: Kinds that the client itself runs, and that a model has to be trained for.
_TRAINED = ("shell", "local_shell", "apply_patch", "computer", "computer_use_preview", "namespace")


def told_tools(tools: Sequence[Tool]) -> list[Tool]:
    """Those that the model is told of. What OpenAI itself runs, such as `web_search`, nobody here would.

    Raises:
        InvalidParameter: One is of a kind that the client runs and no model here knows.
    """
    for index, tool in enumerate(tools):
        if tool.get("type") in _TRAINED:
            raise unsupported(f"tools.{index}", tool["type"], "describe it as a function, or as a custom tool")
    return [tool for tool in tools if tool.get("type") in ("function", "custom")]


def as_function(tool: Tool) -> dict[str, Any]:
    """A tool as chats describe it."""
    described = {"name": tool.get("name"), "description": tool.get("description")}
    if tool["type"] == "function":
        return {"type": "function", "function": {**described, "parameters": tool.get("parameters")}}
    form = tool.get("format")
    if isinstance(form, Mapping) and form.get("type") == "grammar":
        rule = f"The input follows this grammar ({form.get('syntax')}):\n{form.get('definition')}"
        described["description"] = "\n\n".join(
            text for text in (described["description"], rule) if isinstance(text, str)
        )
    return {"type": "function", "function": {**described, "parameters": _CUSTOM_PARAMETERS}}


def custom_arguments(text: object) -> str:
    """The text that a custom tool was given, as a function's arguments."""
    return json.dumps({_INPUT: text}, ensure_ascii=False)


def custom_input(call: Block) -> str:
    """The text in a call of a custom tool; all that the model wrote where it did not keep to the form."""
    text = call.arguments.get(_INPUT)
    return text if isinstance(text, str) else call.text


def choose(choice: str | Tool | None, tools: list[Tool]) -> tuple[str | dict[str, Any] | None, list[Tool]]:
    """How to choose, in the words of chats, and among which tools.

    Raises:
        InvalidParameter
    """
    if choice is None or isinstance(choice, str):
        return choice, tools
    match choice.get("type"):
        case "function" | "custom":
            return named_choice(choice.get("name")), tools
        case "allowed_tools":
            allowed = listing(choice.get("tools"), "tool_choice.tools")
            names = [tool.get("name") for tool in allowed if isinstance(tool, Mapping)]
            return choice.get("mode", "auto"), [tool for tool in tools if tool.get("name") in names]
        case kind:
            raise unsupported("tool_choice", kind, "it can be auto, none, required, a function or allowed_tools")
