"""Answers of an OpenAI-compatible server: its JSON, taken apart as ours are. Pure, and suspicious.

A server may send anything. What has not the form of an answer is a `BrokenAnswer`; what only has more than we know of
is passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from packtrain.broker.chat import CallDelta
from packtrain.broker.outcome import Usage
from packtrain.broker.pieces import Logprob, TokenLogprob
from packtrain.workers.chat.deltas import Delta
from packtrain.workers.remote.options import RemoteOptions

#: Tools called in one answer.
MAX_CALLS = 128
#: Dimensions of a vector.
MAX_DIMS = 65_536
#: Characters of a server's words that are passed on.
MAX_SAID = 400
#: What an error event means by its type.
_STATUSES = {"invalid_request_error": 400, "rate_limit_error": 429, "authentication_error": 401}
#: Stands for the id of a token of which the server names only the text.
NO_TOKEN = -1

FinishReason = Literal["stop", "length", "filtered"]
_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop", "eos": "stop", "length": "length", "tool_calls": "stop", "function_call": "stop",
    "content_filter": "filtered",
}  # fmt: skip


class BrokenAnswer(Exception):
    """What came is no answer, or the answer breaks off.

    Args:
        status: Of HTTP, that the server would have given this before the answer began; None: it does not say.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class TooLarge(BrokenAnswer):
    """The answer is larger than the operator allows. Asked again, it would be so again."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event adds to an answer."""

    delta: Delta
    logprobs: tuple[TokenLogprob, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.delta or self.logprobs)


class Answer:
    """One answer as its events come.

    Args:
        form: What was asked for.
    """

    def __init__(self, form: Literal["chat", "text", "vector"]) -> None:
        self._form = form
        self._known_calls: set[int] = set()
        self.finish: FinishReason | None = None  # None: it has not ended
        self.usage: Mapping[str, Any] = {}
        self.served_by = ""  # model and build, as the server has it

    def take(self, data: str) -> Piece:
        """What one event, or a whole answer that is no stream, says.

        Raises:
            BrokenAnswer
        """
        event = _object(_parsed(data), "an event")
        if event.get("error"):
            raise _said(event["error"])
        if isinstance(usage := event.get("usage"), Mapping):
            self.usage = usage
        if isinstance(model := event.get("model"), str) and not self.served_by:
            build = event.get("system_fingerprint")
            self.served_by = f"{model} {build}"[:200] if isinstance(build, str) and build else model[:200]
        choices = event.get("choices") or ()
        if not isinstance(choices, Sequence) or isinstance(choices, str):
            raise BrokenAnswer("`choices` of its answer is no list")
        if not choices:
            return Piece(Delta())
        choice = _object(choices[0], "a choice")
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            self.finish = _REASONS.get(reason, "stop")
        if self._form == "text":
            return Piece(Delta(_text(choice.get("text"))), _text_logprobs(choice.get("logprobs")))
        return Piece(self._delta(choice.get("delta") or choice.get("message") or {}), _logprobs(choice.get("logprobs")))

    def is_over(self) -> None:
        """The server has said that this was all.

        Raises:
            BrokenAnswer: It has not said how it ended.
        """
        if self.finish is None:
            raise BrokenAnswer("its answer breaks off")

    def _delta(self, told: object) -> Delta:
        message = _object(told, "a delta")
        reasoning = _text(message.get("reasoning_content") or message.get("reasoning"))
        content = _text(message.get("content")) + _text(message.get("refusal"))
        calls = message.get("tool_calls") or ()
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise BrokenAnswer("`tool_calls` of its answer is no list")
        return Delta(content, reasoning, tuple(self._call(place, call) for place, call in enumerate(calls)))

    def _call(self, place: int, told: object) -> CallDelta:
        call = _object(told, "a tool call")
        index = call.get("index")
        index = place if index is None else index
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < MAX_CALLS:
            raise BrokenAnswer(f"a tool call of its answer has the index {index!r:.40}")
        function = _object(call.get("function") or {}, "a function")
        arguments = function.get("arguments")
        text = json.dumps(arguments) if isinstance(arguments, Mapping) else _text(arguments)
        if index in self._known_calls:
            return CallDelta(index, text)
        self._known_calls.add(index)
        name = _text(function.get("name"))
        if not name:
            raise BrokenAnswer("a tool call of its answer has no name")
        return CallDelta(index, text, _text(call.get("id"))[:256] or f"call_{index}", name)


