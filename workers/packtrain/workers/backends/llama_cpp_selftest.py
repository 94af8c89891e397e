"""The proof behind `deterministic`: one sequence, computed in several ways, must give the same logits to the last bit.

    alone       the prompt in one step, in slot 0
    chunked     in pieces, in the last slot                        batched only: `serial` always cuts alike
    company     joining others that decode and prefill, in pieces  serial: turn about with them
    shared      its first part copied from another slot            batched only

With an adapter the same again, all of it computed with that; in company of the serial recipe, and once
more in the batched one (`turns`), it takes turns with sequences that have none.

Where the model sees or hears, the same of a prompt with an image or sound: its rows whole, cut and in company, and what
the projector makes of it given again after another one. If that fails, texts are deterministic all the same.

70 prompt tokens, because from 64 query rows on llama.cpp's attention changes its kernel. It takes some 300 rows, a
second for a small model. Why bits differ at all: docs/determinism.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from packtrain.broker.sampling import SamplingParams
from packtrain.workers.adapters import AdapterSet
from packtrain.workers.backends.base import Backend, StepRows
from packtrain.workers.engine.media import MediaRows, Seen, Span, num_alike, place, span_at

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
    media: tuple[Span, ...] = ()

    def rows(self) -> StepRows | None:
        if self.num_cached == len(self.tokens):
            return None
        num_prompt = len(self.tokens) - NUM_FORCED
        end = min(self.num_cached + self.chunk, num_prompt) if self.num_cached < num_prompt else self.num_cached + 1
        image: MediaRows | None = None
        if span := span_at(self.media, self.num_cached):
            end = min(end, span.end) if span.media.is_causal else span.end
            image = span.media.cut(self.num_cached - span.start, end - span.start)
        else:
            end = self.num_cached + num_alike(self.media, self.num_cached, end)
        tokens = self.tokens[self.num_cached : end]
        return StepRows(self.seq_id, self.num_cached, tokens, end >= num_prompt, media=image)


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


class Encoder(Protocol):
    """What a projector can do."""

    @property
    def sees(self) -> bool: ...

    @property
    def hears(self) -> bool: ...

    @property
    def sample_rate(self) -> int: ...

    def see(self, picture: np.ndarray[Any, np.dtype[np.uint8]]) -> Seen: ...

    def hear(self, samples: np.ndarray[Any, np.dtype[np.float32]]) -> Seen: ...


def media_self_test(backend: Tested, recipe: Literal["batched", "serial"], encoder: Encoder) -> str:
    """Why this recipe, which holds for texts, does not hold for media; '' when it does. Else as `self_test`."""
    reason = ""
    if encoder.sees:
        reason = _test_of("a picture", backend, recipe, lambda seed: encoder.see(_picture(seed)))
    if encoder.hears and not reason:
        reason = _test_of("a sound", backend, recipe, lambda seed: encoder.hear(_sound(seed, encoder.sample_rate)))
    return reason


def _test_of(what: str, backend: Tested, recipe: Literal["batched", "serial"], encode: Callable[[int], Seen]) -> str:
    seen = encode(1)
    encode(2)
    if any(not np.array_equal(a, b) for a, b in zip(_all_rows(seen), _all_rows(encode(1)), strict=True)):
        return f"the projector makes other rows of {what} that it is given again"
    shape = backend.shape
    before, after = _noise(1, 9, shape.n_vocab), _noise(2, 12 + NUM_FORCED, shape.n_vocab)
    rows, spans = place("5e1f" * 16, seen, len(before))
    tokens, media = [*before, *rows, *after], tuple(spans)
    if len(tokens) > shape.n_ctx:
        return f"{what} is {len(rows)} rows, more than can be tested in a context of {shape.n_ctx} tokens"
    last, company, whole = shape.n_slots - 1, min(shape.n_slots - 1, 3), min(len(tokens), shape.n_batch)
    mine = _Slot(company, tokens, whole if recipe == "serial" else 7, begins=2, media=media)
    mates = [_Slot(seq_id, _noise(seq_id, 20, shape.n_vocab), 16) for seq_id in range(company)]
    if company:
        mates[0] = _Slot(0, tokens, 11, media=media)
    ways = {f"{what} in company": [*mates, mine]}
    if recipe == "batched":
        ways[f"{what} that is cut"] = [_Slot(last, tokens, 5, media=media)]
    alone = _compute(backend, recipe, [_Slot(0, tokens, whole, media=media)])
    for way, slots in ways.items():
        if reason := _difference(alone, _compute(backend, recipe, slots), way):
            return reason
    return ""


def _picture(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    line = (np.arange(96 * 96 * 3, dtype=np.int64) * (7919 + seed) // 31) % 256
    return line.astype(np.uint8).reshape(96, 96, 3)


def _sound(seed: int, rate: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.sin(np.arange(rate, dtype=np.float64) ** 1.2 * (0.01 * seed)).astype(np.float32)


def _all_rows(seen: Seen) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    return [piece.rows for piece in seen if isinstance(piece, MediaRows)]


def _compute(backend: Tested, recipe: str, slots: Sequence[_Slot]) -> _Logits:
    """Logits of the last slot, from its last prompt token on."""
    for slot in slots:
        backend.truncate(slot.seq_id, slot.num_cached)
        backend.open(slot.seq_id, _GREEDY, 0, slot.tokens, 0, adapters=slot.adapters, media=slot.media)
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
        for kind in (True, False):  # a step has text or media
            if alike := [rows for rows in step if (rows.media is None) is kind]:
                yield alike
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
