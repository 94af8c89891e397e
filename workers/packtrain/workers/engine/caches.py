"""Caches: which slot a new sequence gets, and what of its tokens need not be computed because some slot holds them.

Bookkeeping is in slots.py, the choice of a prefix in reuse.py; here both meet the backend, which copies and moves. A
copy that fails costs no job: what was to begin with it is computed from its start.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import replace

from packtrain.workers.adapters import AdapterSet
from packtrain.workers.backends.base import Backend, DecodeFailed
from packtrain.workers.engine.media import whole_before
from packtrain.workers.engine.reuse import Cache, Reuse, find_reuse
from packtrain.workers.engine.scheduler import SERIAL_CHUNK
from packtrain.workers.engine.sequence import Sequence
from packtrain.workers.engine.slots import Retained, Slots

logger = logging.getLogger(__name__)

#: A sequence with fewer tokens to go is not moved to a lower slot, which costs about as much as a step.
MIN_LEFT_TO_MOVE = 8


class Caches:
    """The caches of all slots. Belongs to the engine's thread.

    Args:
        backend: Holds them.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._can_share = backend.shape.can_share
        self._is_serial = backend.shape.recipe == "serial"
        self._slots = Slots(backend.shape.n_slots)
        self._leftover: dict[int, Retained] = {}  # what the caches of taken slots hold until their sequence begins

    @property
    def has_room(self) -> bool:
        """True while a slot is free."""
        return bool(self._slots)

    def take(self, tokens: list[int], adapters: AdapterSet, *, is_alone: bool, num_waiting: int) -> int:
        """Take a free slot for a sequence; its id.

        Args:
            is_alone: Nothing else is in a slot or waits for one.
            num_waiting: Others that are about to take a slot, too.
        """
        if is_alone:
            slot = self._slots.best_for(tokens, adapters)
        else:
            slot = self._slots.lowest
            self._save(slot, tokens, adapters, num_needed=num_waiting + 1)
        self._leftover[slot] = self._slots.take(slot)
        return slot

    def give_back(self, sequence: Sequence, *, has_failed: bool) -> None:
        """The sequence has ended; its slot is free, and what is in its cache is kept for others."""
        slot = sequence.seq_id
        left = self._leftover.pop(slot, None)  # it may end before it has begun
        if has_failed:
            self._slots.give_back(slot, sequence.tokens[: self._backend.truncate(slot, 0)])
        elif left is None:
            kept = sequence.tokens[: self._num_reusable(sequence)]
            self._slots.give_back(slot, kept, sequence.request.adapters)
        else:
            self._slots.give_back(slot, left.tokens, left.adapters)

    def park(self, sequence: Sequence) -> bool:
        """Take a sequence out of its slot, which is free then and keeps its cache. False: it must stay."""
        try:
            sequence.parked = self._backend.park(sequence.seq_id)
        except DecodeFailed as error:
            logger.warning("A sequence is not parked: %s", error, extra={"event": "park.failed"})
            sequence.is_stuck = True  # or each step would try again
            return False
        self.give_back(sequence, has_failed=False)
        return True

    def unpark(self, sequence: Sequence, *, is_alone: bool, num_waiting: int) -> None:
        """Put a parked sequence into a free slot. The arguments are those of `take`."""
        assert sequence.parked is not None
        adapters = sequence.request.adapters
        slot = self.take(sequence.tokens, adapters, is_alone=is_alone, num_waiting=num_waiting)
        del self._leftover[slot]
        parked, sequence.parked, sequence.seq_id = sequence.parked, None, slot
        try:
            self._backend.unpark(parked, slot)
        except DecodeFailed as error:
            logger.warning("A parked sequence is computed again: %s", error, extra={"event": "unpark.failed"})
            sequence.lose_cache(self._backend.truncate(slot, 0))

    def begin(self, live: Seq[Sequence]) -> int:
        """Give each new sequence the longest prefix that a slot holds, or let it wait for one in the making.

        Returns:
            Tokens of prompts that need not be computed.
        """
        copies: dict[tuple[int, int], list[Sequence]] = {}
        new = [s for s in live if not s.has_begun]
        by_slot = {s.seq_id: s for s in live}
        for sequence in live:
            sequence.awaited_to = 0
        for sequence in new:
            reuse = self._find_reuse(sequence, live)
            if media := sequence.request.media:
                reuse = replace(reuse, count=whole_before(media, reuse.count, all_whole=self._is_serial))
            if reuse.is_worth_waiting:
                holder = by_slot[reuse.awaits]
                holder.awaited_to = max(holder.awaited_to, reuse.awaits_count)
                continue
            del self._leftover[sequence.seq_id]
            sequence.has_begun = True
            if reuse.slot in (sequence.seq_id, -1):
                sequence.num_cached = self._backend.truncate(sequence.seq_id, reuse.count)
            else:
                sequence.num_cached = reuse.count
                copies.setdefault((reuse.slot, reuse.count), []).append(sequence)
        lost: set[int] = set()  # a copy may be of what an earlier one should have brought
        for (slot, count), sequences in copies.items():
            targets = [s.seq_id for s in sequences]
            if slot in lost or not self._is_copied(slot, targets, count):
                lost.update(targets)
                for sequence in sequences:
                    sequence.num_cached = self._backend.truncate(sequence.seq_id, 0)
        for sequence in new:
            sequence.num_reused = min(sequence.num_cached, sequence.num_prompt)
        return sum(s.num_reused for s in new)

    def close_ranks(self, live: Seq[Sequence]) -> None:
        """Move the highest sequences into free slots below them: neighbours are computed together, see slots.py."""
        if not self._can_share or self._is_serial:
            return
        while self._slots and len(live) > 1:
            highest = max(live, key=lambda s: s.seq_id)
            num_left = highest.request.max_new - highest.num_output
            may_move = highest.has_begun and not highest.is_stuck and num_left >= MIN_LEFT_TO_MOVE
            if self._slots.lowest > highest.seq_id or not may_move:
                return
            target = self._slots.lowest
            self._save(target, highest.tokens, highest.request.adapters, num_needed=1)
            self._slots.take(target)
            try:
                self._backend.move(highest.seq_id, target)
            except DecodeFailed as error:
                logger.warning("A sequence stays in its slot: %s", error, extra={"event": "move.failed"})
                highest.is_stuck = True  # or each step would try again
                self._backend.truncate(target, 0)
                self._slots.give_back(target, [])
                return
            self._slots.give_back(highest.seq_id, [])  # a second copy of a live cache is not worth keeping
            highest.seq_id = target

    def _save(self, slot: int, tokens: list[int], adapters: AdapterSet, *, num_needed: int) -> None:
        """Copy what a free slot retains elsewhere, unless it is what the sequence that takes it begins with."""
        retained = self._slots.retained()[slot]
        if 2 * retained.num_shared(tokens, adapters) >= len(retained.tokens):
            return
        refuge = self._slots.refuge(slot, num_needed)
        if refuge is not None:
            if self._is_copied(slot, [refuge], len(retained.tokens)):
                self._slots.copied(slot, refuge)
            else:
                self._slots.forget(refuge)

    def _is_copied(self, source: int, targets: Seq[int], count: int) -> bool:
        """Copy the beginning of a cache. False: it could not be done, and the targets are empty."""
        try:
            self._backend.copy(source, targets, count)
        except DecodeFailed as error:
            logger.warning("A prefix is computed, not copied: %s", error, extra={"event": "copy.failed"})
            for target in targets:
                self._backend.truncate(target, 0)
            return False
        return True

    def _find_reuse(self, sequence: Sequence, live: Iterable[Sequence]) -> Reuse:
        if not self._can_share or sequence.is_scoring:  # a score takes the logits of the row, which no cache holds
            return Reuse()
        caches = [_kept(sequence.seq_id, self._leftover[sequence.seq_id])]
        for other in live:
            if other.has_begun:
                num_cached = self._num_reusable(other)
                # One that is scored takes its time, for few of its rows fit into a step.
                is_slow = other.is_complete or other.is_scoring
                num_soon = max(num_cached, 0 if is_slow else self._whole_chunks(other.num_prompt))
                caches.append(Cache(other.seq_id, other.tokens, num_cached, num_soon, other.request.adapters))
        caches += [_kept(slot, kept) for slot, kept in self._slots.retained().items()]
        limit = sequence.num_prompt if self._is_serial else len(sequence.tokens)
        granule = SERIAL_CHUNK if self._is_serial else 1
        limit = min(limit, len(sequence.tokens) - 1)
        adapters = sequence.request.adapters
        return find_reuse(sequence.tokens, caches, limit=limit, granule=granule, adapters=adapters)

    def _num_reusable(self, sequence: Sequence) -> int:
        """Cached tokens that another may begin with. Serial: only those computed as whole chunks of a prompt, for the
        same tokens computed one by one have other bits."""
        if not self._can_share:
            return 0
        if self._is_serial and (sequence.is_scoring or sequence.is_complete):
            return 0
        if self._is_serial:
            return min(sequence.num_cached, self._whole_chunks(sequence.num_prompt))
        return sequence.num_cached

    def _whole_chunks(self, num_prompt: int) -> int:
        return num_prompt // SERIAL_CHUNK * SERIAL_CHUNK if self._is_serial else num_prompt


def _kept(slot: int, kept: Retained) -> Cache:
    return Cache(slot, kept.tokens, len(kept.tokens), len(kept.tokens), kept.adapters)
