"""Scheduling: which tokens go into the next step. A step is one `llama_decode` call.

Decoding sequences first, one row each: a running answer never waits for somebody's prompt. What room is left goes to
prefill, but while anything decodes only up to a budget, for a step takes as long as its rows: with 128 rows a stream of
a 135M model on two cores pauses about a third of a second, with 512 rows more than a whole one.

Half of the budget goes to the oldest prompt, so that none waits for ever, and what is left to the shortest: the sooner
a sequence decodes, the fuller are the steps. One whose beginning others wait for counts as short as that beginning, or
they would wait for as long as its whole prompt does. Few prompts in a step are also the faster way, for llama.cpp
computes rows of several sequences together only as far as they are equally many, and each rest by itself.

The serial recipe knows no company: one sequence in a step, turn about, its prompt in chunks whose borders are fixed,
its output token by token, also where it is computed again after a resume. So the same rows meet the same kernels.

A prompt that is scored takes logits of all its rows, and a step has room for the logits of few (`Shape.n_outputs`): so
it is computed in smaller pieces. In the serial recipe that would be other bits for the answer, so there the prompt is
computed once for its scores, in pieces of a size of their own, and then again as ever.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import takewhile

from packtrain.workers.engine.lookup import GUESSING_ROWS
from packtrain.workers.engine.media import MediaRows, rows_of_media
from packtrain.workers.engine.sequence import Sequence
from packtrain.workers.load_options import MIN_OUTPUTS

#: Borders between the chunks of a prompt in the serial recipe, tokens. Part of the numerics class.
SERIAL_CHUNK = 128
#: A smaller piece of a prompt is not worth its share of a step, unless it is the last one. Rows.
MIN_PIECE = 16
#: Rows of a step that scores in the serial recipe; fewer than the logits of any model have room for. As above.
SERIAL_SCORED = MIN_OUTPUTS


@dataclass(frozen=True, slots=True)
class Rows:
    """The part of a step that belongs to one sequence: its next `count` tokens."""

    sequence: Sequence
    count: int
    guess: tuple[int, ...] = ()  # tokens that may follow

    @property
    def wants_token(self) -> bool:
        """True when the next token can be sampled after this step."""
        return self.count == self.sequence.num_pending and not self.sequence.is_complete

    @property
    def media(self) -> MediaRows | None:
        """The rows, where they are those of an image."""
        span = self.sequence.next_span
        begin = self.sequence.num_cached
        return span.media.cut(begin - span.start, begin - span.start + self.count) if span else None

    @property
    def scored(self) -> list[int]:
        """Prompt tokens that follow the first of these rows and shall be scored."""
        sequence = self.sequence
        if not sequence.is_scoring:
            return []
        first = sequence.num_cached
        return sequence.tokens[first + 1 : min(first + self.count, sequence.num_to_score) + 1]


def plan_step(
    live: Seq[Sequence],
    *,
    n_batch: int,
    prefill_budget: int,
    n_outputs: int = MIN_OUTPUTS,
    others_decode: bool = False,
) -> list[Rows]:
    """Rows of the next step, by rising sequence id (llama.cpp makes wider ubatches of neighbouring ids).

    Args:
        live: Sequences in slots; at most `n_batch`.
        n_batch: Rows that one step may have.
        prefill_budget: Prefill rows in a step that also decodes.
        n_outputs: Rows that may have logits; at least one for each of `live`.
        others_decode: Sequences that cannot be in this step wait for it with their next token.
    """
    decoding = [s for s in live if s.num_pending == 1]
    prefilling = [s for s in live if s.num_pending > 1]
    room = n_batch - len(decoding)
    if decoding or others_decode:
        room = min(room, prefill_budget)
    # Each that does not score may want a token.
    outputs = n_outputs - len(live) + sum(s.is_scoring for s in prefilling)
    pieces = _pieces(sorted(prefilling, key=lambda s: s.order), room, outputs)
    rows = [Rows(s, 1) for s in decoding] + [Rows(s, pieces[s.order]) for s in prefilling if s.order in pieces]
    return sorted(rows, key=lambda r: r.sequence.seq_id)


def _pieces(prefilling: Seq[Sequence], room: int, outputs: int) -> dict[int, int]:
    """Rows that each prompt gets, by the sequence's order of arrival. Half for the oldest, the rest for the shortest.

    Args:
        prefilling: The oldest first.
        room: Rows.
        outputs: Rows of prompts that are scored; each of these has logits.
    """
    pieces: dict[int, int] = {}
    shortest = sorted(prefilling, key=lambda s: (s.num_wanted, s.order))
    for share, sequence in [*((2, s) for s in prefilling[:1]), *((1, s) for s in shortest)]:
        has = pieces.get(sequence.order, 0)
        count = min(sequence.num_ahead - has, -(-room // share))
        if sequence.is_scoring:
            count = min(count, -(-outputs // share))
        is_worth_it = share == 2 or has or count >= min(sequence.num_ahead, MIN_PIECE)
        if count and is_worth_it:
            pieces[sequence.order] = has + count
            room -= count
            outputs -= count if sequence.is_scoring else 0
    return pieces


def plan_image_step(looking: Seq[Sequence], *, n_batch: int, prefill_budget: int, others_decode: bool) -> list[Rows]:
    """Rows of the next step, which is one of media, by rising sequence id. Arguments as of `plan_step`.

    Args:
        looking: Sequences whose next rows are those of an image, and that can be computed together.
    """
    counts = rows_of_media(looking, prefill_budget if others_decode else n_batch, n_batch)
    rows = [Rows(s, counts[s.order]) for s in looking if s.order in counts]
    return sorted(rows, key=lambda r: r.sequence.seq_id)


def add_guesses(rows: Seq[Rows], *, most_rows: int) -> list[Rows]:
    """The same rows, some with guesses, where they are so few that more cost less than they may save.

    Args:
        most_rows: That a step may have with logits, guesses included; at least as many as `rows`.
    """
    room = min(GUESSING_ROWS, most_rows) - sum(row.count for row in rows)
    if room <= 0:
        return list(rows)
    guessed = [Rows(row.sequence, row.count, _guess(row)) for row in rows]
    num_left = sum(bool(row.guess) for row in guessed)
    for index in sorted(range(len(guessed)), key=lambda i: len(guessed[i].guess)):  # max-min fair, as prefill
        if guess := guessed[index].guess:
            guessed[index] = Rows(guessed[index].sequence, 1, guess[: room // num_left])
            room -= len(guessed[index].guess)
            num_left -= 1
    return guessed


def _guess(row: Rows) -> tuple[int, ...]:
    sequence = row.sequence
    if sequence.guesser is None or row.count > 1 or not row.wants_token:
        return ()
    # One more is sampled behind the last guess.
    guess = sequence.guesser.guess(sequence.tokens, sequence.request.max_new - sequence.num_output - 1)
    return tuple(takewhile(lambda token: token >= 0, guess))  # what stood behind may be an image


def plan_serial_step(live: Seq[Sequence]) -> list[Rows]:
    """Rows of the next step in the serial recipe: those of the sequence whose turn it is.

    Args:
        live: Sequences in slots, the one that waits longest first.
    """
    sequence = next((s for s in live if s.num_pending), None)
    if sequence is None:
        return []
    if sequence.is_scoring:
        return [Rows(sequence, min(SERIAL_SCORED, sequence.num_to_score - sequence.num_cached))]
    if sequence.num_cached >= sequence.num_prompt:
        return [Rows(sequence, 1)]
    if sequence.next_span:  # as a whole, wherever the borders are
        return [Rows(sequence, sequence.num_ahead)]
    border = (sequence.num_cached // SERIAL_CHUNK + 1) * SERIAL_CHUNK
    return [
        Rows(sequence, min(border - sequence.num_cached, sequence.num_prompt - sequence.num_cached, sequence.num_ahead))
    ]
