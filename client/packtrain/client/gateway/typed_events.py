"""Streams whose events say what they are: Anthropic's messages and OpenAI's Responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from packtrain.broker.explain import Explanation
from packtrain.client.gateway.streams import comment, data
from packtrain.client.openai import Fault
from packtrain.client.result import AnswerDelta, Result

Events = list[dict[str, Any]]  # the `type` of each is its name


class TypedStream(Protocol):
    """The events of one answer, in one API's form."""

    def opening(self) -> Events: ...
    def waiting(self) -> Events:
        """Nothing came for a while; nothing to say: a comment is sent."""
        ...

    def piece(self, delta: AnswerDelta) -> Events: ...
    def closing(self, result: Result) -> Events: ...
    def failing(self, fault: Fault) -> Events: ...


class TypedWriter:
    """Sends such a stream. It has one answer, so one choice."""

    media_type = "text/event-stream"
    tells_queue = False  # clients fail at events that they do not know

    def __init__(self, stream: TypedStream) -> None:
        self._stream = stream

    def opening(self) -> list[bytes]:
        return _sent(self._stream.opening())

    def waiting(self, place: Explanation | None) -> list[bytes]:
        return _sent(self._stream.waiting()) or [comment("waiting")]

    def piece(self, choice: int, delta: AnswerDelta) -> list[bytes]:
        return _sent(self._stream.piece(delta))

    def closing(self, choice: int, result: Result) -> list[bytes]:
        return _sent(self._stream.closing(result))

    def ending(self, results: Sequence[Result]) -> list[bytes]:
        return []

    def failing(self, fault: Fault) -> list[bytes]:
        return _sent(self._stream.failing(fault))


def _sent(events: Events) -> list[bytes]:
    return [data(event, event=event["type"]) for event in events]
