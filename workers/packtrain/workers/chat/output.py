"""An answer as it comes, taken apart into reasoning, content and tool calls.

Pieces of text go in, what may be shown comes out. Nothing is shown that might be the beginning of a mark, and the cut
of the text into pieces changes nothing, so a resumed job reads its own beginning again and stands where it stood.

    start ──<think>──► reasoning ──</think>──► content ──<tool_call>──► calls ──</tool_call>──► content

What looks like a call and is none is content: nothing that a model wrote is lost, but the marks themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from packtrain.broker.chat import Tool
from packtrain.workers.chat.deltas import Collector, Delta
from packtrain.workers.chat.families import CallSyntax, ChatFormat
from packtrain.workers.chat.json_calls import ObjectReader
from packtrain.workers.chat.tagged_calls import read_region

_JUNK = re.compile(r"[\s,;\[\]]*")
_NO_MARKS = CallSyntax("")
#: Regions that held no call, after which an answer's marks are taken for text. Each may have been read to the end of
#: the answer before that was known, so a model that is told to write thousands of marks would cost their square.
_MAX_NO_CALLS = 16


class Parser(Protocol):
    """Takes an answer apart."""

    def push(self, text: str) -> Delta:
        """More text; what may be shown now."""
        ...

    def flush(self) -> Delta:
        """No more text; the rest."""
        ...


class PlainParser:
    """All text is content.

    Args:
        echo: Comes before the first of it; alone when there is none.
    """

    def __init__(self, echo: str = "") -> None:
        self._echo = echo

    def push(self, text: str) -> Delta:
        return Delta(self._take_echo() + text if text else "")

    def flush(self) -> Delta:
        return Delta(self._take_echo())

    def _take_echo(self) -> str:
        echo, self._echo = self._echo, ""
        return echo


class OutputParser:
    """A `Parser` for every format but harmony.

    Args:
        call_id: Id of the call with this index.
        tools: That may be called; without any, calls are not looked for.
        in_reasoning: The prompt ends inside the reasoning.
        is_forced: The answer is a call and nothing else, in JSON without marks: `forced.py`.
        max_calls: More are dropped; None: no bound.
    """

    def __init__(
        self,
        form: ChatFormat,
        *,
        call_id: Callable[[int], str],
        tools: Sequence[Tool] = (),
        in_reasoning: bool = False,
        is_forced: bool = False,
        max_calls: int | None = None,
    ) -> None:
        self._out = Collector(call_id, max_calls)
        self._marks = form.reasoning
        self._calls = {syntax.open: syntax for syntax in form.calls} if tools else {}
        self._may_be_bare = bool(tools) and form.has_bare_calls
        self._properties = {tool.function.name: _properties(tool) for tool in tools}
        self._held = ""
        self._is_fresh = True  # only blanks since the start, or since the last marked part
        self._after_part = False  # a marked part stood before: blanks after it are no content
        self._separator = ""  # between two blocks of reasoning
        self._syntax = _NO_MARKS
        self._is_bare = False
        self._raw = ""  # of the region, since its opening mark or its last call
        self._opening = ""  # that mark and blanks before it, until a call was found
        self._reader = ObjectReader()
        self._header_name: str | None = None
        self._num_no_calls = 0
        self._num_sent: int | None = None  # characters of the arguments; None: the call has not been announced
        self._state: Callable[[bool], bool] = self._content
        if is_forced:
            self._begin_region(_NO_MARKS)
        elif in_reasoning:
            self._state = self._reasoning

    def push(self, text: str) -> Delta:
        self._held += text
        while self._state(False):
            pass
        return self._out.take()

    def flush(self) -> Delta:
        while self._state(True):
            pass
        return self._out.take()

    # Each state looks at what is held and returns True when it got on. `final`: no more will come.

    def _content(self, final: bool) -> bool:
        if self._is_fresh:
            return self._begin(final)
        at, mark = find_mark(self._held, self._calls, final=final)
        shown = self._held[:at]
        if mark or (self._calls and not final):
            shown = shown.rstrip()  # blanks before a call are no content
        self._out.content(shown)
        if mark:
            end = at + len(mark)
            self._begin_region(self._calls[mark], opening=self._held[len(shown) : end])
            self._held = self._held[end:]
            return True
        self._held = self._held[len(shown) :]
        return False

    def _begin(self, final: bool) -> bool:
        """At the start, or after a marked part: here reasoning or a bare call may begin, too."""
        text = self._held.lstrip()
        if not text and not final:
            return False
        opening = self._marks.open if self._marks else ""
        if opening and text.startswith(opening):
            self._held = text.removeprefix(opening)
            self._state = self._reasoning
            return True
        if opening and not final and opening.startswith(text):
            return False
        if self._after_part:
            self._held = text
        if self._may_be_bare and text.startswith("{"):
            self._begin_region(_NO_MARKS)
            self._is_bare = True
            return True
        self._is_fresh = False
        return bool(self._held)

    def _reasoning(self, final: bool) -> bool:
        assert self._marks
        if self._is_fresh:
            text = self._held.lstrip()
            if not final and self._marks.open.startswith(text):  # blanks, too; some models repeat the mark
                return False
            self._held = text.removeprefix(self._marks.open).lstrip()
            if not self._held:
                return False
            self._is_fresh = False
        at, mark = find_mark(self._held, (self._marks.close,), final=final)
        shown = self._held[:at].rstrip()
        if shown:
            self._out.reasoning(self._separator + shown)
            self._separator = ""
        if not mark:
            self._held = "" if final else self._held[len(shown) :]
            return False
        self._separator = "\n"
        self._end_part(self._held[at + len(mark) :])
        return True

    def _begin_region(self, syntax: CallSyntax, opening: str = "") -> None:
        self._syntax, self._opening, self._raw, self._is_bare = syntax, opening, "", False
        self._state = self._between if syntax.style == "json" else self._tagged

    def _between(self, final: bool) -> bool:
        """In a region of JSON, before the next call of it."""
        close = self._syntax.close
        brace, end = self._held.find("{"), self._held.find(close) if close else -1
        if end >= 0 and not 0 <= brace < end:
            if self._opening:
                return self._is_no_call()
            self._end_part(self._held[end + len(close) :])
            return True
        if brace < 0:
            if final and (self._opening or not self._is_junk(self._held)):
                return self._is_no_call()
            if final:
                self._held = ""
            return False
        header = self._held[:brace]
        self._header_name = None
        if not self._is_junk(header):
            found = re.fullmatch(self._syntax.header, self._without_skipped(header)) if self._syntax.header else None
            if found is None:
                return self._is_no_call()
            self._header_name = found["name"]
        self._raw += header
        self._held = self._held[brace:]
        self._reader, self._num_sent = ObjectReader(), None
        self._state = self._object
        return True

    def _object(self, final: bool) -> bool:
        """In one call written as JSON."""
        reader = self._reader
        count = reader.feed(self._held)
        self._raw += self._held[:count]
        self._held = self._held[count:]
        name = self._header_name or reader.name
        if self._is_bare and not (reader.is_call_so_far and (name is None or name in self._properties)):
            return self._is_no_call()
        arguments = reader.arguments(of_whole=self._header_name is not None)
        if name and arguments is not None:
            self._send(name, arguments)
        if not reader.is_complete:
            return self._is_no_call() if final and self._num_sent is None and self._raw else False
        if self._num_sent is None:
            call = reader.call()
            if call is None or (self._is_bare and call[0] not in self._properties):
                return self._is_no_call()
            self._send(*call)
        self._raw = self._opening = ""
        self._state = self._between
        return True

    def _tagged(self, final: bool) -> bool:
        """In a region that is read as a whole."""
        close = self._syntax.close
        end = self._held.find(close)
        if end < 0 and not final:
            return False
        body, rest = (self._held[:end], self._held[end + len(close) :]) if end >= 0 else (self._held, "")
        calls = read_region(self._syntax, body, self._properties)
        if not calls:
            return self._is_no_call()
        for name, arguments in calls:
            self._num_sent = None
            self._send(name, arguments)
        self._end_part(rest)
        return True

    def _send(self, name: str, arguments: str) -> None:
        if self._num_sent is None:
            self._out.begin_call(name)
            self._num_sent = 0
        self._out.arguments(arguments[self._num_sent :])
        self._num_sent = len(arguments)

    def _is_no_call(self) -> bool:
        """What the region holds is content after all. Read again as such, so that a mark within it counts."""
        self._num_no_calls += 1
        if self._num_no_calls == _MAX_NO_CALLS:
            self._calls, self._may_be_bare = {}, False
        self._out.content(self._opening)
        self._held = self._raw + self._held
        self._is_fresh = False
        self._state = self._content
        return True

    def _end_part(self, rest: str) -> None:
        self._held = rest
        self._is_fresh = self._after_part = True
        self._state = self._content

    def _without_skipped(self, text: str) -> str:
        for mark in self._syntax.skip:
            text = text.replace(mark, "")
        return text.strip(" \t\r\n,;`")

    def _is_junk(self, text: str) -> bool:
        return _JUNK.fullmatch(self._without_skipped(text)) is not None


def find_mark(text: str, marks: Iterable[str], *, final: bool) -> tuple[int, str]:
    """Where the first mark stands, and which. No mark: '' and where the tail begins that may become one."""
    at, found = len(text), ""
    tail = len(text)
    for mark in marks:
        where = text.find(mark)
        if 0 <= where < at:
            at, found = where, mark
        for size in range(0 if final else min(len(mark) - 1, len(text)), 0, -1):
            if text.endswith(mark[:size]):
                tail = min(tail, len(text) - size)
                break
    return (tail, "") if tail < at else (at, found)


def _properties(tool: Tool) -> dict[str, object]:
    properties = tool.function.parameters.get("properties")
    return properties if isinstance(properties, dict) else {}
