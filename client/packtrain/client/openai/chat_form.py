"""Answers of chats in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packtrain.broker.chat import CallDelta, ToolCall
from packtrain.client.openai.forms import HeldLogprobs, Stamp, StreamForm, extras_of, fingerprint
from packtrain.client.openai.logprobs import chat_logprobs
from packtrain.client.result import AnswerDelta, Result


class ChatForm(StreamForm):
    """chat.completion, and chat.completion.chunk.

    Args:
        calls_functions: The request came with `functions`, OpenAI's old name for tools, whose one call stands apart.
    """

    def __init__(self, choices: int = 1, *, wants_logprobs: bool = False, calls_functions: bool = False) -> None:
        super().__init__(choices)
        self._wants_logprobs = wants_logprobs
        self._calls_functions = calls_functions
        self._held = HeldLogprobs()

    def body(self, stamp: Stamp, results: Sequence[Result], *, extras: bool = True) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": self._message(result),
                "logprobs": chat_logprobs(result.logprobs) if self._wants_logprobs else None,
                "finish_reason": self._finish(result),
            }
            for index, result in enumerate(results)
        ]
        fixed = {"id": f"chatcmpl-{stamp.id}", "object": "chat.completion", "created": stamp.created}
        said = {**fixed, "model": stamp.model, "choices": choices, "usage": self.used(results)}
        return {**said, **fingerprint(results), **(extras_of(results) if extras else {})}

    def opening(self, stamp: Stamp, choice: int) -> list[dict[str, Any]]:
        return [self._chunk(stamp, choice, {"role": "assistant", "content": ""})]

    def piece(self, stamp: Stamp, choice: int, delta: AnswerDelta) -> list[dict[str, Any]]:
        self._held.add(choice, delta.logprobs)
        said: dict[str, Any] = {}
        if delta.text:
            said["content"] = delta.text
        if delta.reasoning:
            said["reasoning_content"] = delta.reasoning
        if delta.calls and self._calls_functions:
            said |= _function_delta(delta.calls)
        elif delta.calls:
            said["tool_calls"] = [
                {
                    "index": call.index,
                    **({"id": call.id, "type": "function"} if call.id else {}),
                    "function": {**({"name": call.name} if call.name else {}), "arguments": call.arguments},
                }
                for call in delta.calls
            ]
        return [self._chunk(stamp, choice, said)] if said else []

    def closing(self, stamp: Stamp, choice: int, result: Result) -> list[dict[str, Any]]:
        last = self._chunk(stamp, choice, {}, self._finish(result))
        return [{**last, **fingerprint([result]), **extras_of([result])}]

    def usage(self, stamp: Stamp, results: Sequence[Result]) -> dict[str, Any]:
        return {**self._head(stamp), "choices": [], "usage": self.used(results)}

    def _head(self, stamp: Stamp) -> dict[str, Any]:
        fixed = {"id": f"chatcmpl-{stamp.id}", "object": "chat.completion.chunk", "created": stamp.created}
        return {**fixed, "model": stamp.model}

    def _chunk(self, stamp: Stamp, choice: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        held = self._held.take(choice) if self._wants_logprobs else ()
        logprobs = chat_logprobs(held) if held else None
        return {
            **self._head(stamp),
            "choices": [{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}],
        }

    def _message(self, result: Result) -> dict[str, Any]:
        said: dict[str, Any] = {
            "role": "assistant",
            "content": result.text if result.text or not result.tool_calls else None,
            "refusal": None,
        }
        if result.reasoning:
            said["reasoning_content"] = result.reasoning
        if result.tool_calls and self._calls_functions:
            said["function_call"] = _call(result.tool_calls[0])["function"]
        elif result.tool_calls:
            said["tool_calls"] = [_call(call) for call in result.tool_calls]
        return said

    def _finish(self, result: Result) -> str | None:
        is_function = self._calls_functions and result.finish_reason == "tool_calls"
        return "function_call" if is_function else result.finish_reason


def _function_delta(calls: Sequence[CallDelta]) -> dict[str, Any]:
    """The pieces of the first call as OpenAI once streamed it: the name, then the arguments."""
    first = [call for call in calls if call.index == 0]
    name = "".join(call.name for call in first)
    piece = {**({"name": name} if name else {}), "arguments": "".join(call.arguments for call in first)}
    return {"function_call": piece} if first else {}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": "function", "function": function}
