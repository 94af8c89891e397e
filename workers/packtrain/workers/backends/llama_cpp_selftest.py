"""The proof behind `deterministic`: one sequence, computed in several ways, must give the same logits to the last bit.

    alone       the prompt in one step, in slot 0
    chunked     in pieces, in the last slot                        batched only: `serial` always cuts alike
    company     joining others that decode and prefill, in pieces  serial: turn about with them
    shared      its first part copied from another slot            batched only

With an adapter the same again, all of it computed with that; in company of the serial recipe, and once
more in the batched one (`turns`), it takes turns with sequences that have none.

70 prompt tokens, because from 64 query rows on llama.cpp's attention changes its kernel. It takes some 300 rows, a
second for a small model. Why bits differ at all: docs/determinism.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from packtrain.broker.sampling import SamplingParams
from packtrain.workers.adapters import AdapterSet
from packtrain.workers.backends.base import Backend, StepRows

NUM_PROMPT, NUM_FORCED = 70, 6
NUM_SHARED = 31
_GREEDY = SamplingParams(temperature=0)
_Logits = list[np.ndarray[Any, Any]]


class Tested(Backend, Protocol):
    """A backend that shows its logits."""

    def logits(self, num_outputs: int) -> np.ndarray[Any, Any]:
        """Of the last step, (num_outputs, n_vocab), rows in batch order."""
        ...


@dataclass(slots=True)
class _Slot:
    """A sequence whose tokens are all known beforehand; logits are wanted from the last prompt token on."""

    seq_id: int
    tokens: list[int]
    chunk: int
    begins: int = 0  # step
    num_cached: int = 0
    adapters: AdapterSet = ()

    def rows(self) -> StepRows | None:
        if self.num_cached == len(self.tokens):
            return None
        num_prompt = len(self.tokens) - NUM_FORCED
        end = min(self.num_cached + self.chunk, num_prompt) if self.num_cached < num_prompt else self.num_cached + 1
        return StepRows(self.seq_id, self.num_cached, self.tokens[self.num_cached : end], end >= num_prompt)


def self_test(backend: Tested, recipe: Literal["batched", "serial"], adapters: AdapterSet = ()) -> str:
    """Why this recipe does not hold here; '' when it does. All slots must be free; their caches are noise then."""
    shape = backend.shape
    tokens = _noise(0, min(NUM_PROMPT + NUM_FORCED, shape.n_ctx), shape.n_vocab)
    last, company = shape.n_slots - 1, min(shape.n_slots - 1, 7)
    whole = len(tokens)
    mates = () if recipe == "serial" else adapters  # serial: turn about with sequences that have none
    others = [
        _Slot(seq_id, _noise(seq_id, min(8 + 5 * seq_id, shape.n_ctx), shape.n_vocab), 16, seq_id // 2, adapters=mates)
        for seq_id in range(company)
    ]
    if recipe == "serial":
        ways = {"company": [*others, _Slot(company, tokens, whole, begins=3, adapters=adapters)]}
    else:
        ways = {
            "chunked": [_Slot(last, tokens, 23, adapters=adapters)],
            "company": [*others, _Slot(company, tokens, 17, begins=3, adapters=adapters)],
        }
        if adapters and last > 0:
            ways["turns"] = [_Slot(0, tokens[::-1], 5), _Slot(last, tokens, 23, adapters=adapters)]
    alone = _compute(backend, recipe, [_Slot(0, tokens, whole, adapters=adapters)])
    # A context may be shorter than the test, down to one token.
    num_shared = min(NUM_SHARED, whole - NUM_FORCED - 1)
    if recipe == "batched" and last > 0 and num_shared > 0:
        backend.copy(0, [last], num_shared)
        ways["shared"] = [_Slot(last, tokens, 40, num_cached=num_shared, adapters=adapters)]
    for way in sorted(ways, key=lambda way: way != "shared"):  # first, for the others clear its slot
        if reason := _difference(alone, _compute(backend, recipe, ways[way]), way):
            return reason
    return ""


def _compute(backend: Tested, recipe: str, slots: Sequence[_Slot]) -> _Logits:
    """Logits of the last slot, from its last prompt token on."""
    for slot in slots:
        backend.truncate(slot.seq_id, slot.num_cached)
        backend.open(slot.seq_id, _GREEDY, 0, slot.tokens, 0, adapters=slot.adapters)
    found: _Logits = []
    try:
        for step in _steps(slots, recipe):
            rows = sorted(step, key=lambda r: r.seq_id)
            backend.step(rows, lambda: False)
            wanted = [r.seq_id for r in rows if r.wants_token]
            if slots[-1].seq_id in wanted:
                found.append(backend.logits(len(wanted))[wanted.index(slots[-1].seq_id)].copy())
    finally:
        for slot in slots:
            backend.close(slot.seq_id)
    return found


def _steps(slots: Sequence[_Slot], recipe: str) -> Iterator[list[StepRows]]:
    number = 0
    mine = slots[-1].adapters
    while any(slot.num_cached < len(slot.tokens) for slot in slots):
        step = []
        for slot in slots:
            rows = slot.rows() if slot.begins <= number else None
            if rows is None:
                continue
            slot.num_cached += len(rows.tokens)
            if recipe == "serial" or slot.adapters != mine:
                yield [rows]
            else:
                step.append(rows)
        if step:
            yield step
        number += 1


def _noise(seed: int, count: int, n_vocab: int) -> list[int]:
    return [(7919 * (i + 1) + 104_729 * seed) % n_vocab for i in range(count)]


def _difference(expected: _Logits, found: _Logits, way: str) -> str:
    pairs = list(zip(expected, found, strict=True))
    different = sum(not np.array_equal(a.view(np.uint32), b.view(np.uint32)) for a, b in pairs)
    if not different:
        return ""
    largest = max(float(np.abs(a - b).max()) for a, b in pairs)
    return f"{different} of {len(expected)} rows of logits differ ({way} against alone), by up to {largest:.1e}"
