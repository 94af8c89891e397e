"""Parking: which bulk sequence leaves its slot for an interactive one that waits, and how much may be parked.

The one that is cheapest to hold goes, that is the one with the fewest tokens in its cache: its state is read and
written in the least time, and mostly it has the most left to do, so that the others, nearer to their ends, get there.
Never one that may be about to end by itself, and never one whose beginning others wait for: they would compute it too.

A parked one comes back when a slot is free, before any bulk sequence that has not begun. Then it stays for a while, so
that each time it gets on, however many interactive ones come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from packtrain.workers.engine.sequence import Sequence

#: Sequences parked at once; also how many jobs an instance may hold beyond its slots.
MAX_PARKED = 4
#: A sequence with fewer tokens to go is not parked: its slot will be free anyway. With 8 slots of SmolLM2 on two cores
#: so many take a second.
MIN_LEFT_TO_PARK = 16
#: Tokens that a sequence computes between two times of being parked, at least.
MIN_STAY = 16
#: Of the cells of all slots as many may be held outside of them: of four slots one. Where slots are as many as fit, all
#: of them take a quarter of the node's memory at most, so this takes a sixteenth.
SHARE = 1 / 4


def most_parked(n_slots: int) -> int:
    """Sequences of an instance that may be parked at once."""
    return min(n_slots, MAX_PARKED)


class Lot:
    """What may be parked. Sizes are in tokens, for the state of a sequence has about as many bytes for each.

    Args:
        n_ctx: Cells of one slot.
        can_share: False: a state may be as large as the whole slot, however few tokens it is of.
    """

    def __init__(self, *, n_slots: int, n_ctx: int, can_share: bool) -> None:
        self._most = most_parked(n_slots)
        self._room = int(n_slots * n_ctx * SHARE)
        self._whole = None if can_share else n_ctx

    def candidates(self, live: Iterable[Sequence], parked: Collection[Sequence]) -> list[Sequence]:
        """Sequences that may be parked beside those that are, each by itself; the best first."""
        room = self._room - sum(map(self._size, parked))
        if len(parked) >= self._most:
            return []
        able = [s for s in live if _may_leave(s) and self._size(s) <= room]
        return sorted(able, key=lambda s: (s.num_cached, s.num_output - s.request.max_new, -s.order))

    def count(self, live: Iterable[Sequence], parked: Collection[Sequence]) -> int:
        """About how many of these may be parked one after the other."""
        return min(len(self.candidates(live, parked)), max(0, self._most - len(parked)))

    def _size(self, sequence: Sequence) -> int:
        return self._whole or sequence.num_cached


def _may_leave(sequence: Sequence) -> bool:
    request = sequence.request
    return (
        request.is_bulk
        and sequence.has_begun
        and not sequence.is_stuck
        and request.max_new - sequence.num_output >= MIN_LEFT_TO_PARK
        and sequence.awaited_to <= sequence.num_cached
        and sequence.num_cached >= sequence.stays_to
    )
