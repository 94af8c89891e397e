"""The answers: results of jobs in OpenAI's shape, whole or piece by piece.

A form makes, for a stream, the opening of each choice, one or no chunk for each delta, its closing, and the chunk of
usage when it was asked for. What Packtrain knows beyond OpenAI stands under `packtrain` in the body, and in the chunk
that closes a choice: `seed`, `timings`, `receipt` and who ran it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from packtrain.broker.pieces import TokenLogprob
from packtrain.client.result import AnswerDelta, Result


@dataclass(frozen=True, slots=True)
class Stamp:
    """What all pieces of one answer say of it."""

    id: str  # without the prefix of its kind
    created: int  # seconds
    model: str  # as the client named it


class Form(ABC):
    """The shape of an answer.

    Args:
        choices: For each prompt.
    """

    def __init__(self, choices: int = 1) -> None:
        self.choices = choices

    @abstractmethod
    def body(self, stamp: Stamp, results: Sequence[Result], *, extras: bool = True) -> dict[str, Any]:
        """The whole answer.

        Args:
            results: Of the jobs, in their order.
            extras: Say under `packtrain` what a repetition would say differently.
        """

    def used(self, results: Sequence[Result]) -> dict[str, Any]:
        """Tokens of all; a prompt counts once, however many choices it has."""
        firsts = results[:: self.choices]
        prompt = sum(result.usage.prompt_tokens for result in firsts)
        completion = sum(result.usage.completion_tokens for result in results)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(result.usage.reused_tokens for result in firsts)},
        }


class StreamForm(Form):
    """The shape of an answer that may come piece by piece."""

    def opening(self, stamp: Stamp, choice: int) -> list[dict[str, Any]]:
        """What comes before the first delta of a choice."""
        return []

    @abstractmethod
    def piece(self, stamp: Stamp, choice: int, delta: AnswerDelta) -> list[dict[str, Any]]:
        """A bit more of a choice."""

    @abstractmethod
    def closing(self, stamp: Stamp, choice: int, result: Result) -> list[dict[str, Any]]:
        """The end of a choice."""

    @abstractmethod
    def usage(self, stamp: Stamp, results: Sequence[Result]) -> dict[str, Any]:
        """The chunk with the usage of all choices, which comes last."""


@dataclass(slots=True)
class HeldLogprobs:
    """Tokens whose text has not come yet, by choice: text is held back for stop strings and split characters."""

    _held: dict[int, list[TokenLogprob]] = field(default_factory=dict)

    def add(self, choice: int, logprobs: Sequence[TokenLogprob]) -> None:
        if logprobs:
            self._held.setdefault(choice, []).extend(logprobs)

    def take(self, choice: int) -> tuple[TokenLogprob, ...]:
        return tuple(self._held.pop(choice, ()))


def fingerprint(results: Sequence[Result]) -> dict[str, Any]:
    """OpenAI's `system_fingerprint`: equal where a seed gives equal answers, which is a numerics class here."""
    receipt = results[0].receipt if results else None
    return {"system_fingerprint": receipt.numerics_class} if receipt else {}


def extras_of(results: Sequence[Result]) -> dict[str, Any]:
    return {"packtrain": {"jobs": [job_facts(result) for result in results]}}


def job_facts(result: Result) -> dict[str, Any]:
    """What Packtrain tells of a job beside its answer."""
    return {
        "id": result.job_id,
        "seed": result.seed,
        "node": result.node,
        "instance": result.instance,
        "timings": result.timings.model_dump(),
        "receipt": result.receipt.model_dump() if result.receipt else None,
    }
