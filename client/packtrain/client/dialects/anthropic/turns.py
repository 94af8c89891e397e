"""The turns of Anthropic's messages as those of OpenAI's chats.

One message may become several turns: results of tools are blocks of a user's message there and turns of their own here.
What a model has thought goes back to it where its template takes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from packtrain.client.dialects.translating import image_part, listing, mapping, text_part, unsupported

Content = str | Sequence[Mapping[str, Any]] | None


def turns_of(system: Content, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All turns of a request.

    Raises:
        InvalidParameter: A block is of a kind that no model here can take.
    """
    turns: list[dict[str, Any]] = []
    if system:
        turns.append({"role": "system", "content": _parts(system, "system")})
    for number, message in enumerate(messages):
        where = f"messages.{number}.content"
        if message.get("role") == "assistant":
            turns.append(_assistant(message.get("content"), where))
        else:
            turns += _user(message, where)
    return turns


def _user(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []

    def close() -> None:
        if parts:
            turns.append({"role": message.get("role"), "content": list(parts)})
            parts.clear()

    content = message.get("content")
    if isinstance(content, str) or not isinstance(content, Sequence):
        return [{"role": message.get("role"), "content": content}]
    for index, block in enumerate(content):
        at = f"{where}.{index}"
        if mapping(block, at).get("type") == "tool_result":
            close()
            result = _parts(block.get("content"), f"{at}.content")
            turns.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result})
        else:
            parts.append(_part(block, at))
    close()
    return turns


def _assistant(content: Any, where: str) -> dict[str, Any]:
    if isinstance(content, str) or not isinstance(content, Sequence):
        return {"role": "assistant", "content": content}
    texts, thoughts, calls = [], [], []
    for index, block in enumerate(content):
        match mapping(block, f"{where}.{index}").get("type"):
            case "text":
                texts.append(text_part(block.get("text")))
            case "thinking":
                thoughts.append(str(block.get("thinking") or ""))
            case "redacted_thinking":
                pass  # only Anthropic can read it
            case "tool_use":
                arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
                function = {"name": block.get("name"), "arguments": arguments}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            case kind:
                raise unsupported(f"{where}.{index}", kind, "of an assistant send text, thinking and tool_use blocks")
    turn: dict[str, Any] = {"role": "assistant", "content": texts or ""}
    if thoughts:
        turn["reasoning_content"] = "\n".join(thoughts)
    return turn | ({"tool_calls": calls} if calls else {})


def _parts(content: object, where: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    blocks = enumerate(listing(content, where))
    return [_part(mapping(block, f"{where}.{index}"), f"{where}.{index}") for index, block in blocks]


def _part(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    source = block.get("source") or {}
    match block.get("type"):
        case "text":
            return text_part(block.get("text"))
        case "image" if isinstance(source, Mapping):
            if source.get("type") == "url":
                return image_part(source.get("url"))
            return image_part(f"data:{source.get('media_type')};base64,{source.get('data')}")
        case "document" if isinstance(source, Mapping) and source.get("type") == "text":
            return text_part(source.get("data"))
        case kind:
            raise unsupported(where, kind, "send text blocks")
