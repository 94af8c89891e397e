"""One sampler chain per sequence, in llama.cpp's own order, with randomness that depends on nothing but (seed, index).

    logit bias → penalties → top-k → typical → top-p → min-p → temperature → draw

The draw of token i uses a generator seeded with hash(seed, i), not the i-th value of one running generator. So a job
that resumes on another instance after i tokens draws what it would have drawn, without replaying anything. The new
generator costs four C calls per token, about 9 us beside 90 us for the chain at a vocabulary of 49,000.

Samplers stand after top-k wherever that keeps their meaning: top-p over a whole vocabulary costs 3,000 us per token.

Under a constraint (`constraint.py`) the token is drawn as ever and only then checked; it is drawn again, among what is
allowed, on a reject. That is the distribution of a draw among the allowed alone, if the second is independent of the
first: it has a seed of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as C

from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import Sampled
from packtrain.workers.backends.constraint import Constraint

_MASK64 = 2**64 - 1
#: llama.cpp takes this seed for "choose one at random".
_RANDOM_SEED = 0xFFFFFFFF
#: A temperature below this takes the most likely token: logits divided by 1e-40 are infinite, all of them alike.
MIN_TEMPERATURE = 1e-6
#: Makes another seed of a job's seed, for draws after a reject.
_REDRAW = 0x5851F42D4C957F2D
#: llama_token_data
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def token_seed(seed: int, index: int) -> int:
    """The 32-bit seed for the draw of output token `index`: splitmix64 (Steele et al., 2014) of seed and index."""
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    z ^= z >> 31
    return (z >> 32) % _RANDOM_SEED


def is_plain_greedy(params: SamplingParams) -> bool:
    """True when the next token is simply the most likely one, so that no chain is needed."""
    draws = params.temperature >= MIN_TEMPERATURE
    return not (draws or _has_penalties(params) or params.logit_bias or params.ignore_eos)


class SamplerChain:
    """The sampler of one sequence. Free it with `close`; owned by the engine thread.

    Args:
        n_vocab: Vocabulary size; token ids of the bias beyond it are dropped.
        end_tokens: Tokens that `ignore_eos` forbids.
        history: Prompt and resumed output, which the penalties look back on.
        num_output: How many of `history` are output: the index of the next token.
    """

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        *,
        n_vocab: int,
        end_tokens: Sequence[int],
        history: Sequence[int],
        num_output: int,
    ) -> None:
        self._seed = seed
        self._index = num_output
        self._draws = params.temperature >= MIN_TEMPERATURE
        self._chain: Any = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        bias = {token: value for token, value in params.logit_bias.items() if token < n_vocab}
        if params.ignore_eos:
            bias |= dict.fromkeys(end_tokens, float("-inf"))
        if bias:
            self._add(C.llama_sampler_init_logit_bias(n_vocab, len(bias), _bias_array(bias)))
        if _has_penalties(params):
            self._add(
                C.llama_sampler_init_penalties(
                    n_vocab,
                    params.penalty_last_n,
                    params.repeat_penalty,
                    params.frequency_penalty,
                    params.presence_penalty,
                )
            )
        if self._draws:
            if params.top_k:
                self._add(C.llama_sampler_init_top_k(params.top_k))
            if params.typical_p < 1:
                self._add(C.llama_sampler_init_typical(params.typical_p, 1))
            if params.top_p < 1:
                self._add(C.llama_sampler_init_top_p(params.top_p, 1))
            if params.min_p > 0:
                self._add(C.llama_sampler_init_min_p(params.min_p, 1))
            self._add(C.llama_sampler_init_temp(params.temperature))
        else:
            self._add(C.llama_sampler_init_greedy())
        if _has_penalties(params) and params.penalty_last_n:
            for token in history[-params.penalty_last_n :]:
                C.llama_sampler_accept(self._chain, token)
        self._fixed = C.llama_sampler_chain_n(self._chain)

    def sample(self, ctx: Any, row: int) -> int:
        """The next token, from the logits of this row of the last batch."""
        self._seed_draw(self._seed)
        self._index += 1
        return int(C.llama_sampler_sample(self._chain, ctx, row))

    def draw(self, ids: np.ndarray[Any, Any], logits: np.ndarray[Any, Any], *, is_redraw: bool) -> int:
        """A token among `ids`, with these logits. Changes nothing: `accept` what becomes of it."""
        self._seed_draw(self._seed ^ _REDRAW if is_redraw else self._seed)
        candidates = np.empty(len(ids), _CANDIDATE)
        candidates["id"], candidates["logit"], candidates["p"] = ids, logits, 0
        array: Any = C.llama_token_data_array(size=len(ids), selected=-1, sorted=False)
        array.data = ctypes.cast(candidates.ctypes.data, ctypes.POINTER(C.llama_token_data))
        C.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def accept(self, token: int) -> None:
        """A token of `draw`, or another one, has been said."""
        self._index += 1
        C.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Free the chain and its samplers."""
        C.llama_sampler_free(self._chain)
        self._chain = None

    def _seed_draw(self, seed: int) -> None:
        if self._draws:
            if C.llama_sampler_chain_n(self._chain) > self._fixed:
                C.llama_sampler_free(C.llama_sampler_chain_remove(self._chain, self._fixed))
            self._add(C.llama_sampler_init_dist(token_seed(seed, self._index)))

    def _add(self, sampler: Any) -> None:
        C.llama_sampler_chain_add(self._chain, sampler)


