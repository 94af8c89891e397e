"""Continued texts in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packtrain.client.openai.forms import HeldLogprobs, Stamp, StreamForm, extras_of, fingerprint
from packtrain.client.openai.logprobs import completion_logprobs, width
from packtrain.client.result import AnswerDelta, Result


class CompletionForm(StreamForm):
    """text_completion, whole and in chunks of the same name.

    Args:
        echo: The text begins with the prompt.
        scores_prompt: Its tokens have logprobs, too. They come with the result, so a stream of such an answer has its
            text in one chunk, at the end: its logprobs have to be in the order of the text.
    """

    def __init__(self, choices: int = 1, *, echo: bool = False, scores_prompt: bool = False) -> None:
        super().__init__(choices)
        self._echo = echo
        self._scores_prompt = scores_prompt
        self._held = HeldLogprobs()
        self._offsets: dict[int, int] = {}

    def body(self, stamp: Stamp, results: Sequence[Result], *, extras: bool = True) -> dict[str, Any]:
        choices = [
            {
                "text": result.text,
                "index": index,
                "logprobs": self._logprobs(result),
                "finish_reason": result.finish_reason,
            }
            for index, result in enumerate(results)
        ]
        said = {**self._head(stamp), "choices": choices, "usage": self.used(results)}
        return {**said, **fingerprint(results), **(extras_of(results) if extras else {})}

    def piece(self, stamp: Stamp, choice: int, delta: AnswerDelta) -> list[dict[str, Any]]:
        if self._scores_prompt:
            return []
        self._held.add(choice, delta.logprobs)
        return [self._chunk(stamp, choice, delta.text)] if delta.text else []

    def closing(self, stamp: Stamp, choice: int, result: Result) -> list[dict[str, Any]]:
        whole = []
        if self._scores_prompt:
            said = {"text": result.text, "index": choice, "logprobs": self._logprobs(result), "finish_reason": None}
            whole = [{**self._head(stamp), "choices": [said]}]
        last = self._chunk(stamp, choice, "", result.finish_reason)
        return [*whole, {**last, **fingerprint([result]), **extras_of([result])}]

    def usage(self, stamp: Stamp, results: Sequence[Result]) -> dict[str, Any]:
        return {**self._head(stamp), "choices": [], "usage": self.used(results)}

    def _logprobs(self, result: Result) -> dict[str, Any] | None:
        before = result.prompt_logprobs if self._echo else ()
        return completion_logprobs((*before, *result.logprobs)) if before or result.logprobs else None

    def _head(self, stamp: Stamp) -> dict[str, Any]:
        fixed = {"id": f"cmpl-{stamp.id}", "object": "text_completion", "created": stamp.created}
        return {**fixed, "model": stamp.model}

    def _chunk(self, stamp: Stamp, choice: int, text: str, finish: str | None = None) -> dict[str, Any]:
        held, logprobs = self._held.take(choice), None
        if held:
            offset = self._offsets.get(choice, 0)
            logprobs = completion_logprobs(held, offset)
            self._offsets[choice] = offset + sum(map(width, held))
        said = {"text": text, "index": choice, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head(stamp), "choices": [said]}
