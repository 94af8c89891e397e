"""The seam between the engine and whatever computes tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from packtrain.broker.errors import PacktrainError
from packtrain.broker.fields import Recipe
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.adapters import Adapter, AdapterSet
from packtrain.workers.chat.families import ChatFormat
from packtrain.workers.chat.infill import FimTokens
from packtrain.workers.chat.masking import SpecialTexts
from packtrain.workers.engine.media import MediaRows, Seen, Span
from packtrain.workers.load_options import max_outputs
from packtrain.workers.receipts import Build


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
    recipe: Recipe = "fast"
    can_share: bool = True  # whether `copy` works: a part of a sequence can be kept without the rest
    embeds_only: bool = False  # no sequence can be opened; only `embed` works

    @property
    def n_outputs(self) -> int:
        """Rows of one step that may have logits; at least one for each slot."""
        return max_outputs(self.n_slots)


@dataclass(frozen=True, slots=True)
class EmbeddingShape:
    """Sizes of what `embed` takes and gives."""

    n_dims: int  # of a vector
    max_tokens: int  # of one text
    n_rows: int  # tokens of one batch; a longer text is computed alone
    max_texts: int  # of one batch


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token that a step chose or scored, with what the model thought of it when the job asks for that."""

    token: int
    logprob: float | None = None  # natural logarithm, before temperature and all other samplers
    top: tuple[tuple[int, float], ...] = ()  # most likely tokens with their logprobs, likeliest first


@dataclass(frozen=True, slots=True)
class StepRows:
    """Tokens of one sequence for one step, at positions [start, start + len(tokens)).

        tokens    a b c d      scored: what the model thinks of b, c and d, each given what comes before it
        scored    b c d        wants_token: sample what follows d
        guessed   2            c and d are guesses: sample what follows b; if that is c, what follows c; and so on

    Each scored token takes a row with logits, so does the one to sample, and each guess: together at most
    `Shape.n_outputs`. Rows with guesses want a token, and their sequence has no response format.
    """

    seq_id: int
    start: int
    tokens: Sequence[int]
    wants_token: bool  # sample the token after the last of these
    scored: Sequence[int] = ()  # the known tokens that follow the first of these
    num_guessed: int = 0  # of `tokens`, the last
    media: MediaRows | None = None  # what stands for these tokens: then all of the step's rows are of media

    @property
    def num_outputs(self) -> int:
        """Rows that have logits."""
        return len(self.scored) + (1 + self.num_guessed if self.wants_token else 0)


@dataclass(frozen=True, slots=True)
class Parked:
    """A sequence that was taken out of its slot. What else is in it belongs to the backend that made it."""

    num_bytes: int  # of memory that its cache takes


