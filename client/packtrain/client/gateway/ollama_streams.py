"""Ollama's answers: lines of JSON, or one object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from packtrain.broker.explain import Explanation
from packtrain.client.dialects.ollama.form import AnswerForm, Kind, error, without_text
from packtrain.client.gateway.serving import Writer
from packtrain.client.openai import Fault, Stamp
from packtrain.client.result import AnswerDelta, Result


class OllamaAnswerer:
    """Answers of one request for text.

    Args:
        model: As the client named it.
    """

    def __init__(self, model: str, kind: Kind) -> None:
        self._model = model
        self._kind = kind

    def body(self, stamp: Stamp, results: Sequence[Result]) -> dict[str, Any]:
        return AnswerForm(self._model, self._kind, stamp).whole(results[0])

    def without_text(self, created: float, reason: Literal["load", "unload"]) -> dict[str, Any]:
        return without_text(self._model, self._kind, created, reason)

    def writer(self, stamp: Stamp) -> Writer:
        return _Lines(AnswerForm(self._model, self._kind, stamp))


class _Lines:
    """A line for each bit. While nothing comes nothing can be sent, for clients parse every line."""

    media_type = "application/x-ndjson"
    tells_queue = False

    def __init__(self, form: AnswerForm) -> None:
        self._form = form

    def opening(self) -> list[bytes]:
        return []

    def waiting(self, place: Explanation | None) -> list[bytes]:
        return []

    def piece(self, choice: int, delta: AnswerDelta) -> list[bytes]:
        return [_line(said) for said in self._form.piece(delta)]

    def closing(self, choice: int, result: Result) -> list[bytes]:
        return [_line(said) for said in self._form.closing(result)]

    def ending(self, results: Sequence[Result]) -> list[bytes]:
        return []

    def failing(self, fault: Fault) -> list[bytes]:
        return [_line(error(fault))]


def _line(said: dict[str, Any]) -> bytes:
    return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace") + b"\n"
