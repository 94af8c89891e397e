"""A scripted model for tests and for measuring everything but a model: it answers each prompt with known text.

Tokens are UTF-8 bytes. The answer to a prompt is the prompt itself, read backwards by characters, then the end token;
so every answer belongs visibly to its own prompt. Words in the prompt make trouble on purpose:

    !fail    every step with this sequence fails
    !crash   the process dies by SIGABRT, as ggml does
    !hang    the step never returns
    !long    the answer is repeated until the slot is full
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from packtrain.broker.errors import InvalidParameter, InvalidRequest
from packtrain.broker.messages import Message, SamplingParams
from packtrain.broker.structured import FreeText
from packtrain.workers.backends.base import DecodeFailed, Interrupted, Shape, StepRows

END = 256


@dataclass(slots=True)
class _Slot:
    cached: list[int] = field(default_factory=list)
    num_prompt: int = 0


class ScriptedBackend:
    """A `Backend` without weights.

    Args:
        step_s: Seconds that one step takes.
        row_s: Seconds more for each row of it.
    """

    def __init__(self, *, n_slots: int = 4, n_ctx: int = 512, step_s: float = 0, row_s: float = 0) -> None:
        self._shape = Shape(n_slots, n_ctx, n_batch=max(64, n_slots), n_vocab=END + 1)
        self._slots: dict[int, _Slot] = {}
        self._step_s = step_s
        self._row_s = row_s
        self.steps: list[list[StepRows]] = []

    @property
    def shape(self) -> Shape:
        return self._shape

    def tokenize(self, text: str, *, is_rendered: bool) -> list[int]:
        return list(text.encode())

    def render_chat(self, messages: Sequence[Message]) -> str:
        if any(m.role == "system" for m in messages):
            raise InvalidRequest("the scripted model takes no system message; leave it out")
        return messages[-1].content

    def piece(self, token: int) -> bytes:
        return b"" if token == END else bytes([token])

    def is_end(self, token: int) -> bool:
        return token == END

    def prepare(self, params: SamplingParams) -> None:
        if not isinstance(params.response_format, FreeText):
            raise InvalidParameter(
                "response_format cannot be enforced: the scripted model says what it says; leave it out",
                field="response_format",
            )

    def open(self, seq_id: int, params: SamplingParams, seed: int, history: Sequence[int], num_output: int) -> None:
        assert seq_id not in self._slots, f"slot {seq_id} is in use"
        self._slots[seq_id] = _Slot(num_prompt=len(history) - num_output)

    def close(self, seq_id: int) -> None:
        del self._slots[seq_id]

    def truncate(self, seq_id: int, num_cached: int) -> int:
        del self._slots[seq_id].cached[num_cached:]
        return num_cached

    def step(self, rows: Sequence[StepRows], should_stop: Callable[[], bool]) -> list[int]:
        self.steps.append(list(rows))
        self._pass_time(self._step_s + self._row_s * sum(len(r.tokens) for r in rows), should_stop)
        for row in rows:
            slot = self._slots[row.seq_id]
            assert row.start == len(slot.cached), f"slot {row.seq_id} has a gap: {row.start} after {len(slot.cached)}"
            slot.cached += row.tokens
        for row in rows:
            prompt = self._prompt(row.seq_id)
            if "!fail" in prompt:
                raise DecodeFailed("scripted failure")
            if "!crash" in prompt:
                os.abort()
            while "!hang" in prompt:
                time.sleep(0.05)
        return [self._next(self._slots[row.seq_id]) for row in rows if row.wants_token]

    def shutdown(self) -> None:
        self._slots.clear()

    def _pass_time(self, seconds: float, should_stop: Callable[[], bool]) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if should_stop():
                raise Interrupted
            time.sleep(min(left, 0.01))

    def _prompt(self, seq_id: int) -> str:
        slot = self._slots[seq_id]
        return bytes(slot.cached[: slot.num_prompt]).decode(errors="replace")

    def _next(self, slot: _Slot) -> int:
        prompt = bytes(slot.cached[: slot.num_prompt]).decode()
        answer = list(prompt[::-1].encode())
        produced = len(slot.cached) - slot.num_prompt
        if "!long" in prompt:
            return answer[produced % len(answer)]
        return answer[produced] if produced < len(answer) else END
