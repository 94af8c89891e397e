"""The seam between the engine and whatever computes tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from packtrain.broker.errors import PacktrainError
from packtrain.broker.messages import Message, SamplingParams


class DecodeFailed(Exception):
    """A step failed. The cache may hold some of its rows: `truncate` every sequence of it before the next step."""


class Interrupted(Exception):
    """`should_stop` became true within a step. The cache may hold some of its rows, as after `DecodeFailed`."""


class SequenceFailed(Exception):
    """One sequence of a step cannot go on. No sequence has moved on: `truncate` each as after `DecodeFailed`.

    Args:
        error: What its job ends with.
    """

    def __init__(self, seq_id: int, error: PacktrainError) -> None:
        super().__init__(f"sequence {seq_id}: {error}")
        self.seq_id = seq_id
        self.error = error


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a loaded model."""

    n_slots: int  # sequences at once
    n_ctx: int  # tokens of one slot
    n_batch: int  # rows of one step
    n_vocab: int


@dataclass(frozen=True, slots=True)
class StepRows:
    """Tokens of one sequence for one step, at positions [start, start + len(tokens))."""

    seq_id: int
    start: int
    tokens: Sequence[int]
    wants_token: bool  # sample the token after the last of these


class Backend(Protocol):
    """One loaded model with its cache. `tokenize`, `render_chat`, `piece`, `is_end`, `prepare` are thread-safe; the
    rest belongs to the engine thread alone."""

    @property
    def shape(self) -> Shape:
        """Sizes."""
        ...

    def tokenize(self, text: str, *, is_rendered: bool) -> list[int]:
        """Token ids. `is_rendered`: text from `render_chat`, whose special tokens are parsed and already complete."""
        ...

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The prompt for a chat by the model's own template.

        Raises:
            InvalidRequest: No template, or the template refuses these messages.
        """
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of a token; empty for control tokens."""
        ...

    def is_end(self, token: int) -> bool:
        """True for tokens that end a text."""
        ...

    def prepare(self, params: SamplingParams) -> None:
        """Compile the response format, if any, so that `open` finds it ready. May take some 100 ms.

        Raises:
            InvalidParameter: This model cannot be held to it.
        """
        ...

    def open(self, seq_id: int, params: SamplingParams, seed: int, history: Sequence[int], num_output: int) -> None:
        """Begin a sequence in an empty slot.

        Args:
            params: Of a request that passed `prepare`.
            history: Tokens before the next sampled one, for penalties: prompt and resumed output.
            num_output: How many of them are output; the response format goes on behind these.
        """
        ...

    def close(self, seq_id: int) -> None:
        """End a sequence and forget its cache."""
        ...

    def truncate(self, seq_id: int, num_cached: int) -> int:
        """Keep only the first tokens of a sequence in the cache; how many are left (a model may have to drop all)."""
        ...

    def step(self, rows: Sequence[StepRows], should_stop: Callable[[], bool]) -> list[int]:
        """Compute one step; the sampled token of each of `rows` that wants one, in order. Blocks.

        Args:
            rows: By rising `seq_id`, at most `n_batch` tokens together.
            should_stop: Asked many times within a long step.

        Raises:
            DecodeFailed, Interrupted, SequenceFailed
        """
        ...

    def shutdown(self) -> None:
        """Free everything."""
        ...
