"""A sequence: one job inside an instance, its tokens and its progress.

tokens of a sequence:  prompt + output; rows of media are numbers below 0, see media.py
[0, num_prompt)        the prompt
[0, num_cached)        computed, in the KV cache of its slot
[num_cached, num_tokens) pending: one token while decoding, more while prefilling

A sequence whose job asks for the logprobs of its prompt is *scoring* until it has them all: one for each prompt token
but the first, which follows nothing. When its output is whole by then (it asked for none, or an earlier lease made it)
the scores are all that it computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from packtrain.broker.errors import PacktrainError
from packtrain.broker.ids import JobId
from packtrain.broker.outcome import Usage
from packtrain.broker.pieces import PromptLogprob, TokenLogprob
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.adapters import AdapterSet
from packtrain.workers.backends.base import Parked
from packtrain.workers.chat.deltas import Delta
from packtrain.workers.engine.lookup import Guesser
from packtrain.workers.engine.media import Span, num_alike, span_at
from packtrain.workers.engine.text import TextStream


class End(StrEnum):
    """Why a sequence left the engine."""

    STOP = "stop"  #: end-of-text token or stop string
    LENGTH = "length"  #: as many tokens as were asked for or fit
    CANCELLED = "cancelled"  #: a client asked
    EXPIRED = "expired"  #: its deadline passed
    FAILED = "failed"  #: it could not be computed; see `Ended.error`
    RELEASED = "released"  #: the instance drains: the job goes back to the queue
    LOST = "lost"  #: the lease is gone: nothing may be written any more


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of a sequence, with the text that may be shown. Text may lag behind tokens."""

    index: int  # of the first token in the output
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()  # of each token, where the job asks for them
    #: Of an answer that another server took apart; it names no token ids, so `index` counts such pieces.
    delta: Delta | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A sequence has left the engine."""

    end: End
    tail: str = ""  # text that had been held back
    num_output: int = 0
    batch_peak: int = 0
    num_reused: int = 0  # prompt tokens that were copied from another slot's cache and not computed
    error: PacktrainError | None = None
    embedding: bytes = b""  # of an embed request: 32-bit little-endian floats
    prompt_logprobs: tuple[PromptLogprob, ...] = ()  # where the job asks for them
    stopped_by: str = ""  # the stop string that ended it
    usage: Usage | None = None  # as another server counted it


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """What the engine needs to run a job. Callbacks are called from the engine thread and must not block."""

    job_id: JobId
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    max_new: int  # tokens, 0 where only scores are wanted; prompt + max_new fit the slot
    on_tokens: Callable[[Tokens], None]
    on_end: Callable[[Ended], None]
    resumed: tuple[int, ...] = ()  # output of an earlier lease, already shown to readers
    deadline: float | None = None  # on the engine's clock, seconds
    adapters: AdapterSet = ()
    is_bulk: bool = False  # it may be parked for one that is not
    media: tuple[Span, ...] = ()  # of the prompt, in order


@dataclass(slots=True)
class Sequence:
    """A request in a slot."""

    request: SequenceRequest
    seq_id: int  # llama.cpp's sequence id, unique within the instance
    order: int  # of arrival
    text: TextStream
    tokens: list[int]  # prompt and output
    num_cached: int = 0
    batch_peak: int = 0
    num_reused: int = 0
    has_begun: bool = False  # False: it may still find a prefix to reuse
    awaited_to: int = 0  # others wait until so many of its tokens are cached
    is_stuck: bool = False  # its cache could not be taken out of its slot
    parked: Parked | None = None  # it is in no slot now, and `seq_id` is where it was
    stays_to: int = 0  # it is not parked before so many of its tokens are cached
    computed_at: int = 0  # the engine's step that last had rows of it
    scores: list[PromptLogprob] = field(default_factory=list)  # of the prompt's tokens, from the second on
    is_complete: bool = False  # its output is whole, only scores are missing
    guesser: Guesser | None = None  # where tokens may be guessed

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)

    @property
    def num_output(self) -> int:
        """Tokens produced."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def num_pending(self) -> int:
        """Tokens that still have to be computed before the next one can be sampled."""
        return (self.num_to_score if self.is_complete else len(self.tokens)) - self.num_cached

    @property
    def next_span(self) -> Span | None:
        """The image whose rows come next; None: text does."""
        return span_at(self.request.media, self.num_cached) if self.request.media else None

    @property
    def num_ahead(self) -> int:
        """Of those pending, the tokens before the next change between text and image: one step holds no more."""
        pending = self.num_pending
        if not self.request.media:
            return pending
        return num_alike(self.request.media, self.num_cached, self.num_cached + pending)

    @property
    def num_to_score(self) -> int:
        """Scores that the job asks for: each takes the logits of the token before, of the first so many."""
        return 0 if self.request.params.prompt_logprobs is None else self.num_prompt - 1

    @property
    def is_scoring(self) -> bool:
        """True while scores are missing; then `scores` has as many as `num_cached` says."""
        return len(self.scores) < self.num_to_score

    @property
    def num_wanted(self) -> int:
        """Of those pending, the tokens after which somebody can go on: itself, or who waits for a beginning of it."""
        awaited = self.awaited_to - self.num_cached
        return awaited if 0 < awaited < self.num_pending else self.num_pending

    def lose_cache(self, num_left: int) -> None:
        """Only so many of its tokens are cached now; the others are computed again."""
        self.num_cached = num_left
        if self.is_scoring:
            del self.scores[num_left:]

    def pending(self, count: int) -> list[int]:
        """The next `count` tokens to compute."""
        return self.tokens[self.num_cached : self.num_cached + count]
