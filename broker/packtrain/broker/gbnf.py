"""GBNF, llama.cpp's grammar notation: checked here, and written anew in the notation of the engine that enforces it.

llama.cpp's own matcher is not used, for one request could take an instance down with it: `root ::= "x" root "a" | "x"
root "b" | "y"`, 40 characters, doubles its parse stacks with each x. llguidance's Earley parser takes that in linear
space, and has budgets. It reads a kind of Lark, in which we make every character a terminal of its own: its lexer has
nothing to be greedy about, and the language is that of the GBNF (`tests/contract/test_constraint.py` compares them).

    rule ::= "text" [a-z] [^a-z] . other-rule ( a | b )   with ? * + {m} {m,} {m,n} behind any of them   # comment
"""

from __future__ import annotations

import re
import sys

MAX_CHARS = 32 * 1024
#: Groups within groups. llguidance reads 27.
MAX_NESTING = 24
#: llama.cpp's own bound on {m,n}.
MAX_REPEAT = 2000

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*|[0-9][A-Za-z0-9_-]*")
_REPEAT = re.compile(r"\{\s*([0-9]{1,9})\s*(?:(,)\s*([0-9]{1,9})?\s*)?\}")
_BLANK = re.compile(r"(?:[ \t]|#[^\n]*)*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_ESCAPED = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


def to_lark(text: str) -> str:
    """The same language as a Lark grammar whose first rule is `start`.

    Raises:
        ValueError: The grammar is broken or too large; the message names the line.
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"the grammar has {len(text)} characters, at most {MAX_CHARS} are allowed")
    parser = _Parser(text)
    parser.grammar()
    return "\n".join(f"{parser.lark_name(name)}: {body}" for name, body in parser.rules.items())


class _Parser:
    """Recursive descent, one method for each thing; each gives it in Lark and leaves `at` behind it."""

    def __init__(self, text: str) -> None:
        self.rules: dict[str, str] = {}
        self._text = text
        self._at = 0
        self._nesting = 0
        self._used: dict[str, int] = {}  # rule to where it was first used

    def lark_name(self, name: str) -> str:
        """Of a GBNF rule: every name is legal there as it is not in Lark."""
        return "start" if name == "root" else f"r_{name.encode().hex()}"

    def grammar(self) -> None:
        self._skip(_BLANK_LINES)
        while self._at < len(self._text):
            begin = self._at
            name = self._name()
            if name in self.rules:
                raise self._wrong(f"rule {name!r} is defined twice", begin)
            self._skip(_BLANK)
            if not self._take("::="):
                raise self._wrong(f"expected ::= after {name!r}")
            self._skip(_BLANK_LINES)
            self.rules[name] = self._alternates()
            if self._at < len(self._text) and not self._take("\n") and not self._take("\r"):
                raise self._wrong(f"unexpected {self._text[self._at]!r}")
            self._skip(_BLANK_LINES)
        for name, at in self._used.items():
            if name not in self.rules:
                raise self._wrong(f"rule {name!r} is used and not defined", at)
        if "root" not in self.rules:
            raise ValueError("there is no rule 'root'; the grammar begins there")

    def _alternates(self) -> str:
        parts = [self._sequence()]
        while self._take("|"):
            self._skip(_BLANK_LINES)
            parts.append(self._sequence())
        return " | ".join(parts)

    def _sequence(self) -> str:
        items: list[str] = []
        while (item := self._item()) is not None:
            self._skip_blank()
            if repeat := self._repeat():
                item += repeat
                self._skip_blank()
            while repeat := self._repeat():
                item = f"({item}){repeat}"
                self._skip_blank()
            items.append(item)
        return " ".join(items) or '""'

    def _item(self) -> str | None:
        head = self._text[self._at : self._at + 1]
        if head == '"':
            return self._literal()
        if head == "[":
            return self._class()
        if head == "(":
            return self._group()
        if self._take("."):
            return "/(?s:.)/"
        if head and _NAME.match(head):
            begin = self._at
            name = self._name()
            self._used.setdefault(name, begin)
            return self.lark_name(name)
        if head in ("<", "!"):
            raise self._wrong("tokens (<...>) are not supported; write the text that they stand for")
        return None

    def _group(self) -> str:
        begin = self._at
        self._at += 1
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise self._wrong(f"groups are nested more than {MAX_NESTING} deep")
        self._skip(_BLANK_LINES)
        body = self._alternates()
        if not self._take(")"):
            raise self._wrong("this ( is never closed", begin)
        self._nesting -= 1
        return f"({body})"

    def _literal(self) -> str:
        begin = self._at
        self._at += 1
        chars: list[str] = []
        while not self._take('"'):
            chars.append(_single(self._char(begin)))
        return f"({' '.join(chars)})" if chars else '""'

    def _class(self) -> str:
        begin = self._at
        self._at += 1
        is_negated = self._take("^")
        ranges: list[str] = []
        while not self._take("]"):
            first = last = self._char(begin)
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                last = self._char(begin)
            if first > last:
                raise self._wrong("a range runs backwards", begin)
            ranges.append(f"{_escape(first)}-{_escape(last)}")
        if not ranges:
            raise self._wrong("a class [] holds no character; use . for any", begin)
        return f"/[{'^' if is_negated else ''}{''.join(ranges)}]/"

    def _char(self, begin: int) -> int:
        char = self._text[self._at : self._at + 1]
        if char in ("", "\n"):
            raise self._wrong(f"this {self._text[begin]} is never closed", begin)
        self._at += 1
        if char != "\\":
            return self._scalar(ord(char))
        kind = self._text[self._at : self._at + 1]
        self._at += 1
        if kind in _ESCAPED:
            return ord(_ESCAPED[kind])
        digits = self._text[self._at : self._at + _HEX_DIGITS.get(kind, 0)]
        if not digits or not re.fullmatch(rf"[0-9A-Fa-f]{{{_HEX_DIGITS[kind]}}}", digits):
            raise self._wrong(f"unknown escape \\{kind}{digits}")
        self._at += len(digits)
        return self._scalar(int(digits, 16))

    def _scalar(self, code: int) -> int:
        if 0xD800 <= code <= 0xDFFF or code > sys.maxunicode:
            raise self._wrong(f"U+{code:04X} is no character")
        return code

    def _repeat(self) -> str | None:
        for sign in "*+?":
            if self._take(sign):
                return sign
        if not self._text.startswith("{", self._at):
            return None
        match = _REPEAT.match(self._text, self._at)
        if not match:
            raise self._wrong("expected {m}, {m,} or {m,n}")
        low, has_comma, high = int(match[1]), bool(match[2]), match[3]
        top = int(high) if high else (None if has_comma else low)
        if max(low, top or 0) > MAX_REPEAT:
            raise self._wrong(f"a repetition of more than {MAX_REPEAT}")
        if top is not None and top < low:
            raise self._wrong("a repetition whose most is below its least")
        self._at = match.end()
        return f"{{{low},{'' if top is None else top}}}"

    def _name(self) -> str:
        match = _NAME.match(self._text, self._at)
        if not match:
            found = self._text[self._at : self._at + 1]
            raise self._wrong(f"expected the name of a rule, found {found!r}" if found else "expected a rule")
        self._at = match.end()
        return match[0]

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _skip_blank(self) -> None:
        # A line's end ends a rule, but not within parentheses.
        self._skip(_BLANK_LINES if self._nesting else _BLANK)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _wrong(self, what: str, at: int | None = None) -> ValueError:
        line = self._text.count("\n", 0, self._at if at is None else at) + 1
        return ValueError(f"line {line}: {what}")


def _single(code: int) -> str:
    return f"/{_escape(code)}/"


def _escape(code: int) -> str:
    return rf"\u{{{code:X}}}"
