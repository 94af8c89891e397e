"""The turns of Ollama's chats as those of OpenAI's: calls have objects as arguments there, and need no ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from packtrain.client.dialects.translating import image_part, listing, mapping, text_part

#: The first characters of an image in base64, by kind.
_IMAGES = {"iVBOR": "png", "/9j/": "jpeg", "UklGR": "webp", "R0lGOD": "gif"}


def turns_of(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All turns of a request.

    Raises:
        InvalidParameter
    """
    turns: list[dict[str, Any]] = []
    unanswered: list[tuple[str, object]] = []  # calls, by id and name
    for number, message in enumerate(messages):
        turn: dict[str, Any] = {"role": message.get("role"), "content": message.get("content") or ""}
        if images := listing(message.get("images"), f"messages.{number}.images"):
            # In front of the text, where Ollama puts them, too.
            turn["content"] = [*(image_part(_data_uri(str(image))) for image in images), text_part(turn["content"])]
        if thinking := message.get("thinking"):
            turn["reasoning_content"] = thinking
        if calls := listing(message.get("tool_calls"), f"messages.{number}.tool_calls"):
            turn["tool_calls"] = [
                _call(call, f"call_{number}_{index}", f"messages.{number}.tool_calls.{index}")
                for index, call in enumerate(calls)
            ]
            unanswered = [(call["id"], call["function"]["name"]) for call in turn["tool_calls"]]
        if turn["role"] == "tool":
            name = message.get("tool_name") or message.get("name")
            turn["tool_call_id"] = message.get("tool_call_id") or _answered(unanswered, name)
            if name:
                turn["name"] = name
        turns.append(turn)
    return turns


def _call(call: Any, made_up_id: str, where: str) -> dict[str, Any]:
    asked = mapping(call, where)
    function = mapping(asked.get("function"), f"{where}.function")
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    about = {"name": function.get("name"), "arguments": text}
    return {"id": asked.get("id") or made_up_id, "type": "function", "function": about}


def _answered(unanswered: list[tuple[str, object]], name: object) -> str:
    """The id of the call that a tool's turn answers: the first open one of that name, else the first."""
    index = next((index for index, (_, called) in enumerate(unanswered) if called == name), 0)
    return unanswered.pop(index)[0] if unanswered else "call"


def _data_uri(image: str) -> str:
    if image.startswith("data:"):
        return image
    kind = next((kind for start, kind in _IMAGES.items() if image.startswith(start)), "jpeg")
    return f"data:image/{kind};base64,{image}"
