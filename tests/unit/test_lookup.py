"""What is guessed, how much of it, and when not."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.scripted import END, ScriptedBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.lookup import FIRST_GUESSES, FIRST_REST, GUESSING_ROWS, MAX_GUESSES, MAX_REST, Guesser
from packtrain.workers.engine.scheduler import Rows, add_guesses
from packtrain.workers.engine.sequence import Ended, Sequence, SequenceRequest
from packtrain.workers.engine.text import TextStream

pytestmark = pytest.mark.unit


def guess(text: str, most: int = 100, guesser: Guesser | None = None) -> str:
    return bytes((guesser or Guesser()).guess(text.encode(), most)).decode()


def practised(length: int) -> Guesser:
    """One whose guesses were right until it makes so many."""
    guesser = Guesser()
    guesser.learn(length // 2, length // 2, 0)
    return guesser


def sequence(seq_id: int, text: str, *, max_new: int = 100, length: int = MAX_GUESSES) -> Sequence:
    tokens = list(text.encode())
    request = SequenceRequest(
        JobId(f"j{seq_id}"), tuple(tokens), SamplingParams(), 0, max_new, lambda _: None, lambda _: None
    )
    return Sequence(
        request, seq_id, seq_id, TextStream(), tokens, num_cached=len(tokens) - 1, guesser=practised(length)
    )


def guesses(*live: Sequence, most_rows: int = 512) -> list[int]:
    return [len(rows.guess) for rows in add_guesses([Rows(s, s.num_pending) for s in live], most_rows=most_rows)]


@pytest.mark.parametrize(
    ("text", "guessed"),
    [
        ("the cat and the ", "ca"),
        ("a cat, a dog, a ", "do"),  # the last place counts
        ("xabc yab", "c "),  # two tokens are enough
        ("1abc 2abd xab", "d "),
        ("1zab_ 2ab? 3zab", "_ "),  # three count more than two, even if they stood longer ago
        ("abcdef", ""),
        ("ab", ""),
        ("", ""),
    ],
)
def test_what_followed_the_last_tokens_is_guessed(text: str, guessed: str) -> None:
    assert guess(text) == guessed


def test_a_quotation_goes_on_where_it_is_read_off_and_not_at_the_last_place() -> None:
    guesser, text = Guesser(), "1. red one; 2. dry one; 3. big one; list: 1. r"

    assert guess(text, guesser=guesser) == "ed"
    guesser.learn(2, 2, len(text) + 3)
    assert guess(text + "ed one; ", guesser=guesser) == "2. d"
    assert guess(text + "ed one; ") == "li"


def test_a_pattern_goes_on_behind_the_end() -> None:
    assert guess("x ha ha", guesser=practised(8)) == " ha ha h"


def test_no_more_is_guessed_than_is_of_use() -> None:
    assert (guess("the cat and the ", most=1), guess("the cat and the ", most=0)) == ("c", "")
    assert guess("the cat and the ", most=-1) == ""


@given(st.text(alphabet="ab", max_size=60), st.integers(1, 20))
def test_tokens_told_bit_by_bit_are_guessed_as_all_at_once(text: str, step: int) -> None:
    guesser = Guesser()
    for end in range(0, len(text), step):
        guesser.guess(text[:end].encode(), 1)
    guesser._shift = 0  # quotes nothing

    assert guess(text, guesser=guesser) == guess(text)


def test_right_guesses_make_for_more_and_wrong_ones_for_fewer() -> None:
    guesser, text = Guesser(), "ab" * 50
    lengths = []
    for num_right in (2, 4, 8, 10, 5, 2, 2):
        lengths.append(len(guess(text, guesser=guesser)))
        guesser.learn(lengths[-1], num_right, 0)

    assert lengths == [FIRST_GUESSES, 4, 8, MAX_GUESSES, MAX_GUESSES, 5, 2]


def test_after_wrong_guesses_it_rests_longer_and_longer_but_not_for_ever() -> None:
    guesser, guessed_at = Guesser(), []
    for num_tokens in range(10, 250):
        if made := guesser.guess(b"a" * num_tokens, 9):
            guessed_at.append(num_tokens)
            guesser.learn(len(made), 0, num_tokens)

    gaps = [after - before for before, after in pairwise(guessed_at)]
    assert gaps[:6] == [min(FIRST_REST * 2**n, MAX_REST) for n in range(6)]


def test_a_guess_that_was_cut_for_others_does_not_count_as_all_that_could_be_right() -> None:
    guesser = practised(8)
    guesser.learn(2, 2, 0)

    assert len(guess("ab" * 50, guesser=guesser)) == 8


def test_few_sequences_share_the_rows_of_a_step_fairly() -> None:
    text = "ab" * 20

    assert guesses(sequence(0, text)) == [10]
    assert guesses(sequence(0, text), sequence(1, text)) == [7, 7]
    assert guesses(sequence(0, text, length=2), sequence(1, text), sequence(2, "abc")) == [2, 10, 0]
    assert guesses(*(sequence(n, text) for n in range(12))) == [0] * 8 + [1] * 4
    assert guesses(*(sequence(n, text) for n in range(GUESSING_ROWS))) == [0] * GUESSING_ROWS
    assert guesses(sequence(0, text), most_rows=4) == [3]


def test_nothing_is_guessed_behind_the_last_token_asked_for() -> None:
    assert guesses(sequence(0, "ab" * 20, max_new=3)) == [2]
    assert guesses(sequence(0, "ab" * 20, max_new=1)) == [0]


def test_a_step_with_a_prompt_in_it_is_left_alone() -> None:
    prefilling = sequence(1, "ab" * 20)
    prefilling.num_cached = 0

    assert guesses(sequence(0, "ab" * 20), prefilling) == [0, 0]


def _answer(text: str, speculation: str, **params: object) -> tuple[list[int], list[Ended], ScriptedBackend]:
    backend = ScriptedBackend(n_slots=2)
    engine = Engine(backend, clock=lambda: 0, speculation="prompt-lookup" if speculation == "on" else "off")
    tokens: list[int] = []
    ends: list[Ended] = []
    engine.submit(
        SequenceRequest(
            JobId("j"), tuple(text.encode()), SamplingParams.model_validate(params), 1, 40,
            lambda t: tokens.extend(t.tokens), ends.append,
        )
    )  # fmt: skip
    while engine.is_busy:
        engine.step()
    return tokens, ends, backend


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("abababababababababababab", {}),
        ("abababababababababababab", {"stop": ["babab"]}),
        ("abababababababababababab!long", {}),
        ("aba", {"logprobs": 0}),
    ],
)
def test_an_answer_is_the_same_in_fewer_steps(text: str, params: dict[str, object]) -> None:
    plain, ends, slow = _answer(text, "off", **params)
    guessed, guessed_ends, fast = _answer(text, "on", **params)

    assert guessed == plain
    assert (guessed_ends[0].end, guessed_ends[0].tail) == (ends[0].end, ends[0].tail)
    assert len(fast.steps) <= len(slow.steps) - (len(plain) > 5)
    assert END not in guessed


def test_an_answer_of_a_form_is_never_guessed() -> None:
    backend = ScriptedBackend()
    engine = Engine(backend, clock=lambda: 0, speculation="prompt-lookup")
    params = SamplingParams.model_validate({"response_format": {"type": "json_object"}})
    engine.submit(SequenceRequest(JobId("j"), tuple(b"ab" * 20), params, 1, 40, lambda _: None, lambda _: None))
    while engine.is_busy:
        engine.step()

    assert engine.stats.guessed == 0
