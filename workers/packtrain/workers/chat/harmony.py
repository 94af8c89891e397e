"""Harmony, the format of gpt-oss: an answer is a row of messages, each with a header that names its channel.

    <|channel|>analysis<|message|>They want the weather.<|end|>
    <|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city":"Oslo"}<|call|>

analysis is reasoning, final is content, commentary is content unless it goes `to=` a function: then it is the
arguments of a call. The prompt ends within the first header.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from packtrain.workers.chat.deltas import Collector, Delta
from packtrain.workers.chat.output import find_mark

_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
_TO = re.compile(r"to=(?:functions\.)?([\w.-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
#: Characters of a header: a channel and the name of a function. What is longer without a mark was never a header.
_MAX_HEADER = 512


class HarmonyParser:
    """A `Parser` for harmony.

    Args:
        call_id: Id of the call with this index.
        has_tools: Calls are looked for; else what goes to a function is content.
        in_answer: The prompt ends within the message of the final channel.
        max_calls: More are dropped; None: no bound.
    """

    def __init__(
        self,
        *,
        call_id: Callable[[int], str],
        has_tools: bool,
        in_answer: bool = False,
        max_calls: int | None = None,
    ) -> None:
        self._out = Collector(call_id, max_calls)
        self._has_tools = has_tools
        self._held = ""
        # Where the text of this message goes; None: in a header.
        self._show: Callable[[str], None] | None = self._out.content if in_answer else None
        self._separator = ""  # between two messages of the reasoning

    def push(self, text: str) -> Delta:
        self._held += text
        while self._step(final=False):
            pass
        return self._out.take()

    def flush(self) -> Delta:
        while self._step(final=True):
            pass
        return self._out.take()

    def _step(self, *, final: bool) -> bool:
        if self._show is None:
            return self._header(final)
        at, mark = find_mark(self._held, _ENDS, final=final)
        if at:
            self._show(self._held[:at])
        # A header may follow without <|start|>: its mark stays.
        self._held = self._held[at + (0 if mark == "<|channel|>" else len(mark)) :]
        if mark:
            self._show = None
        return bool(mark)

    def _header(self, final: bool) -> bool:
        end = self._held.find(_MESSAGE, 0, _MAX_HEADER)
        if end >= 0:
            header, self._held = self._held[:end], self._held[end + len(_MESSAGE) :]
            self._begin(header)
            return True
        if not final and len(self._held) < _MAX_HEADER:
            return False
        if final and self._held.startswith(("<|", "assistant")):  # cut off within a header
            self._held = ""
        self._show = self._out.content  # an answer without a header
        return bool(self._held)

    def _begin(self, header: str) -> None:
        channel, recipient = _CHANNEL.search(header), _TO.search(header)
        name = channel.group(1) if channel else "final"
        is_call = recipient is not None and (name == "commentary" or "to=functions." in header)
        if is_call and recipient and self._has_tools:
            self._out.begin_call(recipient.group(1))
            self._show = self._out.arguments
        elif name == "analysis":
            self._out.reasoning(self._separator)
            self._separator = "\n"
            self._show = self._out.reasoning
        else:
            self._show = self._out.content
