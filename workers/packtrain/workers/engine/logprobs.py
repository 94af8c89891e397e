"""Logprobs in words: a backend's token ids and numbers as messages that readers understand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from packtrain.broker.pieces import Logprob, PromptLogprob, TokenLogprob, piece_fields
from packtrain.workers.backends.base import Sampled


class Describer:
    """Describes what a backend thought of tokens.

    Args:
        piece: Bytes of a token.
    """

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece

    def sampled(self, sampled: Sampled) -> tuple[TokenLogprob, ...]:
        """Of a token of the answer; empty: nobody asked."""
        if sampled.logprob is None:
            return ()
        return (TokenLogprob(**self._said(sampled.token), logprob=sampled.logprob, top=self._top(sampled)),)

    def scored(self, scored: Sampled) -> PromptLogprob:
        """Of a token of the prompt."""
        return PromptLogprob(**self._said(scored.token), logprob=scored.logprob, top=self._top(scored))

    def prompt(self, first: int, scores: Sequence[PromptLogprob]) -> tuple[PromptLogprob, ...]:
        """Of a whole prompt: its first token follows nothing."""
        return (PromptLogprob(**self._said(first)), *scores)

    def _top(self, sampled: Sampled) -> tuple[Logprob, ...]:
        return tuple(Logprob(**self._said(t), logprob=logprob) for t, logprob in sampled.top)

    def _said(self, token: int) -> dict[str, Any]:
        return piece_fields(token, self._piece(token))