def vector_of(data: str) -> tuple[bytes, Mapping[str, Any]]:
    """The vector of an answer, of length 1, as 32-bit little-endian floats; and what the server says of its usage.

    Raises:
        BrokenAnswer
    """
    answer = _object(_parsed(data), "its answer")
    rows = answer.get("data")
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise BrokenAnswer("it has no vector in its answer")
    vector = _object(rows[0], "its vector").get("embedding")
    if not isinstance(vector, list) or not 0 < len(vector) <= MAX_DIMS or not all(map(_is_number, vector)):
        raise BrokenAnswer("its vector is no list of numbers")
    exact = np.asarray(vector, dtype=np.float64)
    length = float(np.linalg.norm(exact))
    if not math.isfinite(length) or not length:
        raise BrokenAnswer("its vector has no direction")
    usage = answer.get("usage")
    return (exact / length).astype("<f4").tobytes(), usage if isinstance(usage, Mapping) else {}


def usage_of(told: Mapping[str, Any], num_pieces: int, options: RemoteOptions) -> Usage:
    """Tokens and cost of an answer.

    Args:
        told: By the server.
        num_pieces: That came, one for a token with most servers, where it tells nothing.
    """
    details = told.get("prompt_tokens_details")
    prompt, output = _count(told.get("prompt_tokens")), _count(told.get("completion_tokens"))
    reused = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
    cost = None
    if options.price_in is not None and options.price_out is not None and prompt is not None:
        cost = (prompt * options.price_in + (output or 0) * options.price_out) / 1_000_000
    return Usage(
        prompt_tokens=prompt or 0,
        completion_tokens=num_pieces if output is None else output,
        reused_tokens=reused or 0,
        cost=cost,
    )


def _said(error: object) -> BrokenAnswer:
    """An error that stands where a piece of an answer should."""
    if not isinstance(error, Mapping):
        return BrokenAnswer(f"it said: {str(error)[:MAX_SAID]}")
    code, status = error.get("code"), _STATUSES.get(str(error.get("type")))
    if isinstance(code, int) and 400 <= code <= 599:
        status = code
    return BrokenAnswer(f"it said: {str(error.get('message'))[:MAX_SAID]}", status)


def _parsed(data: str) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise BrokenAnswer("it sent something that is no JSON") from None


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BrokenAnswer(f"{what} is no JSON object")
    return value


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BrokenAnswer("a text of its answer is none")
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _logprobs(told: object) -> tuple[TokenLogprob, ...]:
    rows = told.get("content") if isinstance(told, Mapping) else None
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        return ()
    return tuple(
        TokenLogprob(
            token=one.token, text=one.text, logprob=one.logprob,
            top=tuple(map(_logprob, row.get("top_logprobs") or ())),
        )
        for row in rows
        if isinstance(row, Mapping)
        for one in (_logprob(row),)
    )  # fmt: skip


def _logprob(told: object) -> Logprob:
    row = _object(told, "a logprob")
    token, logprob = row.get("id"), row.get("logprob")
    if isinstance(logprob, bool) or not isinstance(logprob, int | float):
        raise BrokenAnswer("a logprob of its answer is no number")
    is_id = isinstance(token, int) and not isinstance(token, bool)
    return Logprob(token=token if is_id else NO_TOKEN, text=_text(row.get("token")), logprob=float(logprob))


def _text_logprobs(told: object) -> tuple[TokenLogprob, ...]:
    """The form of `completions`: lists side by side."""
    if not isinstance(told, Mapping):
        return ()
    if "content" in told:  # some give it in the form of chats
        return _logprobs(told)
    tokens, logprobs, tops = (told.get(name) or () for name in ("tokens", "token_logprobs", "top_logprobs"))
    found = []
    for place, text in enumerate(tokens):
        logprob = logprobs[place] if place < len(logprobs) else None
        top = tops[place] if place < len(tops) and isinstance(tops[place], Mapping) else {}
        if isinstance(logprob, bool) or not isinstance(
            logprob, int | float
        ):  # the first token of an echoed prompt has none
            continue
        ranked = sorted(((lp, t) for t, lp in top.items() if _is_number(lp)), key=lambda pair: -pair[0])
        likeliest = tuple(Logprob(token=NO_TOKEN, text=_text(t), logprob=float(lp)) for lp, t in ranked)
        found.append(TokenLogprob(token=NO_TOKEN, text=_text(text), logprob=float(logprob), top=likeliest))
    return tuple(found)
