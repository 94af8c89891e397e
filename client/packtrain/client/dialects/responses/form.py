"""Answers as responses: a resource with items, whole or as typed events that build it.

Of a job come reasoning, text and calls, block by block; each block is an item. The events of an item:

    output_item.added ─▶ content_part.added ─▶ deltas ─▶ done ─▶ content_part.done ─▶ output_item.done
                         (not of calls)

The input of a custom tool comes at once, for the model writes it as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from packtrain.broker.pieces import TokenLogprob
from packtrain.client.dialects.blocks import Block, Blocks, Change, blocks_of
from packtrain.client.dialects.responses.calls import Asked
from packtrain.client.dialects.responses.resource import Resource, status_of, told
from packtrain.client.dialects.responses.tools import custom_input
from packtrain.client.openai import Fault, Stamp
from packtrain.client.result import AnswerDelta, Result

Event = dict[str, Any]
_EVENTS = {"reasoning": "reasoning_text", "text": "output_text", "call": "function_call_arguments"}


def response(asked: Asked, stamp: Stamp, result: Result) -> dict[str, Any]:
    """The whole answer."""
    blocks = blocks_of(result)
    texts = [block.index for block in blocks if block.kind == "text"]
    logprobs = {texts[0]: result.logprobs} if texts and asked.wants_logprobs else {}
    return Resource(asked, stamp, logprobs).ended(result, blocks)


class ResponseStream:
    """The events of one answer."""

    def __init__(self, asked: Asked, stamp: Stamp) -> None:
        self._asked = asked
        self._logprobs: dict[int, list[TokenLogprob]] = {}  # of each block
        self._held: list[TokenLogprob] = []  # whose text has not come yet
        self._resource = Resource(asked, stamp, self._logprobs)
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
        status = status_of(result)
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
                case "grew" if not self._resource.is_custom(block):
                    logprobs = {"logprobs": told(self._release(block))} if block.kind == "text" else {}
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
        if self._resource.is_custom(block):
            said = custom_input(block)
            yield {"type": "response.custom_tool_call_input.delta", **self._at(block), "delta": said}
            yield {"type": "response.custom_tool_call_input.done", **self._at(block), "input": said}
        elif block.kind == "call":
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
