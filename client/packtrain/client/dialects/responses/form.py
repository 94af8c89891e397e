"""Answers as responses: a resource with items, whole or as typed events that build it.

Of a job come reasoning, text and calls, block by block; each block is an item. The events of an item:

    output_item.added ─▶ content_part.added ─▶ deltas ─▶ done ─▶ content_part.done ─▶ output_item.done
                         (not of calls)

The resource names every field that OpenResponses demands, with what was really used where the request said nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from packtrain.broker.chat import NamedTool
from packtrain.broker.messages import TokenLogprob
from packtrain.client.dialects.blocks import Block, Blocks, Change, blocks_of
from packtrain.client.dialects.responses.calls import Asked
from packtrain.client.openai import Fault, Stamp
from packtrain.client.openai.forms import job_facts
from packtrain.client.openai.logprobs import chat_logprobs
from packtrain.client.result import AnswerDelta, Result

Event = dict[str, Any]
_ITEM_IDS = {"reasoning": "rs", "text": "msg", "call": "fc"}


def response(asked: Asked, stamp: Stamp, result: Result) -> dict[str, Any]:
    """The whole answer."""
    blocks = blocks_of(result)
    texts = [block.index for block in blocks if block.kind == "text"]
    logprobs = {texts[0]: result.logprobs} if texts and asked.wants_logprobs else {}
    return _Resource(asked, stamp, logprobs).ended(result, blocks)


class ResponseStream:
    """The events of one answer."""

    def __init__(self, asked: Asked, stamp: Stamp) -> None:
        self._asked = asked
        self._logprobs: dict[int, list[TokenLogprob]] = {}  # of each block
        self._held: list[TokenLogprob] = []  # whose text has not come yet
        self._resource = _Resource(asked, stamp, self._logprobs)
        self._blocks = Blocks()
        self._number = 0

    def opening(self) -> list[Event]:
        """Before the first delta."""
        begun = self._resource.now("in_progress")
        return self._numbered({"type": f"response.{name}", "response": begun} for name in ("created", "in_progress"))

    def waiting(self) -> list[Event]:
        """Nothing came for a while: the API has no event for that."""
        return []

    def piece(self, delta: AnswerDelta) -> list[Event]:
        """A bit more."""
        if self._asked.wants_logprobs:
            self._held += delta.logprobs
        return self._numbered(self._events(self._blocks.take(delta)))

    def closing(self, result: Result) -> list[Event]:
        """The end."""
        status = _status(result)
        events = list(self._events(self._blocks.end(), status))
        ended = self._resource.ended(result, self._blocks.blocks)
        return self._numbered([*events, {"type": f"response.{status}", "response": ended}])

    def failing(self, fault: Fault) -> list[Event]:
        """The end of a stream that failed."""
        failed = self._resource.failed(fault, self._blocks.blocks)
        return self._numbered([{"type": "response.failed", "response": failed}])

    def _numbered(self, events: Iterable[Event]) -> list[Event]:
        numbered = []
        for event in events:
            numbered.append({**event, "sequence_number": self._number})
            self._number += 1
        return numbered

    def _events(self, changes: Iterable[Change], status: str = "completed") -> Iterable[Event]:
        for what, block, text in changes:
            match what:
                case "opened":
                    yield from self._opened(block)
                case "grew":
                    logprobs = {"logprobs": _told(self._release(block))} if block.kind == "text" else {}
                    yield {
                        "type": f"response.{_EVENTS[block.kind]}.delta",
                        **self._at(block),
                        "delta": text,
                        **logprobs,
                    }
                case "closed":
                    yield from self._closed(block, status)

    def _opened(self, block: Block) -> Iterable[Event]:
        item = self._resource.item(block, "in_progress", is_new=True)
        yield {"type": "response.output_item.added", "output_index": block.index, "item": item}
        if block.kind != "call":
            yield {"type": "response.content_part.added", **self._at(block), "part": self._resource.part(block, "")}

    def _closed(self, block: Block, status: str) -> Iterable[Event]:
        name = f"response.{_EVENTS[block.kind]}.done"
        if block.kind == "call":
            yield {"type": name, **self._at(block), "name": block.name, "arguments": block.text or "{}"}
        else:
            self._release(block)
            part = self._resource.part(block, block.text)
            logprobs = {"logprobs": part["logprobs"]} if block.kind == "text" else {}
            yield {"type": name, **self._at(block), "text": block.text, **logprobs}
            yield {"type": "response.content_part.done", **self._at(block), "part": part}
        item = self._resource.item(block, status)
        yield {"type": "response.output_item.done", "output_index": block.index, "item": item}

    def _at(self, block: Block) -> dict[str, Any]:
        at = {"item_id": self._resource.item_id(block), "output_index": block.index}
        return at if block.kind == "call" else {**at, "content_index": 0}

    def _release(self, block: Block) -> list[TokenLogprob]:
        """Logprobs that go with what a text shows now."""
        released, self._held = self._held, []
        self._logprobs.setdefault(block.index, []).extend(released)
        return released


_EVENTS = {"reasoning": "reasoning_text", "text": "output_text", "call": "function_call_arguments"}


class _Resource:
    """What all answers to one request say.

    Args:
        logprobs: Of each block; may grow.
    """

    def __init__(self, asked: Asked, stamp: Stamp, logprobs: Mapping[int, Sequence[TokenLogprob]]) -> None:
        self._asked = asked
        self._stamp = stamp
        self._logprobs = logprobs

    def item_id(self, block: Block) -> str:
        """Its place makes it different from all others of the answer."""
        return f"{_ITEM_IDS[block.kind]}_{self._stamp.id}_{block.index}"

    def item(self, block: Block, status: str, *, is_new: bool = False) -> dict[str, Any]:
        """A block as an item; a new one without what is in it."""
        head = {"id": self.item_id(block), "status": status}
        if block.kind == "call":
            arguments = "" if is_new else block.text or "{}"
            call = {"call_id": block.call_id, "name": block.name, "arguments": arguments}
            return {"type": "function_call", **head, **call}
        parts = [] if is_new else [self.part(block, block.text)]
        if block.kind == "reasoning":
            return {"type": "reasoning", **head, "summary": [], "content": parts, "encrypted_content": None}
        return {"type": "message", **head, "role": "assistant", "content": parts}

    def part(self, block: Block, text: str) -> dict[str, Any]:
        """The one part of an item that is no call."""
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        logprobs = _told(self._logprobs.get(block.index, ()) if text else ())
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def now(self, status: str) -> dict[str, Any]:
        """The response before it has ended."""
        body, spec = self._asked.body, self._asked.call.specs[0]
        params, text = spec.params, body.text or {}
        return {
            "id": f"resp_{self._stamp.id}",
            "object": "response",
            "created_at": self._stamp.created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._stamp.model,
            "instructions": body.instructions,
            "output": [],
            "max_output_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "top_logprobs": body.top_logprobs or 0,
            "tools": [dict(tool) for tool in self._asked.tools],
            "tool_choice": self._choice(),
            "parallel_tool_calls": spec.parallel_tool_calls,
            "max_tool_calls": None,
            "text": {"format": {"type": "text"}, "verbosity": "medium", **text},
            "reasoning": {"effort": None, "summary": None, **(body.reasoning or {})},
            "truncation": "disabled",
            "background": False,
            "store": False,
            "previous_response_id": None,
            "service_tier": "flex" if body.service_tier == "flex" else "default",
            "metadata": body.metadata or {},
            "user": body.user,
            "safety_identifier": None,
            "prompt_cache_key": None,
            "usage": None,
        }

    def ended(self, result: Result, blocks: Sequence[Block]) -> dict[str, Any]:
        """The response when its job has ended well."""
        status = _status(result)
        items = [self.item(block, "completed") for block in blocks]
        if items and status == "incomplete":
            items[-1]["status"] = "incomplete"
        took_ms = result.timings.queue_ms + result.timings.run_ms
        return {
            **self.now(status),
            "completed_at": math.ceil(self._stamp.created + took_ms / 1000) if status == "completed" else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": items,
            "usage": _usage(result),
            "packtrain": job_facts(result),
        }

    def failed(self, fault: Fault, blocks: Sequence[Block]) -> dict[str, Any]:
        """The response when its job has failed."""
        items = [self.item(block, "incomplete") for block in blocks]
        error = {"code": fault.code, "message": fault.message}
        return {**self.now("failed"), "error": error, "output": items}

    def _choice(self) -> str | dict[str, Any]:
        choice = self._asked.call.specs[0].tool_choice
        return {"type": "function", "name": choice.function.name} if isinstance(choice, NamedTool) else choice


def _status(result: Result) -> str:
    return "incomplete" if result.finish_reason == "length" else "completed"


def _told(entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Logprobs as chats have them, too."""
    return list(chat_logprobs(entries)["content"])


def _usage(result: Result) -> dict[str, Any]:
    """Tokens. Those of the reasoning are among the output, and are not counted apart."""
    used = result.usage
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.reused_tokens, "cache_write_tokens": 0},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
