"""Scheduling: which tokens go into the next step. A step is one `llama_decode` call.

Decoding sequences first, one row each: a running answer never waits for somebody's prompt. What room is left goes to
prefill, but while anything decodes only up to a budget, for a step takes as long as its rows: with 128 rows a stream of
a 135M model on two cores pauses about a third of a second, with 512 rows more than a whole one.

Half of the budget goes to the oldest prompt, so that none waits for ever, and what is left to the shortest: the sooner
a sequence decodes, the fuller are the steps. Few prompts in a step are also the faster way, for llama.cpp computes rows
of several sequences together only as far as they are equally many, and each rest by itself.

The serial recipe knows no company: one sequence in a step, turn about, its prompt in chunks whose borders are fixed,
its output token by token, also where it is computed again after a resume. So the same rows meet the same kernels.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from packtrain.workers.engine.sequence import Sequence

#: Borders between the chunks of a prompt in the serial recipe, tokens. Part of the numerics class.
SERIAL_CHUNK = 128
#: A smaller piece of a prompt is not worth its share of a step, unless it is the last one. Rows.
MIN_PIECE = 16


@dataclass(frozen=True, slots=True)
class Rows:
    """The part of a step that belongs to one sequence: its next `count` tokens."""

    sequence: Sequence
    count: int

    @property
    def wants_token(self) -> bool:
        """True when the next token can be sampled after this step."""
        return self.count == self.sequence.num_pending


def plan_step(live: Seq[Sequence], *, n_batch: int, prefill_budget: int, others_decode: bool = False) -> list[Rows]:
    """Rows of the next step, by rising sequence id (llama.cpp makes wider ubatches of neighbouring ids).

    Args:
        live: Sequences in slots; at most `n_batch`.
        n_batch: Rows that one step may have.
        prefill_budget: Prefill rows in a step that also decodes.
        others_decode: Sequences that cannot be in this step wait for it with their next token.
    """
    decoding = [s for s in live if s.num_pending == 1]
    prefilling = [s for s in live if s.num_pending > 1]
    room = n_batch - len(decoding)
    if decoding or others_decode:
        room = min(room, prefill_budget)
    pieces = _pieces(sorted(prefilling, key=lambda s: s.order), room)
    rows = [Rows(s, 1) for s in decoding] + [Rows(s, count) for s, count in pieces if count]
    return sorted(rows, key=lambda r: r.sequence.seq_id)


def _pieces(prefilling: Seq[Sequence], room: int) -> list[tuple[Sequence, int]]:
    """What each prompt gets of the room, rows. Half for the oldest, the rest for the shortest.

    Args:
        prefilling: The oldest first.
        room: Rows.
    """
    if not prefilling:
        return []
    oldest = prefilling[0]
    reserved = min(oldest.num_pending, (room + 1) // 2)
    room -= reserved
    pieces = []
    for sequence in sorted(prefilling, key=lambda s: (s.num_pending, s.order)):
        kept = reserved if sequence is oldest else 0
        more = min(sequence.num_pending - kept, room)
        if kept or more >= min(sequence.num_pending, MIN_PIECE):
            pieces.append((sequence, kept + more))
            room -= more
    return pieces


def plan_serial_step(live: Seq[Sequence]) -> list[Rows]:
    """Rows of the next step in the serial recipe: those of the sequence whose turn it is.

    Args:
        live: Sequences in slots, the one that waits longest first.
    """
    sequence = next((s for s in live if s.num_pending), None)
    if sequence is None:
        return []
    if sequence.num_cached >= sequence.num_prompt:
        return [Rows(sequence, 1)]
    border = (sequence.num_cached // SERIAL_CHUNK + 1) * SERIAL_CHUNK
    return [Rows(sequence, min(border, sequence.num_prompt) - sequence.num_cached)]
