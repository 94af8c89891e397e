"""Texts that may be too long are found out without being tokenised as a whole."""

from __future__ import annotations

import pytest

from packtrain.broker.errors import PromptTooLong
from packtrain.workers.backends.scripted import ScriptedBackend
from packtrain.workers.chat.long_texts import PIECE, SHORT, tokens_of

pytestmark = pytest.mark.unit


class Watched(ScriptedBackend):
    """A tokenizer of one token for each four characters, which keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, bool, bool]] = []

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        self.asked.append((len(text), add_special, parse_special))
        return [0] * -(-len(text) // 4)


@pytest.mark.parametrize(("size", "limit"), [(SHORT, 1), (SHORT, None), (4 * SHORT, 2 * SHORT), (1, 5)])
def test_a_short_text_and_one_that_may_fit_are_tokenised_at_once(size: int, limit: int | None) -> None:
    backend = Watched()

    assert len(tokens_of("x" * size, backend, model="m", limit=limit, add_special=False, parse_special=True)) == -(
        -size // 4
    )
    assert backend.asked == [(size, False, True)]


def test_a_text_that_cannot_fit_is_refused_by_its_first_pieces() -> None:
    backend = Watched()

    with pytest.raises(PromptTooLong, match="has about 1048576 tokens, one slot of 'm' holds 4095") as refused:
        tokens_of("x" * 2**22, backend, model="m", limit=4095)

    assert refused.value.data["num_tokens"] == 2**20
    assert backend.asked == [(PIECE, True, False), (PIECE, False, False)]


def test_a_text_that_may_fit_after_all_is_tokenised_as_a_whole() -> None:
    backend = Watched()
    tokens = tokens_of("x" * 100_000, backend, model="m", limit=25_000)

    assert len(tokens) == 25_000
    assert backend.asked[-1] == (100_000, True, False)


def test_a_long_text_is_counted_in_pieces() -> None:
    backend = Watched()

    assert len(tokens_of("x" * 2**22, backend, model="m", limit=None)) == 2**20
    assert {size for size, *_ in backend.asked} == {PIECE}
