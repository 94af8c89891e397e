"""Whatever stands in a request, a dialect makes jobs of it or refuses it by an error of its own, which is a 4xx."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest

from packtrain.broker.errors import InvalidRequest
from packtrain.client.dialects.anthropic.calls import parse_count, parse_messages
from packtrain.client.dialects.ollama.bodies import ChatBody, EmbedBody, GenerateBody
from packtrain.client.dialects.ollama.calls import chat_call, embed_call, generate_call, load_call
from packtrain.client.dialects.responses.calls import parse_responses
from packtrain.client.dialects.tokens import DetokenizeBody, TokenizeBody, detokenize_call, tokenize_call
from packtrain.client.openai.calls import checked

pytestmark = pytest.mark.unit

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "weather", "description": "of a city", "parameters": SCHEMA}
MESSAGES: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "Be kind."}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm."},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]},
                {"type": "document", "source": {"type": "text", "data": "A letter."}},
                {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}},
            ],
        },
    ],
    "tools": [{"name": "weather", "input_schema": SCHEMA}, {"type": "web_search_1", "name": "search"}],
    "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "metadata": {"user_id": "ann"},
    "stop_sequences": ["#"],
}
RESPONSES: dict[str, Any] = {
    "model": "m",
    "instructions": "Be kind.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "a"}],
            "content": [{"type": "reasoning_text", "text": "b"}],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "sun"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]},
    ],
    "tools": [
        {"type": "function", **FUNCTION},
        {"type": "web_search"},
        {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
    "reasoning": {"effort": "low"},
    "include": ["message.output_text.logprobs"],
    "metadata": {"a": "b"},
    "top_logprobs": 2,
}
CHAT: dict[str, Any] = {
    "model": "m:latest",
    "messages": [
        {"role": "user", "content": "Weather?", "images": ["aGk="]},
        {
            "role": "assistant",
            "thinking": "Hm.",
            "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": {"city": "Rome"}}}],
        },
        {"role": "tool", "tool_name": "weather", "content": "sun"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "options": {"temperature": 0.5, "num_predict": 9, "stop": ["#"], "seed": 1},
    "format": SCHEMA,
    "think": True,
    "keep_alive": "5m",
    "logprobs": True,
    "top_logprobs": 1,
}
GENERATE = {"model": "m", "prompt": "Hi", "system": "Be kind.", "suffix": "!", "raw": True, "images": ["aGk="]}
REQUESTS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], object]]] = {
    "anthropic": (MESSAGES, parse_messages),
    "anthropic count": (MESSAGES, parse_count),
    "responses": (RESPONSES, parse_responses),
    "ollama chat": (CHAT, lambda body: chat_call(checked(ChatBody, body))),
    "ollama load": (CHAT, lambda body: load_call(checked(ChatBody, body))),
    "ollama generate": (GENERATE, lambda body: generate_call(checked(GenerateBody, body))),
    "ollama embed": (
        {"model": "m", "input": ["a", "b"], "dimensions": 4},
        lambda body: embed_call(checked(EmbedBody, body)),
    ),
    "tokenize": (
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "tools": [{"type": "function"}]},
        lambda body: tokenize_call(checked(TokenizeBody, body)),
    ),
    "detokenize": ({"model": "m", "tokens": [1, 2]}, lambda body: detokenize_call(checked(DetokenizeBody, body))),
}
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**70, 0.5, float("nan"), float("inf"), "", "x", "\ud800", "\0"),
    *(
        [],
        [None],
        ["x"],
        [1],
        [[]],
        [{}],
        {},
        {"type": None},
        {"type": []},
        {"type": {}},
        {"x": {}},
        [{"type": "text"}],
    ),
)


def spoilt(value: Any) -> Iterator[Any]:
    """The value with each of its parts exchanged for each kind of junk, left out, or given twice."""
    yield from JUNK
    if isinstance(value, dict):
        for name, part in value.items():
            yield {key: other for key, other in value.items() if key != name}
            for other in spoilt(part):
                yield {**value, name: other}
    elif isinstance(value, list):
        yield [*value, *value]
        for index, part in enumerate(value):
            for other in spoilt(part):
                yield [*value[:index], other, *value[index + 1 :]]


@pytest.mark.parametrize("dialect", REQUESTS)
def test_a_spoilt_request_is_refused_or_understood(dialect: str) -> None:
    request, parse = REQUESTS[dialect]
    tried, before = 0, deepcopy(request)
    for body in spoilt(request):
        if isinstance(body, dict):  # anything else is refused before
            tried += 1
            with suppress(InvalidRequest):
                parse(body)

    assert request == before, "a translation changes nothing of what it is given"
    assert tried > 20 * len(request)
