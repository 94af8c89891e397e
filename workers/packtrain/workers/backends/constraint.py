"""Which tokens a `response_format` allows next, told by llguidance.

It masks a whole vocabulary of 49,000 in some 15 us, where llama.cpp's grammar sampler takes 9 ms, and refuses what it
cannot enforce of a JSON schema, where `json_schema_to_gbnf` drops it. Its parser has budgets, where a GBNF of 40
characters makes llama.cpp's use memory without bound; so GBNF goes the same way, see `broker/gbnf.py`.

    Compiler     one per model: knows the bytes of every token, compiles formats, keeps the last ones
    Constraint   one per sequence: where in its format the output stands
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from packtrain.broker.errors import InvalidParameter, JobFailed
from packtrain.broker.gbnf import to_lark
from packtrain.broker.sampling import SamplingParams
from packtrain.broker.structured import FreeText, Grammar, JsonObject, JsonSchema

#: Compiled formats kept; jobs come in families that share one. The largest take some 20 MB.
MAX_KEPT = 16
#: One blank, or a new line with its indent: without a bound a small model fills its context with blanks.
_WHITESPACE = r" |\n {0,24}"
#: Without \u, which may be half a surrogate pair: those characters come as themselves, in UTF-8.
_ESCAPES = 'nrbtf\\"'


def _limits(max_items_in_row: int) -> LLParserLimits:
    """Of one sequence. Lexer states take some 0.7 kB each; the rest bounds the time of a token."""
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_items_in_row=max_items_in_row,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


#: 256 optional properties side by side need 1,000 items.
_SCHEMA_LIMITS = _limits(1_200)
#: A grammar may be as ambiguous as its author likes: `root ::= root root | root root root | "x" | ""` took 90 ms for a
#: token on average before it met a bound of 2,000, and ends within 1 s all told at this one.
_GRAMMAR_LIMITS = _limits(500)


class ConstraintFailed(Exception):
    """The constraint cannot go on, through no fault of the model: it ran out of budget, or fits the output no more."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.error = JobFailed(
            f"the output could not be held to its response_format any more ({reason}); simplify the format",
            cause=reason,
        )


class Compiler:
    """Compiles formats for one vocabulary. Thread-safe.

    Args:
        n_vocab: Vocabulary size.
        piece: The bytes of a token as they will stand in the text; a token without any is never allowed.
        end_tokens: Tokens that end a text.
    """

    def __init__(self, n_vocab: int, piece: Callable[[int], bytes], end_tokens: Sequence[int]) -> None:
        self._n_vocab = n_vocab
        self._piece = piece
        self._end_tokens = list(end_tokens)
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def prepare(self, params: SamplingParams) -> None:
        """Compile what `constraint` will need. Takes up to some 100 ms, the first time 0.4 s at a vocabulary of 49,000.

        Raises:
            InvalidParameter: The format cannot be enforced.
        """
        if grammar := _lark(params):
            self._matcher(grammar, _limits_of(params))

    def constraint(self, params: SamplingParams, output: Sequence[int]) -> Constraint | None:
        """The constraint behind this output, None for free text.

        Raises:
            InvalidParameter: As `prepare`.
        """
        grammar = _lark(params)
        if not grammar:
            return None
        return Constraint(self._matcher(grammar, _limits_of(params)).deep_copy(), self._n_vocab, output)

    def _matcher(self, grammar: str, limits: LLParserLimits) -> LLMatcher:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._new_tokenizer()
            if matcher := self._compiled.get(grammar):
                self._compiled.move_to_end(grammar)
                return matcher
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        # The first mask shows a format that no text has; and every copy has it for nothing.
        mask = b"" if matcher.is_error() else matcher.compute_bitmask()
        if matcher.is_error() or not any(mask):
            reason = _reason(matcher) or "no text has this form"
            raise InvalidParameter(
                f"response_format cannot be enforced: {reason}; change that part of it", field="response_format"
            )
        with self._lock:
            self._compiled[grammar] = matcher
            while len(self._compiled) > MAX_KEPT:
                self._compiled.popitem(last=False)
        return matcher

    def _new_tokenizer(self) -> LLTokenizer:
        pieces = [self._piece(token) for token in range(self._n_vocab)]
        textless = {token for token, piece in enumerate(pieces) if not piece} | set(self._end_tokens)
        vocabulary = _Vocabulary(
            [f"<{token}>".encode() if token in textless else piece for token, piece in enumerate(pieces)],
            sorted(textless),
            self._end_tokens[0] if self._end_tokens else self._n_vocab - 1,
        )
        return LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=self._n_vocab, eos_token=self._end_tokens or None)


