"""Answers in the shape of Anthropic's messages, whole or as events.

In a stream the number of input tokens is not known when it begins, for nothing is sent before: `message_start` says 0,
`message_delta` says all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from packtrain.client.dialects.blocks import Block, Blocks, Change, blocks_of
from packtrain.client.openai import Fault, Stamp
from packtrain.client.openai.forms import job_facts
from packtrain.client.result import AnswerDelta, Result

Event = dict[str, Any]  # its `type` is the event's name, too

_BY_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def message(stamp: Stamp, result: Result, max_tokens: int | None) -> dict[str, Any]:
    """The whole answer.

    Args:
        max_tokens: That the request allowed.
    """
    said = {**_head(stamp), "content": [_block(block) for block in blocks_of(result)], **_end(result, max_tokens)}
    return {**said, "usage": _usage(result), "packtrain": job_facts(result)}


def error(fault: Fault, request_id: str | None = None) -> dict[str, Any]:
    """A failure, as the body of a response and as the event that ends a stream."""
    # What an operator has to mend first is no overload: 503 without a hope.
    kind = "api_error" if fault.should_retry is False and fault.status >= 500 else _BY_STATUS.get(fault.status)
    if fault.status == 504:
        kind = "timeout_error"
    kind = kind or ("api_error" if fault.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": fault.message}, "request_id": request_id}


class MessageStream:
    """The events of one answer."""

    def __init__(self, stamp: Stamp, max_tokens: int | None) -> None:
        self._stamp = stamp
        self._max_tokens = max_tokens
        self._blocks = Blocks()

    def opening(self) -> list[Event]:
        """Before the first delta."""
        ends = {"stop_reason": None, "stop_sequence": None}
        said = {**_head(self._stamp), "content": [], **ends, "usage": {**_NO_INPUT, "output_tokens": 0}}
        return [{"type": "message_start", "message": said}, {"type": "ping"}]

    def piece(self, delta: AnswerDelta) -> list[Event]:
        """A bit more."""
        return _events(self._blocks.take(delta))

    def waiting(self) -> list[Event]:
        """Nothing came for a while."""
        return [{"type": "ping"}]

    def failing(self, fault: Fault) -> list[Event]:
        """The end of a stream that failed."""
        return [error(fault)]

    def closing(self, result: Result) -> list[Event]:
        """The end."""
        told = {"delta": _end(result, self._max_tokens), "usage": _usage(result), "packtrain": job_facts(result)}
        return [*_events(self._blocks.end()), {"type": "message_delta", **told}, {"type": "message_stop"}]


_NO_INPUT = {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}


def _head(stamp: Stamp) -> dict[str, Any]:
    return {"id": f"msg_{stamp.id}", "type": "message", "role": "assistant", "model": stamp.model}


def _end(result: Result, max_tokens: int | None) -> dict[str, Any]:
    match result.finish_reason:
        case "tool_calls":
            reason = "tool_use"
        case "length":
            is_full = max_tokens is not None and result.usage.completion_tokens < max_tokens
            reason = "model_context_window_exceeded" if is_full else "max_tokens"
        case _:
            reason = "stop_sequence" if result.stopped_by else "end_turn"
    return {"stop_reason": reason, "stop_sequence": result.stopped_by or None}


def _usage(result: Result) -> dict[str, Any]:
    """Tokens. Those that were in a cache are not among the `input_tokens`; all three together are the prompt."""
    used = result.usage
    return {
        "input_tokens": used.prompt_tokens - used.reused_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": used.reused_tokens,
        "output_tokens": used.completion_tokens,
    }


def _block(block: Block, *, is_new: bool = False) -> dict[str, Any]:
    text = "" if is_new else block.text
    match block.kind:
        case "reasoning":  # nobody here signs it, and nobody asks for the signature when it comes back
            return {"type": "thinking", "thinking": text, "signature": ""}
        case "text":
            return {"type": "text", "text": text}
        case "call":
            return {
                "type": "tool_use",
                "id": block.call_id,
                "name": block.name,
                "input": {} if is_new else block.arguments,
            }


def _delta(block: Block, text: str) -> dict[str, Any]:
    match block.kind:
        case "reasoning":
            return {"type": "thinking_delta", "thinking": text}
        case "text":
            return {"type": "text_delta", "text": text}
        case "call":
            return {"type": "input_json_delta", "partial_json": text}


def _events(changes: Iterable[Change]) -> list[Event]:
    events: list[Event] = []
    for what, block, text in changes:
        at = {"index": block.index}
        match what:
            case "opened":
                events.append({"type": "content_block_start", **at, "content_block": _block(block, is_new=True)})
            case "grew":
                events.append({"type": "content_block_delta", **at, "delta": _delta(block, text)})
            case "closed":
                if block.kind == "reasoning":
                    signature = {"type": "signature_delta", "signature": ""}
                    events.append({"type": "content_block_delta", **at, "delta": signature})
                events.append({"type": "content_block_stop", **at})
    return events
