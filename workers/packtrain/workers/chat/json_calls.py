"""One JSON object as it is written: tells where its name and its arguments stand before it has ended.

    {"name": "look_up", "arguments": {"city": "Oslo"}}
                                     └── given out ──┘ as it comes, once the name is known

Models write raw line breaks into strings, which JSON forbids; they are escaped on the way. Nothing else is changed, so
the arguments are the model's own text.
"""

from __future__ import annotations

import json
import re
from typing import Any

_OUTSIDE = re.compile(r'["{}\[\]:,]')
_INSIDE = re.compile(r'["\\]')
_ESCAPES = {code: f"\\u{code:04x}" for code in range(0x20)} | {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}
NAME_KEYS = frozenset({"name", "tool_name"})
ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
#: Keys that a call may begin with. Any other first key says that the object is no call.
CALL_KEYS = NAME_KEYS | ARGUMENT_KEYS | {"type", "id", "function", "tool_call_id"}


class ObjectReader:
    """Reads one object. Feeding it in other pieces changes nothing."""

    def __init__(self) -> None:
        self.text = ""  # what has been read, with its strings mended
        self.is_complete = False
        self.name: str | None = None
        self.first_key: str | None = None
        self._arguments_at: int | None = None
        self._arguments_end: int | None = None
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._string_at = 0
        self._key = ""
        self._after_colon = False

    def feed(self, text: str) -> int:
        """Read on; how many characters belong to the object. It begins with its brace."""
        at = 0
        while at < len(text) and not self.is_complete:
            if self._in_string:
                at = self._read_string(text, at)
                continue
            found = _OUTSIDE.search(text, at)
            end = found.end() if found else len(text)
            self.text += text[at:end]
            at = end
            if found:
                self._take(found.group())
        return at

    @property
    def is_call_so_far(self) -> bool:
        """False when this is known to be no call."""
        rest = self.text[1:].lstrip()
        return (self.first_key is None or self.first_key in CALL_KEYS) and rest[:1] in ("", '"', "}")

    def arguments(self, *, of_whole: bool) -> str | None:
        """Text of the arguments as far as it has come; None while they have not begun.

        Args:
            of_whole: The object itself is the arguments.
        """
        if of_whole:
            return self.text
        if self._arguments_at is None:
            return None
        return self.text[self._arguments_at : self._arguments_end]

    def call(self) -> tuple[str, str] | None:
        """Name and arguments out of the complete object, wherever they stand in it; None when it is no call."""
        try:
            value = json.loads(self.text)
        except (ValueError, RecursionError):
            return None
        inner = value.get("function")
        if isinstance(inner, dict):
            value = inner
        name = next((value[key] for key in NAME_KEYS if isinstance(value.get(key), str)), None)
        if not name:
            return None
        if self._arguments_at is not None and inner is None:
            return name, self.text[self._arguments_at : self._arguments_end]
        return name, _as_text(next((value[key] for key in ARGUMENT_KEYS if key in value), {}))

    def _read_string(self, text: str, at: int) -> int:
        if self._is_escaped:
            self.text += text[at]
            self._is_escaped = False
            return at + 1
        found = _INSIDE.search(text, at)
        end = found.end() if found else len(text)
        self.text += text[at:end].translate(_ESCAPES)
        if found and found.group() == "\\":
            self._is_escaped = True
        elif found:
            self._in_string = False
            if self._depth == 1:
                self._take_string()
        return end

    def _take_string(self) -> None:
        try:
            value = str(json.loads(self.text[self._string_at :]))
        except ValueError:
            value = ""
        if not self._after_colon:
            self._key = value
            self.first_key = value if self.first_key is None else self.first_key
        elif self._key in NAME_KEYS and self.name is None:
            self.name = value

    def _take(self, mark: str) -> None:
        at = len(self.text) - 1
        match mark:
            case '"':
                self._in_string, self._string_at = True, at
            case "{" | "[":
                is_value = mark == "{" and self._depth == 1 and self._after_colon
                if is_value and self._key in ARGUMENT_KEYS and self._arguments_at is None:
                    self._arguments_at = at
                self._depth += 1
            case "}" | "]":
                self._depth -= 1
                if self._depth == 1 and self._arguments_at is not None and self._arguments_end is None:
                    self._arguments_end = at + 1
                self.is_complete = self._depth <= 0
            case ":" if self._depth == 1:
                self._after_colon = True
            case "," if self._depth == 1:
                self._after_colon = False
            case _:
                pass


def _as_text(arguments: Any) -> str:
    if isinstance(arguments, str):  # some models write the arguments as a text of JSON
        return arguments or "{}"
    return "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)