class Constraint:
    """Where in its format one output stands. Owned by the engine thread.

    Args:
        matcher: At the format's begin; taken over.
        output: What has been said already.
    """

    def __init__(self, matcher: LLMatcher, n_vocab: int, output: Sequence[int]) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self.accept(*output)

    def allows(self, token: int) -> bool:
        """Whether it may come next. For an end token: whether the output has its form.

        Raises:
            ConstraintFailed
        """
        is_allowed = self._matcher.validate_tokens([token]) == 1
        self._check()
        return is_allowed

    def allowed(self) -> np.ndarray[Any, Any]:
        """Ids of all tokens that may come next, rising, at least one; only end tokens when nothing else may follow.

        Raises:
            ConstraintFailed
        """
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        ids: np.ndarray[Any, Any] = np.flatnonzero(np.unpackbits(mask, count=self._n_vocab, bitorder="little"))
        if not ids.size:
            raise ConstraintFailed("no token of this model can follow")
        return ids

    def accept(self, *tokens: int) -> None:
        """They have been said. That they may not be, as after a move to another file of that name, shows next time."""
        self._matcher.consume_tokens(list(tokens))

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintFailed(_reason(self._matcher) or "no token of this model can follow")


class _Vocabulary:
    """What `TokenizerWrapper` asks for."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_token_ids: list[int], eos_token_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special_token_ids
        self.eos_token_id = eos_token_id

    def __call__(self, text: bytes) -> list[int]:
        # Asked only for text that a grammar forces, which `no_forcing` leaves to the model, token by token.
        raise NotImplementedError


def _lark(params: SamplingParams) -> str:
    """The format as a grammar of llguidance; empty for free text."""
    match params.response_format:
        case FreeText():
            return ""
        case JsonObject():
            rules = f"start: %json {_json({'type': 'object'})}"
        case JsonSchema() as form:
            affixes = [f"{json.dumps(text)} " if text else "" for text in (form.prefix, form.suffix)]
            rules = f"start: {affixes[0]}json {affixes[1]}\njson: %json {_json(form.schema)}"
        case Grammar() as form:
            rules = to_lark(form.grammar)
    return f'%llguidance {{"no_forcing": true}}\n{rules}'


def _limits_of(params: SamplingParams) -> LLParserLimits:
    return _GRAMMAR_LIMITS if isinstance(params.response_format, Grammar) else _SCHEMA_LIMITS


def _json(schema: dict[str, Any]) -> str:
    # Without $schema: what we let through means the same in every draft but for draft 7's $ref, which hides all beside.
    options = {"whitespace_pattern": _WHITESPACE, "json_allowed_escapes": _ESCAPES}
    return json.dumps({**{k: v for k, v in schema.items() if k != "$schema"}, "x-guidance": options})


def _reason(matcher: LLMatcher) -> str:
    """Its words, in one line, without the place in a grammar that the user never saw; empty: nothing can follow."""
    words: list[str] = []
    for line in matcher.get_error().rpartition("failed to compile JSON schema: ")[2].splitlines():
        if line.startswith(("<", "   1 | ")):
            break
        words += line.split()
    reason = " ".join(words)
    if "coerce_one_of" in reason:
        return "of a oneOf it does not show that its branches exclude each other; use anyOf"
    return "" if reason.startswith("NoExtension") else reason
