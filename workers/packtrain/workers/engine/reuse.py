"""Prefix reuse: which part of a prompt is in some slot already, so that it is copied and not computed again.

The cache of a slot outlives its sequence, until the slot is needed for something else. So a slot holds

    live       the tokens of its sequence computed so far; while prefilling it will soon hold the rest of its prompt
    retained   the tokens that its last sequence left

and a new sequence begins with the longest prefix that any of them holds. When one that is still prefilling *will* hold
a longer one, the new sequence waits for it: sixteen jobs that arrive together compute their common prefix once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from packtrain.workers.adapters import AdapterSet

#: A shorter prefix is not worth a wait, tokens.
MIN_SHARED = 16


@dataclass(frozen=True, slots=True)
class Cache:
    """What a slot holds."""

    slot: int
    tokens: Sequence[int]
    num_cached: int  # of `tokens`: can be copied now
    num_soon: int  # of `tokens`: will be in the cache when its sequence has its prompt computed
    adapters: AdapterSet = ()  # that it was computed with


@dataclass(frozen=True, slots=True)
class Reuse:
    """How a new sequence should begin: with `count` tokens of the cache of `slot`.

    Or it should wait: slot `awaits` is computing a longer prefix, of `awaits_count` tokens.
    """

    slot: int = -1
    count: int = 0
    awaits: int = -1
    awaits_count: int = 0

    @property
    def is_worth_waiting(self) -> bool:
        """Whether it should wait."""
        return self.awaits >= 0


def find_reuse(
    tokens: Sequence[int], caches: Iterable[Cache], *, limit: int, granule: int = 1, adapters: AdapterSet = ()
) -> Reuse:
    """The best way to begin a sequence with these tokens.

    Args:
        caches: Of other slots, and of its own; the first of equals wins.
        limit: Most tokens that may be reused; the last one must be computed, to know what follows it.
        granule: Reuse only multiples of this (serial recipe: whole chunks).
        adapters: Of the sequence. What was computed with others is no beginning of it.
    """
    best, soon = Reuse(), Reuse()
    for cache in (cache for cache in caches if cache.adapters == adapters):
        common = min(common_prefix(tokens, cache.tokens), limit)
        now = min(common, cache.num_cached) // granule * granule
        if now > best.count:
            best = Reuse(cache.slot, now)
        later = min(common, cache.num_soon) // granule * granule
        if later > soon.count:
            soon = Reuse(cache.slot, later)
    if soon.count >= best.count + MIN_SHARED:
        return Reuse(best.slot, best.count, soon.slot, soon.count)
    return best


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b`, of the same type, begin with alike.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # alike in [0, low), different somewhere in [low, high)
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
