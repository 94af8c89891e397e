"""A call that must be made: the JSON schema its text is constrained to, whatever the model's own syntax.

Under `tool_choice` "required" or a named tool the answer is one object {"name": ..., "arguments": {...}}, or a list of
such when several calls are allowed and any tool may be called. `OutputParser` reads it with `is_forced`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from packtrain.broker.chat import NamedTool, Tool, ToolChoice

#: Most calls in one forced answer: without a bound a small model would list calls until its slot is full.
MAX_FORCED_CALLS = 8
#: Keywords that may bring names of their own.
_OTHER_NAMES = frozenset({"allOf", "anyOf", "oneOf", "$ref", "patternProperties"})
_NAMED = re.compile(r"#/(?:\$defs|definitions)/([^/]+)")


def is_forced(tool_choice: ToolChoice) -> bool:
    """True when the answer has to be a call."""
    return tool_choice == "required" or isinstance(tool_choice, NamedTool)


def forced_call_schema(tools: Sequence[Tool], tool_choice: ToolChoice, *, parallel: bool = False) -> dict[str, Any]:
    """The JSON schema of the answer.

    Args:
        tools: That may be called, at least one.
        tool_choice: "required", or which tool.
        parallel: A list of calls; not for a named tool.
    """
    if isinstance(tool_choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == tool_choice.function.name]
        parallel = False
    assert tools, "a forced call needs a tool"
    defs: dict[str, Any] = {}
    calls = [_call(tool, str(index), defs) for index, tool in enumerate(tools)]
    call = calls[0] if len(calls) == 1 else {"anyOf": calls}
    schema = {"type": "array", "items": call, "minItems": 1, "maxItems": MAX_FORCED_CALLS} if parallel else call
    return {**schema, "$defs": defs} if defs else schema


def _call(tool: Tool, prefix: str, defs: dict[str, Any]) -> dict[str, Any]:
    """The schema of a call. What the tool's own refers to goes to `defs`, under names that begin with `prefix`."""
    own = tool.function.parameters or {"type": "object", "properties": {}}
    for keyword in ("definitions", "$defs"):
        named = own.get(keyword)
        for name, schema in named.items() if isinstance(named, dict) else ():
            defs[f"{prefix}.{name}"] = _renamed(schema, prefix)
    rest = {key: value for key, value in own.items() if key not in ("$defs", "definitions", "$schema", "$id")}
    arguments = _renamed(rest, prefix)
    if "properties" in arguments and not arguments.keys() & _OTHER_NAMES:
        # JSON schema allows further names where nothing is said; a function has no further arguments.
        arguments = {"additionalProperties": False, **arguments}
    if '"$ref": "#"' in json.dumps(own):  # it holds itself
        defs[prefix] = arguments
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _renamed(schema: Any, prefix: str) -> Any:
    """The schema with its references as they read from the root of the whole."""
    if isinstance(schema, list):
        return [_renamed(item, prefix) for item in schema]
    if not isinstance(schema, dict):
        return schema
    renamed = {key: _renamed(value, prefix) for key, value in schema.items()}
    ref = schema.get("$ref")
    if ref == "#":
        renamed["$ref"] = f"#/$defs/{prefix}"
    elif isinstance(ref, str) and (found := _NAMED.fullmatch(ref)):
        renamed["$ref"] = f"#/$defs/{prefix}.{found.group(1)}"
    return renamed
