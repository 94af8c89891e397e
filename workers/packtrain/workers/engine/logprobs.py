"""Logprobs in words: a backend's token ids and numbers as messages that readers understand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from packtrain.broker.messages import Logprob, PromptLogprob, TokenLogprob
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
        text, top = self._text(sampled.token), self._top(sampled)
        return (TokenLogprob(token=sampled.token, text=text, logprob=sampled.logprob, top=top),)

    def scored(self, scored: Sampled) -> PromptLogprob:
        """Of a token of the prompt."""
        text, top = self._text(scored.token), self._top(scored)
        return PromptLogprob(token=scored.token, text=text, logprob=scored.logprob, top=top)

    def prompt(self, first: int, scores: Sequence[PromptLogprob]) -> tuple[PromptLogprob, ...]:
        """Of a whole prompt: its first token follows nothing."""
        return (PromptLogprob(token=first, text=self._text(first)), *scores)

    def _top(self, sampled: Sampled) -> tuple[Logprob, ...]:
        return tuple(Logprob(token=t, text=self._text(t), logprob=logprob) for t, logprob in sampled.top)

    def _text(self, token: int) -> str:
        return self._piece(token).decode("utf-8", "replace")
