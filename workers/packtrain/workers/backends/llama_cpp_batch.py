"""`llama_batch` over numpy memory, so that filling it costs a few slice writes and no ctypes call per token.

The C struct borrows the arrays; they live as long as this object. Row i of the batch is token[i] at pos[i] of sequence
seq[i]; logits are computed for the rows with logits[i] != 0, and are asked for by the row's index i.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as C

from packtrain.workers.engine.media import MediaRows


class Batch:
    """One reusable batch.

    Args:
        capacity: Rows; the context's n_batch. More rows than n_batch would abort the process in C.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._token = np.zeros(capacity, np.int32)
        self._pos = np.zeros(capacity, np.int32)
        self._n_seq = np.ones(capacity, np.int32)
        self._seq = np.zeros(capacity, np.int32)
        self._logits = np.zeros(capacity, np.int8)
        # seq_id is int32**: row i points at the one entry seq[i].
        self._seq_of_row = np.arange(capacity, dtype=np.uint64) * 4 + self._seq.ctypes.data
        self.struct = C.llama_batch(
            n_tokens=0,
            token=_pointer(self._token, C.llama_token),
            embd=None,
            pos=_pointer(self._pos, C.llama_pos),
            n_seq_id=_pointer(self._n_seq, ctypes.c_int32),
            seq_id=ctypes.cast(self._seq_of_row.ctypes.data, ctypes.POINTER(ctypes.POINTER(C.llama_seq_id))),
            logits=_pointer(self._logits, ctypes.c_int8),
        )

    def clear(self) -> None:
        """Empty it."""
        self.struct.n_tokens = 0

    def add(
        self,
        tokens: Sequence[int],
        start: int,
        seq_id: int,
        *,
        wants_logits: bool = False,
        wants_all: bool = False,
        num_scored: int = 0,
        num_guessed: int = 0,
    ) -> int:
        """Append tokens of one sequence at positions [start, start + len(tokens)); the row of the last one.

        Args:
            wants_logits: The last one has an output.
            wants_all: Each of them has.
            num_scored: The first so many have.
            num_guessed: With `wants_logits`: so many before the last have, too.
        """
        begin = self.struct.n_tokens
        end = begin + len(tokens)
        assert end <= self.capacity, f"{end} rows in a batch of {self.capacity}"
        self._token[begin:end] = tokens
        self._pos[begin:end] = np.arange(start, start + len(tokens), dtype=np.int32)
        self._seq[begin:end] = seq_id
        self._logits[begin:end] = wants_all
        self._logits[begin : begin + num_scored] = 1
        if wants_logits:
            self._logits[end - 1 - num_guessed : end] = 1
        self.struct.n_tokens = end
        return int(end - 1)


class MediaBatch:
    """A batch of rows of media, in place of tokens. Made for one step: there are few, and each has other rows.

    Args:
        parts: Of each sequence: its id, the position of the image's first row or of these rows, the rows.
        wants_logits: Of which parts the last row has an output.
        has_places: Positions have several dimensions in this model.
    """

    def __init__(
        self, parts: Sequence[tuple[int, int, MediaRows]], wants_logits: Sequence[bool], *, has_places: bool
    ) -> None:
        count = sum(image.count for _, _, image in parts)
        self._rows = np.ascontiguousarray(np.concatenate([image.rows for _, _, image in parts]), np.float32)
        places = np.concatenate([_places(start, image, has_places=has_places) for _, start, image in parts], axis=1)
        self._pos = np.ascontiguousarray(places, np.int32)  # one row for each dimension, llama.cpp's order
        self._n_seq = np.ones(count, np.int32)
        self._seq = np.concatenate([np.full(image.count, seq_id, np.int32) for seq_id, _, image in parts])
        self._logits = np.zeros(count, np.int8)
        self._logits[np.cumsum([image.count for _, _, image in parts])[np.array(wants_logits, bool)] - 1] = 1
        self._seq_of_row = np.arange(count, dtype=np.uint64) * 4 + self._seq.ctypes.data
        self.struct = C.llama_batch(
            n_tokens=count,
            token=None,
            embd=_pointer(self._rows, ctypes.c_float),
            pos=_pointer(self._pos, C.llama_pos),
            n_seq_id=_pointer(self._n_seq, ctypes.c_int32),
            seq_id=ctypes.cast(self._seq_of_row.ctypes.data, ctypes.POINTER(ctypes.POINTER(C.llama_seq_id))),
            logits=_pointer(self._logits, ctypes.c_int8),
        )

    def last_row(self, number: int, parts: Sequence[tuple[int, int, MediaRows]]) -> int:
        """The row in the batch of the last of a part."""
        return sum(image.count for _, _, image in parts[: number + 1]) - 1


def _places(start: int, image: MediaRows, *, has_places: bool) -> np.ndarray[Any, Any]:
    if not has_places:
        return start + np.arange(image.count, dtype=np.int32)[None, :]
    if image.places is None:
        line = start + np.arange(image.count, dtype=np.int32)
        return np.stack([line, line, line, np.zeros_like(line)])
    return image.places + start * np.array(image.moves, np.int32)[:, None]


def _pointer(array: np.ndarray[Any, Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
