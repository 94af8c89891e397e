"""Which adapter set computes next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.adapters import AdapterSet
from packtrain.workers.engine.scheduler import plan_step
from packtrain.workers.engine.sequence import Sequence, SequenceRequest
from packtrain.workers.engine.text import TextStream
from packtrain.workers.engine.turns import TURN_STEPS, Turns

pytestmark = pytest.mark.unit

A: AdapterSet = (("a", 1.0),)
B: AdapterSet = (("b", 1.0),)


def sequence(adapters: AdapterSet = (), *, pending: int = 1, seq_id: int = 0) -> Sequence:
    """A sequence with this many tokens to compute: 1 is one that decodes."""
    request = SequenceRequest(
        JobId("j"), (7,) * pending, SamplingParams(), 0, 8, lambda _: None, lambda _: None, adapters=adapters
    )
    return Sequence(request, seq_id, 0, TextStream(), list(request.prompt))


def chosen(turns: Turns, live: list[Sequence]) -> AdapterSet:
    """The set of the next step; all of its sequences must be in it."""
    found = turns.next(live)
    (adapters,) = {s.request.adapters for s in found}
    assert found == [s for s in live if s.request.adapters == adapters]
    return adapters


@pytest.mark.parametrize("adapters", [(), A])
def test_where_all_have_the_same_adapters_all_are_in_every_step(adapters: AdapterSet) -> None:
    turns, live = Turns(), [sequence(adapters), sequence(adapters, pending=9)]

    assert [turns.next(live) for _ in range(10)] == [live] * 10
    assert turns.next([]) == []


def test_sets_that_decode_take_turns_of_some_steps() -> None:
    turns, live = Turns(), [sequence(), sequence(A), sequence(A)]

    steps = [chosen(turns, live) for _ in range(3 * TURN_STEPS)]

    assert steps == [*[()] * TURN_STEPS, *[A] * TURN_STEPS, *[()] * TURN_STEPS]


def test_a_step_with_prefill_is_a_whole_turn() -> None:
    turns, live = Turns(), [sequence(A, pending=500), sequence(B, pending=500)]

    assert [chosen(turns, live) for _ in range(4)] == [A, B, A, B]


def test_a_set_that_comes_stands_at_the_end_and_one_that_goes_leaves_its_turn() -> None:
    turns = Turns()
    assert chosen(turns, [sequence(A), sequence(B)]) == A

    assert chosen(turns, [sequence(B), sequence()]) == B
    assert [chosen(turns, [sequence(), sequence(A), sequence(B)]) for _ in range(TURN_STEPS)] == [B] * 3 + [()]


@given(others=st.lists(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), max_size=6), min_size=60, max_size=60))
def test_no_set_starves_whatever_comes_and_goes(others: list[list[tuple[int, int]]]) -> None:
    turns, mine, waited = Turns(), sequence(A, pending=2), 0
    for step in others:
        live = [sequence(((str(name), 1.0),), pending=pending) for name, pending in step]
        waited = 0 if chosen(turns, [*live, mine]) == A else waited + 1

        assert waited <= 5 * TURN_STEPS


def test_a_prompt_gets_only_the_budget_while_sequences_of_another_set_decode() -> None:
    prompt = [sequence(A, pending=2000)]

    (alone,) = plan_step(prompt, n_batch=512, prefill_budget=128)
    (beside,) = plan_step(prompt, n_batch=512, prefill_budget=128, others_decode=True)

    assert (alone.count, beside.count) == (512, 128)
