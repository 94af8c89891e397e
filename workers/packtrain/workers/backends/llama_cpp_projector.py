"""A projector that llama.cpp has loaded beside a model (its library mtmd). Pictures and sounds go in, rows come out.

It has graphs and scratch space of its own and only reads the model's vocabulary, so a picture is looked at while the
model computes steps; nothing waits but its own job. One thread does all of it, one at a time, and it computes alone:
a second team of OpenMP threads in a process makes llama.cpp's own stop spinning at its barriers, for good.

Pixels and samples come decoded and in bounds (`pictures.py`, `sounds.py`): no file of a stranger reaches C.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as C
from llama_cpp import mtmd_cpp as M

from packtrain.broker.errors import MediaUnreadable, ModelLoadFailed
from packtrain.workers.backends.llama_cpp_library import first_error, forget_errors, on_log
from packtrain.workers.engine.media import MediaRows, Seen

M.mtmd_log_set(on_log, ctypes.c_void_p(0))
M.mtmd_helper_log_set(on_log, ctypes.c_void_p(0))

#: Of the first picture, pixels.
_SIDE = 64
Picture = np.ndarray[Any, np.dtype[np.uint8]]
Samples = np.ndarray[Any, np.dtype[np.float32]]


class Projector:
    """A loaded projector.

    Args:
        path: Of the projector, an mmproj GGUF file.
        model: The loaded model that it is for.
        name: Of the model, for messages.
        max_rows: That one step of the model takes.
        max_tokens: That one slot holds.

    Raises:
        ModelLoadFailed: llama.cpp refuses it, for this model or for any; or it makes no rows of anything.
    """

    def __init__(self, path: Path, model: Any, *, name: str, max_rows: int, max_tokens: int) -> None:
        self._name = name
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._width = int(C.llama_model_n_embd_inp(model))
        self._marker = M.mtmd_default_marker()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="projector")
        params = M.mtmd_context_params_default()
        params.use_gpu = bool(C.llama_supports_gpu_offload())
        params.n_threads = 1
        params.print_timings = False
        params.warmup = False  # a picture of ours does that, and more
        forget_errors()
        self._ctx = self._thread.submit(M.mtmd_init_from_file, str(path).encode(), model, params).result()
        if not self._ctx:
            raise ModelLoadFailed(
                f"llama.cpp cannot load {path.name} beside {name!r}: {first_error()}; use the projector that was made "
                "for this model, or say `mmproj = false` for it in packtrain.toml"
            )
        self.sees = bool(M.mtmd_support_vision(self._ctx))
        self.hears = bool(M.mtmd_support_audio(self._ctx))
        self.sample_rate = int(M.mtmd_get_audio_sample_rate(self._ctx)) if self.hears else 0
        self.has_places = bool(M.mtmd_decode_use_mrope(self._ctx))
        try:  # it takes its scratch space now, and one that can do nothing at all is found out
            if self.sees:
                self.see(np.full((_SIDE, _SIDE, 3), 127, np.uint8))
            if self.hears:
                self.hear(np.zeros(self.sample_rate, np.float32))
        except MediaUnreadable as error:
            raise ModelLoadFailed(
                f"{path.name} beside {name!r} is of no use: {error}, or say `mmproj = false` in packtrain.toml"
            ) from error

    def see(self, picture: Picture) -> Seen:
        """What a picture, (height, width, 3) RGB, is to the model. Blocks; thread-safe.

        Raises:
            MediaUnreadable: llama.cpp cannot take it, or it has more rows in one piece than a step.
        """
        return self._thread.submit(self._see, np.ascontiguousarray(picture)).result()

    def hear(self, samples: Samples) -> Seen:
        """What a sound, (count,) at `sample_rate`, is to the model. Blocks; thread-safe.

        Raises:
            MediaUnreadable: As of `see`.
        """
        return self._thread.submit(self._hear, np.ascontiguousarray(samples)).result()

    def close(self) -> None:
        """Free it."""
        self._thread.shutdown()
        M.mtmd_free(self._ctx)

    def _see(self, picture: Picture) -> Seen:
        height, width, _ = picture.shape
        bitmap = M.mtmd_bitmap_init(width, height, picture.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        return self._encoded(bitmap, f"a picture of {width} x {height}")

    def _hear(self, samples: Samples) -> Seen:
        bitmap = M.mtmd_bitmap_init_from_audio(len(samples), samples.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
        return self._encoded(bitmap, f"a sound of {len(samples) / self.sample_rate:.1f} s")

    def _encoded(self, bitmap: Any, what: str) -> Seen:
        """Rows of a bitmap, which is freed."""
        chunks = M.mtmd_input_chunks_init()
        try:
            text = M.mtmd_input_text()
            text.text, text.text_len, text.add_special, text.parse_special = (
                self._marker,
                len(self._marker),
                False,
                True,
            )
            bitmaps = (M.mtmd_bitmap_p_ctypes * 1)(bitmap)
            if code := M.mtmd_tokenize(self._ctx, chunks, ctypes.byref(text), bitmaps, 1):
                raise MediaUnreadable(f"{self._name!r} cannot take {what} (mtmd_tokenize: {code})")
            # Before it is encoded: a large picture may be thousands of tiles, each looked at by itself.
            if (total := int(M.mtmd_helper_get_n_tokens(chunks))) >= self._max_tokens:
                raise MediaUnreadable(
                    f"to {self._name!r} {what} is {total} tokens, and a slot holds {self._max_tokens}; send a smaller "
                    "one, or raise `context` for this model in packtrain.toml"
                )
            pieces = [
                self._piece(M.mtmd_input_chunks_get(chunks, i), what) for i in range(M.mtmd_input_chunks_size(chunks))
            ]
        finally:
            M.mtmd_input_chunks_free(chunks)
            M.mtmd_bitmap_free(bitmap)
        return tuple(piece for piece in pieces if isinstance(piece, MediaRows) or piece)

    def _piece(self, chunk: Any, what: str) -> tuple[int, ...] | MediaRows:
        kind = M.mtmd_input_chunk_get_type(chunk)
        if kind == M.MTMD_INPUT_CHUNK_TYPE_TEXT:
            count = ctypes.c_size_t()
            tokens = M.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
            found = tuple(tokens[: count.value])
            if any(token < 0 for token in found):  # mtmd does not look whether a vocabulary has what it looks for
                raise MediaUnreadable(
                    f"the projector of {self._name!r} puts marks around {what} that the model's vocabulary has not; "
                    "use the one that was made for this model"
                )
            return found
        num_rows = int(M.mtmd_input_chunk_get_n_tokens(chunk))
        is_causal = not M.mtmd_decode_use_non_causal(self._ctx, chunk)
        if not is_causal and num_rows > self._max_rows:
            raise MediaUnreadable(
                f"to {self._name!r} {what} is {num_rows} rows that have to be computed at once, and a step takes "
                f"{self._max_rows}; send a smaller one"
            )
        if code := M.mtmd_encode_chunk(self._ctx, chunk):
            raise MediaUnreadable(f"{self._name!r} cannot encode {what} (mtmd_encode_chunk: {code}); try another")
        rows = np.ctypeslib.as_array(M.mtmd_get_output_embd(self._ctx), shape=(num_rows, self._width)).copy()
        num_positions = int(M.mtmd_input_chunk_get_n_pos(chunk))
        if not self.has_places or kind == M.MTMD_INPUT_CHUNK_TYPE_AUDIO:  # sounds have one position after the other
            return MediaRows(rows, num_positions, is_causal)
        image = M.mtmd_input_chunk_get_tokens_image(chunk)
        at_0, at_1 = _places(image, 0, num_rows), _places(image, 1, num_rows)
        return MediaRows(rows, num_positions, is_causal, at_0, _moves(at_1 - at_0))


def _places(image: Any, start: int, count: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Positions of all rows, (4, count), in the order in which llama.cpp's batches have them."""
    found = (M.mtmd_decoder_pos * count)()
    M.mtmd_helper_image_get_decoder_pos(image, start, found)
    return np.array([[p.t for p in found], [p.y for p in found], [p.x for p in found], [p.z for p in found]], np.int32)


def _moves(difference: np.ndarray[Any, np.dtype[np.int32]]) -> tuple[int, int, int, int]:
    t, y, x, z = (int(row[0]) if len(row) else 0 for row in difference)
    return t, y, x, z
