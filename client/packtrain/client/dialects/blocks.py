"""An answer as blocks: reasoning, text and tool calls, one after the other, each opened, filled and closed.

Anthropic's content blocks and the items of OpenAI's Responses are such blocks, in streams and in whole answers. A delta
may hold a bit of several; then reasoning comes before text and text before calls, as models write them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from packtrain.broker.chat import CallDelta
from packtrain.client.result import AnswerDelta, Result, delta_of

#: Where a model wrote no JSON object as arguments, its text stands under this name in APIs that have objects only.
INVALID = "invalid_json"


@dataclass(slots=True)
class Block:
    """A part of an answer. Its text grows while it is the last one."""

    index: int  # among all blocks
    kind: Literal["reasoning", "text", "call"]
    text: str = ""  # of a call: its arguments
    call_id: str = ""
    name: str = ""

    @property
    def arguments(self) -> dict[str, Any]:
        """Of a call: the arguments as an object."""
        try:
            value = json.loads(self.text or "{}")
        except (ValueError, RecursionError):
            return {INVALID: self.text}
        return value if isinstance(value, dict) else {INVALID: self.text}


#: What happens to a block, and the text that came.
Change = tuple[Literal["opened", "grew", "closed"], Block, str]


@dataclass(slots=True)
class Blocks:
    """The blocks of one answer, as they come."""

    blocks: list[Block] = field(default_factory=list)
    _call: int | None = None  # index, among the calls, of the open one
    _is_open: bool = False

    def take(self, delta: AnswerDelta) -> Iterator[Change]:
        """What a bit more of the answer changes."""
        if delta.reasoning:
            yield from self._add("reasoning", delta.reasoning)
        if delta.text:
            yield from self._add("text", delta.text)
        for call in delta.calls:
            yield from self._add_call(call)

    def end(self) -> Iterator[Change]:
        """Nothing comes any more. An answer without anything is one empty text."""
        if not self.blocks:
            yield from self._open(Block(0, "text"))
        yield from self._close()

    def _add(self, kind: Literal["reasoning", "text"], text: str) -> Iterator[Change]:
        if not (self._is_open and self.blocks[-1].kind == kind):
            yield from self._open(Block(len(self.blocks), kind))
        yield self._grown(text)

    def _add_call(self, call: CallDelta) -> Iterator[Change]:
        if not self._is_open or self.blocks[-1].kind != "call" or self._call != call.index:
            yield from self._open(Block(len(self.blocks), "call", call_id=call.id, name=call.name))
            self._call = call.index
        if call.arguments:
            yield self._grown(call.arguments)

    def _open(self, block: Block) -> Iterator[Change]:
        yield from self._close()
        self.blocks.append(block)
        self._is_open = True
        yield "opened", block, ""

    def _grown(self, text: str) -> Change:
        block = self.blocks[-1]
        block.text += text
        return "grew", block, text

    def _close(self) -> Iterator[Change]:
        if self._is_open:
            self._is_open = False
            yield "closed", self.blocks[-1], ""


def blocks_of(result: Result) -> list[Block]:
    """The blocks of a whole answer."""
    blocks = Blocks()
    for _ in (*blocks.take(delta_of(result)), *blocks.end()):
        pass
    return blocks.blocks
