"""Filling a gap: the prompt for a model that was taught to write what stands between a prefix and a suffix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FimTokens:
    """A vocabulary's tokens for it."""

    prefix: int
    suffix: int
    middle: int | None  # None: the answer follows the prefix, so the suffix comes first
    begin: tuple[int, ...] = ()  # what every text begins with


def infill(fim: FimTokens, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
    """The prompt, in the order that llama-server uses."""
    if fim.middle is None:
        return [*fim.begin, fim.suffix, *suffix, fim.prefix, *prefix]
    return [*fim.begin, fim.prefix, *prefix, fim.suffix, *suffix, fim.middle]
