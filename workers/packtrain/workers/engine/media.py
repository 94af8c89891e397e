"""Images within a sequence: where they stand among its tokens, and the steps that compute them.

An image is some rows of the model's input where a text has tokens. Among the tokens of a prompt it is a run of negative
numbers made of its hash, so whatever compares tokens, above all the search for a prefix that some slot holds, finds the
same image alike and another one different:

    tokens    1 9690 198  -a -b -c -d  260 5921 ...     span [3, 7): four rows

llama.cpp takes a batch of tokens or one of rows, never both. So steps alternate while both wait: running answers get a
step of text after each step of images, and that one has no more rows than any prompt may have beside them. Some models
let the rows of an image look at each other in both directions; then all of them have to be in one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from packtrain.workers.engine.sequence import Sequence as EngineSequence

#: Where people see the numbers of tokens, or a hash is made of them, this stands for each row of an image.
IMAGE_ROW = -1
#: Bits of a token's number that count the rows of one image.
_ROW_BITS = 24


@dataclass(frozen=True, slots=True, eq=False)
class MediaRows:
    """What an image, or a part of one, became: rows of the model's input."""

    rows: np.ndarray[Any, np.dtype[np.float32]]  # (count, width)
    num_positions: int  # that the next token is further; less than `count` where positions have several dimensions
    is_causal: bool = True  # False: all rows look at each other, so they are computed in one step
    #: (4, count) int32, relative to the position of the first, and which of the four count from there (the others count
    #: from 0); None: one position after the other.
    places: np.ndarray[Any, np.dtype[np.int32]] | None = None
    moves: tuple[int, int, int, int] = (1, 1, 1, 0)

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.rows)

    def cut(self, begin: int, end: int) -> MediaRows:
        """Some of the rows, for a step; positions go on counting from the first of all."""
        places = None if self.places is None else self.places[:, begin:end]
        return MediaRows(self.rows[begin:end], self.num_positions, self.is_causal, places, self.moves)


#: An image as a model takes it: its rows, and tokens that this model wants around and between them.
Seen = tuple[tuple[int, ...] | MediaRows, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """An image's place in a prompt."""

    start: int  # index of its first row among the tokens
    media: MediaRows

    @property
    def end(self) -> int:
        """Index of the first token behind it."""
        return self.start + self.media.count


def tokens_for(sha256: str, first: int, count: int) -> list[int]:
    """The numbers that stand for rows of an image, from its row `first` on; all below 0."""
    number = int(sha256[:32], 16) << _ROW_BITS
    return [-1 - (number + row) for row in range(first, first + count)]


def place(sha256: str, seen: Seen, start: int) -> tuple[list[int], list[Span]]:
    """Tokens and spans of an image that stands at index `start` of a prompt."""
    tokens: list[int] = []
    spans: list[Span] = []
    num_rows = 0
    for piece in seen:
        if isinstance(piece, MediaRows):
            spans.append(Span(start + len(tokens), piece))
            tokens += tokens_for(sha256, num_rows, piece.count)
            num_rows += piece.count
        else:
            tokens += piece
    return tokens, spans


def span_at(spans: Iterable[Span], index: int) -> Span | None:
    """The image that the token at `index` is a row of."""
    return next((span for span in spans if span.start <= index < span.end), None)


def num_alike(spans: Sequence[Span], begin: int, end: int) -> int:
    """Of the tokens [begin, end) how many of the first are text, or rows of the same image."""
    if span := span_at(spans, begin):
        return min(span.end, end) - begin
    return min([end, *(span.start for span in spans if span.start > begin)]) - begin


def whole_before(spans: Iterable[Span], count: int, *, all_whole: bool = False) -> int:
    """The most of the first `count` tokens that end within no image that has to be computed as a whole.

    Args:
        all_whole: None may be cut.
    """
    for span in spans:
        is_whole = all_whole or not span.media.is_causal or span.media.places is not None
        if is_whole and span.start < count < span.end:
            return span.start
    return count


def position(spans: Iterable[Span], index: int) -> int:
    """The position of the token at `index`; within an image that of its first row, where these have places."""
    behind = index
    for span in spans:
        if span.end <= index:
            behind -= span.media.count - span.media.num_positions
        elif span.start <= index and span.media.places is not None:
            behind -= index - span.start
    return behind


class MediaTurns:
    """Whether images come next. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._was_text = True

    def next(self, live: Sequence[EngineSequence]) -> tuple[list[EngineSequence], bool]:
        """The sequences of the next step, and whether it is one of images.

        Args:
            live: Sequences that may be computed.
        """
        looking = [s for s in live if s.next_span]
        if not looking:
            self._was_text = True
            return list(live), False
        reading = [s for s in live if not s.next_span and s.num_pending]
        if reading and not self._was_text:
            self._was_text = True
            return reading, False
        self._was_text = False
        first = min(looking, key=lambda s: s.order)
        return [s for s in looking if _go_together(s, first)], True


def _go_together(one: EngineSequence, other: EngineSequence) -> bool:
    mine, others = one.next_span, other.next_span
    assert mine
    assert others
    return one.request.adapters == other.request.adapters and mine.media.is_causal == others.media.is_causal


def rows_of_media(looking: Sequence[EngineSequence], room: int, n_batch: int) -> dict[int, int]:
    """Rows that each sequence gets in a step of images, by its order of arrival; the oldest first.

    Args:
        room: Rows that the step should have at most. One image that cannot be cut may have more, up to `n_batch`.
    """
    found: dict[int, int] = {}
    left = room
    for sequence in sorted(looking, key=lambda s: s.order):
        span = sequence.next_span
        assert span
        count = span.end - sequence.num_cached
        if span.media.is_causal:
            count = min(count, left)
        elif count > left and (found or count > n_batch):
            continue
        if count > 0:
            found[sequence.order] = count
            left -= count
    return found