class Backend(Protocol):
    """One loaded model with its cache. `tokenize`, `render_chat`, `piece`, `spelling`, `is_end`, `prepare` and the
    properties are thread-safe; the rest belongs to the engine thread alone."""

    @property
    def shape(self) -> Shape:
        """Sizes."""
        ...

    @property
    def build(self) -> Build:
        """The library, and how it was told to compute."""
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

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids.

        Args:
            add_special: Put around it what the vocabulary puts around a text. Not for what `render_chat` gives, which
                has it already, nor for a piece from the middle of a prompt.
            parse_special: Take the texts of special tokens for such; else they are plain text.
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

    def spelling(self, token: int) -> bytes:
        """The same, and of control tokens the text that `tokenize` parses for them."""
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

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """LoRA adapters that were to be loaded with the model, by name."""
        ...

    def open(
        self,
        seq_id: int,
        params: SamplingParams,
        seed: int,
        history: Sequence[int],
        num_output: int,
        *,
        adapters: AdapterSet = (),
        media: Sequence[Span] = (),
    ) -> None:
        """Begin a sequence in a free slot. Its cache is what `truncate` or `copy` left there.

        Args:
            params: Of a request that passed `prepare`.
            history: Tokens before the next sampled one, for penalties: prompt and resumed output.
            num_output: How many of them are output; the response format goes on behind these.
            adapters: That every row of it is computed with; usable ones. All rows of a step must have the same, and
                what is copied here must have been computed with them.
            media: In the prompt.
        """
        ...

    def close(self, seq_id: int) -> None:
        """End a sequence. Its cache stays until the slot is truncated or copied over."""
        ...

    def truncate(self, seq_id: int, num_cached: int) -> int:
        """Keep only the first tokens in the cache of a slot; how many are left (a model may have to drop all)."""
        ...

    def copy(self, source: int, targets: Sequence[int], num_tokens: int) -> None:
        """Make the caches of `targets` equal to the first `num_tokens` of that of `source`. Needs `shape.can_share`.

        Raises:
            DecodeFailed: The targets may hold anything: `truncate` them to nothing. The source is as before.
        """
        ...

    def move(self, source: int, target: int) -> None:
        """Let the sequence in slot `source` go on in the free slot `target`, with its sampler and a copy of its cache.

        Needs `shape.can_share`. Slot `source` is free afterwards and keeps its cache.

        Raises:
            DecodeFailed: The sequence goes on in `source`. Slot `target` may hold anything, as after `copy`.
        """
        ...

    def park(self, seq_id: int) -> Parked:
        """Take a sequence out of its slot, with its sampler and what its cache holds.

        The slot is free afterwards and keeps its cache. `unpark` or `discard` must follow.

        Raises:
            DecodeFailed: The sequence goes on in its slot.
        """
        ...

    def unpark(self, parked: Parked, seq_id: int) -> None:
        """Let it go on in any free slot, as if it had never been away.

        Raises:
            DecodeFailed: It goes on in that slot, whose cache may hold anything: `truncate` it to nothing.
        """
        ...

    def discard(self, parked: Parked) -> None:
        """End it where it is."""
        ...

    def step(self, rows: Sequence[StepRows], should_stop: Callable[[], bool] | None) -> list[Sampled]:
        """Compute one step: for each of `rows`, in order, its scored tokens, then the sampled one if it wants one.

        Behind guesses that were right there are as many sampled ones more: the last is no guess. Wrong guesses are in
        the cache nevertheless, until `truncate`. Blocks.

        Args:
            rows: By rising `seq_id`, at most `n_batch` tokens and `n_outputs` rows with logits together.
            should_stop: Asked many times within the step; None: never break it off.

        Raises:
            DecodeFailed, Interrupted, SequenceFailed
        """
        ...

    @property
    def embedding(self) -> EmbeddingShape:
        """What `embed` takes. May be called from any thread.

        Raises:
            InvalidRequest: This model makes no vectors.
        """
        ...

    def embed(
        self, inputs: Sequence[Sequence[int]], should_stop: Callable[[], bool]
    ) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """The vector of each text, (n_dims,) and of length 1, apart from all slots. Blocks.

        Args:
            inputs: Within the bounds of `embedding`: as many as one batch takes, or one that is longer.
            should_stop: Asked many times.

        Raises:
            DecodeFailed, Interrupted: Nothing has to be repaired.
        """
        ...

    @property
    def sees(self) -> bool:
        """Whether `see` works."""
        ...

    def see(self, picture: np.ndarray[Any, np.dtype[np.uint8]]) -> Seen:
        """What a picture, (height, width, 3) RGB, is to the model. Blocks, apart from all slots; thread-safe.

        Raises:
            MediaUnreadable: It is too much for this model.
        """
        ...

    @property
    def hears(self) -> bool:
        """Whether `hear` works."""
        ...

    @property
    def sample_rate(self) -> int:
        """Samples a second that `hear` takes; 0: it takes none."""
        ...

    def hear(self, samples: np.ndarray[Any, np.dtype[np.float32]]) -> Seen:
        """What a sound, (count,) within [-1, 1], is to the model. Blocks, apart from all slots; thread-safe.

        Raises:
            MediaUnreadable: It is too much for this model.
        """
        ...

    def set_threads(self, count: int) -> None:
        """Compute with this many threads from the next step on."""
        ...

    def shutdown(self) -> None:
        """Free everything."""
        ...