def with_logprobs(logits: np.ndarray[Any, Any], token: int, num_top: int) -> Sampled:
    """`token` with its logprob and the `num_top` likeliest, from one row of raw logits (n_vocab,) float32."""
    row = logits.astype(np.float64)
    highest = row.max()
    logprobs = row - (highest + np.log(np.exp(row - highest).sum()))
    top: list[int] = []
    if num_top:
        likeliest = np.argpartition(-logprobs, min(num_top, len(row) - 1))[:num_top]
        top = sorted(map(int, likeliest), key=lambda t: (-logprobs[t], t))
    return Sampled(token, float(logprobs[token]), tuple((t, float(logprobs[t])) for t in top))


class ConstrainedSampler:
    """The sampler of one sequence whose text must have a form. Owned by the engine thread.

    Args:
        chain: None takes the most likely token.
    """

    def __init__(self, chain: SamplerChain | None, constraint: Constraint, n_vocab: int) -> None:
        self._chain = chain
        self._constraint = constraint
        self._every = np.arange(n_vocab, dtype=np.int32)
        self._chosen: int | None = None

    def choose(self, logits: np.ndarray[Any, Any]) -> None:
        """Choose the next token, from these logits, (n_vocab) float32. Changes nothing, so it may be repeated.

        Raises:
            ConstraintFailed
        """
        token = self._draw(self._every, logits, is_redraw=False)
        if not self._constraint.allows(token):
            allowed = self._constraint.allowed()
            token = self._draw(allowed, logits[allowed], is_redraw=True)
        self._chosen = token

    def take(self) -> int:
        """The token chosen. It has been said now."""
        token, self._chosen = self._chosen, None
        assert token is not None, "nothing was chosen"
        self._constraint.accept(token)
        if self._chain:
            self._chain.accept(token)
        return token

    def close(self) -> None:
        """Free the chain."""
        if self._chain:
            self._chain.close()

    def _draw(self, ids: np.ndarray[Any, Any], logits: np.ndarray[Any, Any], *, is_redraw: bool) -> int:
        return self._chain.draw(ids, logits, is_redraw=is_redraw) if self._chain else int(ids[logits.argmax()])


def _has_penalties(params: SamplingParams) -> bool:
    off = params.repeat_penalty == 1 and params.presence_penalty == 0 and params.frequency_penalty == 0
    return not off and params.penalty_last_n > 0


def _bias_array(bias: dict[int, float]) -> Any:
    array = (C.llama_logit_bias * len(bias))()
    for entry, (token, value) in zip(array, bias.items(), strict=True):
        entry.token, entry.bias = token, value
    return ctypes.cast(array, ctypes.POINTER(C.llama_logit_bias))
