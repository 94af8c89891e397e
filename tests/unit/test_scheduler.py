"""Which tokens go into the next step."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.ids import JobId
from packtrain.broker.pieces import PromptLogprob
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.engine.scheduler import MIN_PIECE, SERIAL_CHUNK, plan_serial_step, plan_step
from packtrain.workers.engine.sequence import Sequence, SequenceRequest
from packtrain.workers.engine.text import TextStream

pytestmark = pytest.mark.unit


def sequence(pending: int, *, seq_id: int = 0, order: int | None = None, scores: bool = False) -> Sequence:
    """A sequence with this many tokens to compute: 1 is one that decodes."""
    params = SamplingParams(prompt_logprobs=0 if scores else None)
    request = SequenceRequest(JobId(f"j{seq_id}"), (7,) * pending, params, 0, 8, lambda _: None, lambda _: None)
    return Sequence(request, seq_id, seq_id if order is None else order, TextStream(), list(request.prompt))


def sequences(*pending: int) -> list[Sequence]:
    return [sequence(count, seq_id=seq_id) for seq_id, count in enumerate(pending)]


def counts(live: Seq[Sequence], *, n_batch: int = 512, prefill_budget: int = 128) -> dict[int, int]:
    """Rows of each sequence in the next step, by sequence id."""
    rows = plan_step(live, n_batch=n_batch, prefill_budget=prefill_budget)
    return {row.sequence.seq_id: row.count for row in rows}


def test_nothing_live_gives_an_empty_step() -> None:
    assert counts([]) == {}


def test_every_decoding_sequence_gets_one_row() -> None:
    assert counts(sequences(1, 1, 1)) == {0: 1, 1: 1, 2: 1}


def test_a_prompt_alone_fills_the_whole_batch() -> None:
    assert counts(sequences(2000)) == {0: 512}


def test_a_prompt_beside_a_running_answer_gets_only_the_budget() -> None:
    assert counts(sequences(1, 2000)) == {0: 1, 1: 128}


def test_half_of_the_budget_goes_to_the_oldest_prompt_and_the_rest_to_the_shortest() -> None:
    assert counts(sequences(1, 2000, 900, 40, 30)) == {0: 1, 1: 64, 3: 34, 4: 30}


def test_what_the_shortest_leave_goes_to_the_next_shortest_and_at_last_to_the_oldest() -> None:
    assert counts(sequences(1, 2000, 10)) == {0: 1, 1: 118, 2: 10}
    assert counts(sequences(1, 20, 2000, 30)) == {0: 1, 1: 20, 2: 78, 3: 30}


def test_a_prompt_that_others_wait_for_counts_as_short_as_what_they_wait_for() -> None:
    live = sequences(1, 3000, 6000, 60)
    live[2].awaited_to = 40

    assert counts(live) == {0: 1, 1: 64, 2: 64}


def test_a_small_piece_of_a_prompt_is_left_for_another_step_unless_it_is_the_last_one() -> None:
    assert counts(sequences(1, 500, 52, 100)) == {0: 1, 1: 76, 2: 52}
    assert counts(sequences(1, 500, 52, 60, 12)) == {0: 1, 1: 64, 2: 52, 4: 12}


def test_decoding_sequences_leave_prefill_what_room_is_left_in_the_batch() -> None:
    assert counts(sequences(1, 1, 1, 50), n_batch=8) == {0: 1, 1: 1, 2: 1, 3: 5}


def test_a_full_batch_of_decoding_sequences_makes_a_prompt_wait() -> None:
    assert counts(sequences(1, 1, 50), n_batch=2) == {0: 1, 1: 1}


def test_a_token_is_wanted_only_after_the_last_prompt_token() -> None:
    partly, wholly = plan_step(sequences(600, 10), n_batch=512, prefill_budget=128)

    assert (partly.wants_token, wholly.wants_token) == (False, True)


def test_rows_come_by_rising_sequence_id() -> None:
    live = [sequence(1, seq_id=3), sequence(40, seq_id=2), sequence(1, seq_id=0), sequence(5, seq_id=1)]

    rows = plan_step(live, n_batch=512, prefill_budget=128)

    assert [row.sequence.seq_id for row in rows] == [0, 1, 2, 3]


_PENDING = st.lists(st.one_of(st.just(1), st.integers(1, 300)), min_size=1, max_size=16)


@given(pending=_PENDING, n_batch=st.integers(16, 128), budget=st.integers(1, 128))
def test_no_step_exceeds_its_limits_or_leaves_out_a_decoding_sequence(
    pending: list[int], n_batch: int, budget: int
) -> None:
    rows = plan_step(sequences(*pending), n_batch=n_batch, prefill_budget=budget)

    prefill = sum(row.count for row in rows if row.sequence.num_pending > 1)
    assert sum(row.count for row in rows) <= n_batch
    assert prefill <= budget or 1 not in pending
    assert all(1 <= row.count <= row.sequence.num_pending for row in rows)
    assert {s for s, count in enumerate(pending) if count == 1} <= {row.sequence.seq_id for row in rows}
    assert [row.sequence.seq_id for row in rows] == sorted({row.sequence.seq_id for row in rows})


@given(pending=_PENDING, n_batch=st.integers(16, 128), budget=st.integers(1, 128))
def test_room_is_not_wasted_but_for_a_small_piece(pending: list[int], n_batch: int, budget: int) -> None:
    given_rows = counts(sequences(*pending), n_batch=n_batch, prefill_budget=budget)

    got = {s: given_rows.get(s, 0) for s, count in enumerate(pending) if count > 1}
    room = min(n_batch - pending.count(1), budget) if 1 in pending else n_batch
    left = min(room, sum(count for count in pending if count > 1)) - sum(got.values())
    assert 0 <= left < MIN_PIECE
    if got and room:
        oldest = min(got)
        assert got[oldest] >= min(pending[oldest], (room + 1) // 2)


@given(pending=_PENDING, n_batch=st.integers(17, 64), budget=st.integers(1, 64))
def test_every_prompt_is_computed_in_the_end_however_long_others_decode(
    pending: list[int], n_batch: int, budget: int
) -> None:
    live = sequences(*pending)

    for _ in range(sum(pending) + len(pending)):
        for row in plan_step(live, n_batch=n_batch, prefill_budget=budget):
            sequence = row.sequence
            sequence.num_cached += row.count
            if sequence.num_pending == 0:
                sequence.tokens.append(7)  # and decodes for ever

    assert [s.num_pending for s in live] == [1] * len(live)


def test_a_serial_step_has_rows_of_one_sequence_up_to_a_fixed_border() -> None:
    live = sequences(300, 5)
    live[0].num_cached = 100

    assert [(row.sequence.seq_id, row.count) for row in plan_serial_step(live)] == [(0, SERIAL_CHUNK - 100)]


def test_a_serial_step_ends_with_the_prompt_and_goes_on_token_by_token() -> None:
    (only,) = sequences(SERIAL_CHUNK + 3)
    only.tokens += [7, 7, 7]  # output of an earlier lease
    counts = []
    while only.num_pending:
        (row,) = plan_serial_step([only])
        counts.append(row.count)
        only.num_cached += row.count

    assert counts == [SERIAL_CHUNK, 3, 1, 1, 1]


def test_a_prompt_that_is_scored_gets_as_many_rows_as_have_room_for_logits() -> None:
    (rows,) = plan_step([sequence(300, scores=True)], n_batch=512, prefill_budget=128, n_outputs=16)

    assert (rows.count, rows.scored) == (16, [7] * 16)


def test_the_last_piece_of_a_scored_prompt_scores_all_but_what_follows_it() -> None:
    (rows,) = plan_step([sequence(10, scores=True)], n_batch=512, prefill_budget=128, n_outputs=16)

    assert (rows.count, len(rows.scored), rows.wants_token) == (10, 9, True)


@given(
    st.lists(st.tuples(st.integers(1, 700), st.booleans()), min_size=1, max_size=32),
    st.integers(0, 64),
    st.sampled_from([1, 16, 128, 512]),
)
def test_no_step_asks_for_more_logits_than_there_is_room_for(
    live: list[tuple[int, bool]], spare: int, budget: int
) -> None:
    n_outputs = len(live) + spare
    sequences = [sequence(pending, seq_id=i, scores=scores) for i, (pending, scores) in enumerate(live)]

    rows = plan_step(sequences, n_batch=512, prefill_budget=budget, n_outputs=n_outputs)

    assert sum(len(r.scored) + r.wants_token for r in rows) <= n_outputs
    assert all(0 < r.count <= r.sequence.num_pending for r in rows)
    assert rows or not live


def test_the_serial_recipe_scores_a_prompt_in_pieces_of_one_size_and_samples_nothing_then() -> None:
    scored = sequence(20, scores=True)
    (first,) = plan_serial_step([scored])
    assert (first.count, len(first.scored), first.wants_token) == (16, 16, False)

    scored.num_cached = 16
    scored.scores = [PromptLogprob(token=7)] * 16
    (last,) = plan_serial_step([scored])
    assert (last.count, len(last.scored), last.wants_token) == (3, 3, False)
