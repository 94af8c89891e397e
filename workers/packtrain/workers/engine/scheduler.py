"""Scheduling: which tokens go into the next step. A step is one `llama_decode` call.

Decoding sequences first, one row each: a running answer never waits for somebody's prompt. What room is left goes to
prefill, but while anything decodes only up to a budget, for a step takes as long as its rows: with 128 rows a stream of
a 135M model on two cores pauses about a quarter of a second, with 512 rows a whole one. The budget is shared out
max-min fairly: a short prompt gets all it needs before a long one gets more than its share.

The serial recipe knows no company: one sequence in a step, turn about, its prompt in chunks whose borders are fixed,
its output token by token, also where it is computed again after a resume. So the same rows meet the same kernels.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from packtrain.workers.engine.sequence import Sequence

#: Borders between the chunks of a prompt in the serial recipe, tokens. Part of the numerics class.
SERIAL_CHUNK = 128


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
    rows = [Rows(s, 1) for s in decoding]
    for index, sequence in enumerate(sorted(prefilling, key=lambda s: (s.num_pending, s.order))):
        count = min(sequence.num_pending, room // (len(prefilling) - index))
        if count:
            rows.append(Rows(sequence, count))
            room -= count
    return sorted(rows, key=lambda r: r.sequence.seq_id)


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
