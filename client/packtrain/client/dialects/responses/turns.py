"""The items of a conversation as turns of a chat.

An assistant's turn is several items there, reasoning, message and calls, each of its own; a chat has them in one turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from packtrain.client.dialects.responses.tools import custom_arguments
from packtrain.client.dialects.translating import image_part, listing, mapping, unsupported


def turns_of(instructions: str | None, items: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All turns of a request.

    Raises:
        InvalidParameter: An item is of a kind that no model here can take.
    """
    turns: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(items, str):
        return [*turns, {"role": "user", "content": items}]
    for index, item in enumerate(items):
        where = f"input.{index}"
        match item.get("type", "message"):
            case "message" if item.get("role") == "assistant":
                _assistant(turns, "content")["content"] = _content(item.get("content"), where)
            case "message":
                turns.append({"role": item.get("role"), "content": _content(item.get("content"), where)})
            case "reasoning":
                _assistant(turns, "reasoning_content")["reasoning_content"] = _thoughts(item, where)
            case "function_call" | "custom_tool_call" as kind:
                arguments = item.get("arguments") if kind == "function_call" else custom_arguments(item.get("input"))
                function = {"name": item.get("name"), "arguments": arguments}
                call = {"id": item.get("call_id"), "type": "function", "function": function}
                _assistant(turns).setdefault("tool_calls", []).append(call)
            case "function_call_output" | "custom_tool_call_output":
                output = _content(item.get("output"), where) or ""
                turns.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
            case "item_reference":
                raise unsupported(where, "item_reference", "nothing is kept here, so send the item itself")
            case kind:
                raise unsupported(where, kind, "send messages, reasoning, function calls and their outputs")
    for turn in turns:
        turn.setdefault("content", "")
    return turns


#: What may still come in an assistant's turn that has this already.
_BEFORE = {"reasoning_content": ("content", "tool_calls"), "content": ("tool_calls",)}


def _assistant(turns: list[dict[str, Any]], what: str = "tool_calls") -> dict[str, Any]:
    """The assistant's turn that gets this next: the last one, unless it is past that."""
    if turns and turns[-1]["role"] == "assistant":
        last = turns[-1]
        if what == "tool_calls" or not (last.keys() & {what, *_BEFORE[what]}):
            return last
    turns.append({"role": "assistant"})
    return turns[-1]


def _content(content: Any, where: str) -> Any:
    if isinstance(content, str) or not isinstance(content, Sequence):
        return content
    return [_part(mapping(part, f"{where}.content.{index}")) for index, part in enumerate(content)]


def _part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parts of text are known to chats by these names, too."""
    return image_part(part.get("image_url")) if part.get("type") == "input_image" else part


def _thoughts(item: Mapping[str, Any], where: str) -> str:
    """What was thought: as it was, or else its summary. What is encrypted only OpenAI can read."""
    for name in ("content", "summary"):
        parts = [part for part in listing(item.get(name), f"{where}.{name}") if isinstance(part, Mapping)]
        if texts := [str(part.get("text") or "") for part in parts]:
            return "\n".join(texts)
    return ""
