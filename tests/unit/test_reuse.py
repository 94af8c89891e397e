"""Which part of a prompt is copied instead of computed, and which slot a sequence gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.workers.engine.reuse import MIN_SHARED, Cache, Reuse, common_prefix, find_reuse
from packtrain.workers.engine.slots import Slots

pytestmark = pytest.mark.unit

LONG = list(range(100))
PIRATE, HALF = (("pirate", 1.0),), (("pirate", 0.5),)


def cached(slot: int, tokens: list[int], num_cached: int | None = None) -> Cache:
    return Cache(slot, tokens, len(tokens) if num_cached is None else num_cached, len(tokens))


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
def test_the_common_prefix_is_what_a_plain_loop_finds(a: list[int], b: list[int]) -> None:
    plain = 0
    while plain < min(len(a), len(b)) and a[plain] == b[plain]:
        plain += 1

    assert common_prefix(a, b) == plain


def test_the_longest_prefix_wins_and_of_equals_the_first() -> None:
    caches = [cached(4, LONG[:20]), cached(2, LONG[:50]), cached(3, [*LONG[:50], 7])]

    assert find_reuse(LONG, caches, limit=99) == Reuse(2, 50)


def test_nothing_in_common_reuses_nothing() -> None:
    assert find_reuse(LONG, [cached(1, [9, 9])], limit=99) == Reuse()


def test_the_last_token_is_always_computed() -> None:
    assert find_reuse(LONG, [cached(1, LONG)], limit=99) == Reuse(1, 99)


def test_a_prefix_in_the_making_is_waited_for_when_it_is_worth_it() -> None:
    half_done = cached(1, LONG, num_cached=40)

    assert find_reuse(LONG, [half_done], limit=99).is_worth_waiting
    almost = cached(1, LONG, num_cached=99 - MIN_SHARED + 1)
    assert find_reuse(LONG, [almost], limit=99) == Reuse(1, almost.num_cached)


def test_only_whole_chunks_are_reused_when_asked() -> None:
    assert find_reuse(LONG, [cached(1, LONG[:77])], limit=99, granule=32) == Reuse(1, 64)


def test_a_slot_is_taken_with_what_it_holds() -> None:
    slots = Slots(3)
    assert slots.take(slots.lowest).tokens == []
    assert slots.lowest == 1

    slots.give_back(0, [1, 2, 3])

    assert slots.lowest == 0
    assert slots.take(0).tokens == [1, 2, 3]


def test_alone_a_sequence_gets_the_slot_that_holds_its_beginning_else_the_oldest() -> None:
    slots = Slots(3)
    for slot in range(3):
        slots.take(slot)
    for slot, tokens in ((1, LONG), (0, LONG[::-1]), (2, LONG[:50])):
        slots.give_back(slot, tokens)

    assert slots.best_for(LONG[::-1]) == 0
    assert slots.best_for([5, 5, 5]) == 1


def test_what_is_retained_finds_refuge_in_the_slot_used_longest_ago() -> None:
    slots = Slots(4)
    for slot in range(4):
        slots.take(slot)
    for slot in (2, 3, 1, 0):
        slots.give_back(slot, LONG)

    assert slots.refuge(0, num_needed=1) == 2
    assert slots.refuge(0, num_needed=3) == 3  # 1 and 2 are about to be taken, too
    assert slots.refuge(0, num_needed=4) is None
    assert slots.refuge(2, num_needed=1) is None  # all others are younger


def test_a_short_rest_finds_no_refuge() -> None:
    slots = Slots(2)
    slots.take(0)
    slots.give_back(0, LONG[: MIN_SHARED - 1])

    assert slots.refuge(0, num_needed=1) is None


def test_a_slot_that_holds_next_to_nothing_is_taken_before_one_that_holds_a_chat() -> None:
    slots = Slots(3)
    for slot in range(3):
        slots.take(slot)
    slots.give_back(0, LONG)
    slots.give_back(1, LONG[::-1])
    slots.give_back(2, [])  # its sequence failed

    assert slots.refuge(1, num_needed=1) == 2
    assert slots.best_for([5, 5, 5]) == 2


def test_a_copy_keeps_its_age() -> None:
    slots = Slots(3)
    slots.take(0)
    slots.give_back(0, LONG)

    slots.copied(0, 2)

    assert slots.retained()[2].tokens == LONG
    assert slots.refuge(0, num_needed=1) == 1


def test_what_was_computed_with_other_adapters_is_no_beginning() -> None:
    caches = [Cache(0, LONG, 20, 40, PIRATE), Cache(1, LONG, 10, 10), Cache(2, LONG, 15, 15, HALF)]

    assert find_reuse(LONG, caches, limit=99, adapters=HALF) == Reuse(2, 15)
    assert find_reuse(LONG, caches, limit=99) == Reuse(1, 10)
    assert find_reuse(LONG, caches, limit=99, adapters=PIRATE).is_worth_waiting
    assert find_reuse(LONG, caches, limit=99, adapters=(*HALF, *PIRATE)) == Reuse()


def test_a_slot_knows_the_adapters_of_what_it_retains_also_when_that_is_copied() -> None:
    slots = Slots(3)
    slots.take(0)
    slots.give_back(0, LONG, PIRATE)
    slots.copied(0, 2)

    assert slots.best_for(LONG, PIRATE) == 0
    assert slots.best_for(LONG) == 1
    assert slots.take(0).adapters == PIRATE
    assert slots.best_for(LONG, PIRATE) == 2
    assert slots.take(2).adapters == PIRATE
