"""Answers in Ollama's shape: one object, or one for each bit of a stream, the last with figures.

Durations are nanoseconds. What Ollama spends on loading a model is here the time until an instance took the job, so it
has the waiting in a queue, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from packtrain.broker.pieces import TokenLogprob
from packtrain.client.dialects.blocks import Block, Blocks, blocks_of
from packtrain.client.openai import Fault, Stamp
from packtrain.client.openai.forms import HeldLogprobs, job_facts
from packtrain.client.openai.logprobs import chat_logprobs
from packtrain.client.result import AnswerDelta, Result

Kind = Literal["chat", "generate"]
_NS_PER_MS = 1_000_000


class AnswerForm:
    """The answer to one request.

    Args:
        model: As the client named it.
        kind: A chat has a message, a generated text stands alone.
    """

    def __init__(self, model: str, kind: Kind, stamp: Stamp) -> None:
        self._head = {"model": model, "created_at": moment(stamp.created)}
        self._kind = kind
        self._blocks = Blocks()
        self._held = HeldLogprobs()

    def whole(self, result: Result) -> dict[str, Any]:
        """All at once."""
        calls = [_call(block, index) for index, block in enumerate(_calls(blocks_of(result)))]
        said = self._said(result.text, result.reasoning, calls, result.logprobs)
        return {**said, **_end(result), "packtrain": job_facts(result)}

    def piece(self, delta: AnswerDelta) -> list[dict[str, Any]]:
        """A bit more. A call comes when it is whole, for its arguments are an object."""
        self._held.add(0, delta.logprobs)
        told = []
        for what, block, text in self._blocks.take(delta):
            told += self._changed(what, block, text)
        return told

    def closing(self, result: Result) -> list[dict[str, Any]]:
        """The end."""
        told = []
        for what, block, text in self._blocks.end():
            told += self._changed(what, block, text)
        last = self._said(logprobs=self._held.take(0))
        return [*told, {**last, **_end(result), "packtrain": job_facts(result)}]

    def _changed(self, what: str, block: Block, text: str) -> list[dict[str, Any]]:
        match what, block.kind:
            case "grew", "text":
                return [self._said(text, logprobs=self._held.take(0))]
            case "grew", "reasoning":
                return [self._said(thinking=text)]
            case "closed", "call":
                return [self._said(calls=[_call(block, len(_calls(self._blocks.blocks)) - 1)])]
        return []

    def _said(
        self,
        text: str = "",
        thinking: str = "",
        calls: Sequence[dict[str, Any]] = (),
        logprobs: Sequence[TokenLogprob] = (),
    ) -> dict[str, Any]:
        thought = {"thinking": thinking} if thinking else {}
        called = {"tool_calls": list(calls)} if calls else {}
        said: dict[str, Any] = {"response": text, **thought, **called}
        if self._kind == "chat":
            said = {"message": {"role": "assistant", "content": text, **thought, **called}}
        told = {"logprobs": chat_logprobs(logprobs)["content"]} if logprobs else {}
        return {**self._head, **said, **told, "done": False}


def without_text(model: str, kind: Kind, created: float, reason: Literal["load", "unload"]) -> dict[str, Any]:
    """The answer to a request without a prompt."""
    said = {"message": {"role": "assistant", "content": ""}} if kind == "chat" else {"response": ""}
    return {"model": model, "created_at": moment(created), **said, "done": True, "done_reason": reason}


def embeddings(model: str, results: Sequence[Result]) -> dict[str, Any]:
    """The answer of /api/embed."""
    return {
        "model": model,
        "embeddings": [list(result.embedding or ()) for result in results],
        "total_duration": max(_ns(result.timings.queue_ms + result.timings.run_ms) for result in results),
        "load_duration": max(_ns(result.timings.queue_ms) for result in results),
        "prompt_eval_count": sum(result.usage.prompt_tokens for result in results),
        "packtrain": {"jobs": [job_facts(result) for result in results]},
    }


def error(fault: Fault, _request_id: str = "") -> dict[str, Any]:
    """A failure, as the body of a response and as the line that ends a stream."""
    return {"error": fault.message}


def moment(seconds: float) -> str:
    """A time as Ollama writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _calls(blocks: Sequence[Block]) -> list[Block]:
    return [block for block in blocks if block.kind == "call"]


def _call(block: Block, index: int) -> dict[str, Any]:
    return {"id": block.call_id, "function": {"index": index, "name": block.name, "arguments": block.arguments}}


def _end(result: Result) -> dict[str, Any]:
    times, used = result.timings, result.usage
    first_ms = times.run_ms if times.first_token_ms is None else times.first_token_ms
    return {
        "done": True,
        "done_reason": "length" if result.finish_reason == "length" else "stop",
        "total_duration": _ns(times.queue_ms + times.run_ms),
        "load_duration": _ns(times.queue_ms),
        "prompt_eval_count": used.prompt_tokens,
        "prompt_eval_duration": _ns(first_ms),
        "eval_count": used.completion_tokens,
        "eval_duration": _ns(times.run_ms - first_ms),
    }


def _ns(milliseconds: float) -> int:
    return round(milliseconds * _NS_PER_MS)
