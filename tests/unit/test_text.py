"""What a reader sees of tokens: whole characters, nothing of a stop string, nothing ever taken back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.workers.engine.text import TextStream

pytestmark = pytest.mark.unit


def shown(pieces: Iterable[bytes], *stop: str) -> list[str]:
    """What each piece shows, then what the flush shows."""
    stream = TextStream(stop)
    return [*(stream.push(piece) for piece in pieces), stream.flush()]


def in_bytes(text: str) -> list[bytes]:
    return [bytes([byte]) for byte in text.encode()]


def cut_by_the_first_stop(text: str, stop: Iterable[str]) -> str:
    """The text before the stop string that is complete first, found character by character."""
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stop if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)]
    return text


def test_text_is_shown_at_once_without_stop_strings() -> None:
    assert shown([b"he", b"llo"]) == ["he", "llo", ""]


def test_a_character_split_over_tokens_is_shown_when_it_is_whole() -> None:
    assert shown(in_bytes("é€😀")) == ["", "é", "", "", "€", "", "", "", "😀", ""]


def test_an_unfinished_character_at_the_end_becomes_a_replacement() -> None:
    assert shown([b"a", "€".encode()[:2]]) == ["a", "", "�"]


def test_bytes_that_are_no_utf8_become_replacements() -> None:
    assert "".join(shown([b"a\xff", b"b"])) == "a�b"


def test_a_stop_string_within_a_piece_ends_the_text_before_it() -> None:
    assert shown([b"one STOP two"], "STOP") == ["one ", ""]


def test_a_stop_string_over_several_pieces_is_never_shown() -> None:
    assert shown([b"one S", b"TO", b"P two"], "STOP") == ["one ", "", "", ""]


def test_a_tail_that_turns_out_to_be_no_stop_is_released() -> None:
    assert shown([b"S", b"T", b"A"], "STOP") == ["", "", "STA", ""]


def test_a_held_back_tail_is_shown_by_the_flush() -> None:
    assert shown([b"one ST"], "STOP") == ["one ", "ST"]


@pytest.mark.parametrize("pieces", [[b"aaab"], [b"a", b"a", b"a", b"b"], [b"aa", b"ab"], [b"aaa", b"b"]])
def test_a_stop_string_that_overlaps_itself_is_found(pieces: list[bytes]) -> None:
    assert "".join(shown(pieces, "aab")) == "a"


def test_a_stop_string_that_is_the_whole_text_leaves_nothing() -> None:
    assert shown([b"STOP"], "STOP") == ["", ""]


def test_the_stop_string_that_comes_first_wins() -> None:
    assert "".join(shown([b"a.b!c"], "!", ".")) == "a"


def test_the_longest_of_stop_strings_that_end_together_wins() -> None:
    assert "".join(shown([b"xab"], "b", "ab")) == "x"


@pytest.mark.parametrize("pieces", [[b"abc"], [b"ab", b"c"], [b"a", b"b", b"c"]])
def test_a_stop_string_inside_another_is_complete_first(pieces: list[bytes]) -> None:
    assert "".join(shown(pieces, "abc", "b")) == "a"


def test_a_text_tells_which_stop_string_ended_it() -> None:
    stream = TextStream(["b", "ab", "c"])
    stream.push(b"x")
    before = stream.stopped_by
    stream.push(b"abc")

    assert (before, stream.stopped_by) == ("", "ab")


def test_nothing_is_shown_after_a_stop_string() -> None:
    stream = TextStream(["."])
    stream.push(b"a.")

    assert stream.is_stopped
    assert [stream.push(b"more"), stream.flush()] == ["", ""]


def test_a_stop_string_of_many_byte_characters_is_found_over_split_tokens() -> None:
    assert "".join(shown(in_bytes("日本。語"), "。")) == "日本"


def test_a_stop_string_completed_by_the_flush_ends_the_text() -> None:
    assert shown([b"a", b"\xe2\x82"], "�") == ["a", "", ""]


#: Few letters, so that stop strings occur, overlap and nearly occur.
_LETTERS = st.text("abé😀", max_size=30)
_STOPS = st.lists(st.text("abé😀", min_size=1, max_size=4), max_size=3)


@given(text=_LETTERS, stop=_STOPS, cuts=st.lists(st.integers(0, 120)))
def test_any_cut_into_pieces_shows_the_text_up_to_the_first_stop_string(
    text: str, stop: list[str], cuts: list[int]
) -> None:
    data = text.encode()
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut <= len(data))})
    pieces = [data[a:b] for a, b in itertools.pairwise(bounds)]

    expected = cut_by_the_first_stop(text, stop)
    so_far = ""
    for part in shown(pieces, *stop):
        so_far += part
        assert expected.startswith(so_far)  # nothing has to be taken back
    assert so_far == expected


@given(pieces=st.lists(st.binary(max_size=4), max_size=20), stop=_STOPS)
def test_the_same_pieces_show_the_same_again(pieces: list[bytes], stop: list[str]) -> None:
    assert shown(pieces, *stop) == shown(pieces, *stop)


@given(data=st.binary(max_size=40), cut=st.integers(0, 40))
def test_bytes_of_any_kind_show_the_same_however_they_are_cut(data: bytes, cut: int) -> None:
    assert "".join(shown([data[:cut], data[cut:]])) == data.decode("utf-8", "replace")
