"""The seam between the engine and whatever computes tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from packtrain.broker.messages import SamplingParams
from packtrain.workers.chat.families import ChatFormat
from packtrain.workers.chat.infill import FimTokens
from packtrain.workers.chat.masking import SpecialTexts


class DecodeFailed(Exception):
    """A step failed. The cache may hold some of its rows: `truncate` every sequence of it before the next step."""


class Interrupted(Exception):
    """`should_stop` became true within a step. The cache may hold some of its rows, as after `DecodeFailed`."""


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
    """One loaded model with its cache. `tokenize`, `render_chat`, `piece`, `is_end` and the properties are
    thread-safe; the rest belongs to the engine thread alone."""

    @property
    def shape(self) -> Shape:
        """Sizes."""
        ...

    @property
    def chat_format(self) -> ChatFormat:
        """What the chat template tells of how the model writes."""
        ...

    @property
    def special_texts(self) -> SpecialTexts:
        """Texts of the tokens that only a template may write."""
        ...

    @property
    def fim_tokens(self) -> FimTokens | None:
        """Tokens around a gap to be filled; None: the model cannot."""
        ...

    def tokenize(self, text: str, *, is_rendered: bool, is_part: bool = False) -> list[int]:
        """Token ids.

        Args:
            is_rendered: Text from `render_chat`, whose special tokens are parsed and already complete.
            is_part: A piece from the middle of a prompt: no special token is parsed, none is added around it.
        """
        ...

    def render_chat(self, variables: Mapping[str, Any]) -> str:
        """The prompt for a chat: the model's own template with these variables, `messages` among them.

        Raises:
            InvalidRequest: No template, or the template refuses these variables.
        """
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of a token; empty for control tokens, but for those that mark parts of an answer."""
        ...

    def is_end(self, token: int) -> bool:
        """True for tokens that end a text."""
        ...

    def open(self, seq_id: int, params: SamplingParams, seed: int, history: Sequence[int], num_output: int) -> None:
        """Begin a sequence in an empty slot.

        Args:
            history: Tokens before the next sampled one, for penalties: prompt and resumed output.
            num_output: How many of them are output.
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
            DecodeFailed, Interrupted
        """
        ...

    def shutdown(self) -> None:
        """Free everything."""
        ...
