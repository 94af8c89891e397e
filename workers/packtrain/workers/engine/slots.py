"""Slots: which are free, what their caches still hold, and which one a new sequence gets.

Beside others a new sequence gets the lowest free slot: llama.cpp makes one wide sub-step of neighbouring sequence ids
and one for each island of a broken row (8 live ids 0 to 7: 214 tokens/s, 8 live ids 0, 2 .. 14: 88; see
`benchmarks/steps.py`). What that slot retains would be lost, so it is first copied to a free slot that was used even
longer ago, if there is one: a kind of least-recently-used in which the place to write is given.

Alone, a sequence may have any slot. It gets the one that holds most of its beginning, else the one used longest ago; so
the chats of one person each keep a slot, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packtrain.workers.adapters import AdapterSet
from packtrain.workers.engine.reuse import MIN_SHARED, common_prefix


@dataclass(slots=True)
class Retained:
    """What the cache of a free slot holds."""

    tokens: list[int]
    used_at: int  # a count that grows
    adapters: AdapterSet = ()  # that it was computed with

    def num_shared(self, tokens: list[int], adapters: AdapterSet) -> int:
        """Tokens that a sequence with these may begin with."""
        return common_prefix(tokens, self.tokens) if adapters == self.adapters else 0


class Slots:
    """The free slots of an engine. Only bookkeeping: the caller moves the bytes.

    Args:
        count: Slots, all free and empty.
    """

    def __init__(self, count: int) -> None:
        self._retained = {slot: Retained([], 0) for slot in range(count)}
        self._time = 0

    def __bool__(self) -> bool:
        """True while one is free."""
        return bool(self._retained)

    @property
    def lowest(self) -> int:
        """The lowest free slot."""
        return min(self._retained)

    def best_for(self, tokens: list[int], adapters: AdapterSet = ()) -> int:
        """The free slot that suits a sequence that is alone."""
        held = {slot: kept.num_shared(tokens, adapters) for slot, kept in self._retained.items()}
        best = max(held, key=lambda slot: (held[slot], -slot))
        if held[best] >= MIN_SHARED:
            return best
        return min(held, key=lambda slot: (self._retained[slot].used_at, slot))

    def take(self, slot: int) -> Retained:
        """Take a free slot; what its cache holds."""
        return self._retained.pop(slot)

    def give_back(self, slot: int, tokens: Sequence[int], adapters: AdapterSet = ()) -> None:
        """A slot is free again, and its cache holds these tokens. One that holds next to nothing goes first."""
        self._time += 1
        self._retained[slot] = Retained(list(tokens), self._time if len(tokens) >= MIN_SHARED else 0, adapters)

    def retained(self) -> dict[int, Retained]:
        """By free slot; not to be changed."""
        return self._retained

    def refuge(self, slot: int, num_needed: int) -> int | None:
        """The free slot that what `slot` retains should be copied to before `slot` is taken; None: let it go.

        Args:
            num_needed: Slots that are about to be taken, `slot` among them: the lowest ones.
        """
        mine = self._retained[slot]
        others = [other for other in sorted(self._retained)[num_needed:] if other != slot]
        if len(mine.tokens) < MIN_SHARED or not others:
            return None
        oldest = min(others, key=lambda other: (self._retained[other].used_at, other))
        return oldest if self._retained[oldest].used_at < mine.used_at else None

    def forget(self, slot: int) -> None:
        """A free slot holds nothing."""
        self._retained[slot] = Retained([], 0)

    def copied(self, source: int, target: int) -> None:
        """What `source` retains is now in `target`, too."""
        kept = self._retained[source]
        self._retained[target] = Retained(kept.tokens, kept.used_at, kept.adapters)
