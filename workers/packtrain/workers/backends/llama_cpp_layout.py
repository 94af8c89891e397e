"""A model and its context laid out as for a real load, but without memory for them and without their weights: 0.2 s.

What it would take comes from `llama_get_memory_breakdown`, a C++ function that returns a std::map from buffer type to
three sizes. The binding does not have it, so its tree is walked here by hand, as libstdc++ lays it out: that holds on
Linux only, and elsewhere there is no answer.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as C

from packtrain.broker.errors import ModelLoadFailed
from packtrain.workers.backends.llama_cpp_embedding import embedding_shape, read_traits
from packtrain.workers.backends.llama_cpp_params import context_params, embedding_params, model_params
from packtrain.workers.gguf import read_header
from packtrain.workers.load_options import LoadOptions, max_outputs, rows_per_step

_BREAKDOWN = "_Z26llama_get_memory_breakdownPK13llama_context"
#: sizeof(std::map) in libstdc++: comparison, then the header node (colour, parent, left, right), then the count.
_MAP_BYTES = 48
_ROOT, _COUNT = 2, 5  # in words of 8 bytes
#: A node: colour, parent, left, right, then the pair: buffer type, model, context, compute.
_NODE_WORDS, _LEFT, _RIGHT, _TYPE, _SIZES = 8, 2, 3, 4, slice(5, 8)
_CPU_DEVICE = 0  # enum ggml_backend_dev_type
MAX_BUFFERS = 64  # far above any machine; a tree that is larger was misread
MAX_BYTES = 2**50


@dataclass(frozen=True, slots=True)
class Part:
    """What lies in one kind of buffer, bytes."""

    name: str
    device: int | None  # address of the `ggml_backend_dev_t`; None: memory of the host
    weights: int
    cache: int
    compute: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.compute


@dataclass(frozen=True, slots=True)
class Layout:
    """A model and its context, laid out."""

    parts: tuple[Part, ...]
    n_rows: int  # of one step
    n_outputs: int  # rows of one step that may have logits
    n_vocab: int


@contextmanager
def laid_out(path: Path, options: LoadOptions, *, n_ctx: int, n_slots: int) -> Iterator[Layout]:
    """Lay out; what C holds for it is freed at the end.

    Args:
        path: GGUF file; of a split model, its first part.
        n_ctx: Context of one slot, tokens.
        n_slots: Sequences at once.

    Raises:
        ModelLoadFailed: llama.cpp refuses the model or the options, or its answer cannot be read here.
        ModelFileInvalid: The header of the file is wrong.
        InvalidRequest: It is a model for embedding that makes no vectors.
    """
    header = read_header(path)
    model = C.llama_model_load_from_file(str(path).encode(), model_params(options, no_alloc=True))
    if not model:
        raise ModelLoadFailed(f"llama.cpp cannot lay out {path.name}; load it to see why")
    ctx = None
    try:
        if header.embeds_only:
            shape = embedding_shape(
                model, path.name, read_traits(model), n_ctx=n_ctx, n_slots=n_slots, has_cache=header.has_cache
            )
            params, n_rows, n_outputs = embedding_params(options, shape, n_threads=1), shape.n_rows, shape.n_rows
        else:
            params = context_params(options, n_slots=n_slots, n_ctx=n_ctx, n_threads=1)
            n_rows, n_outputs = rows_per_step(n_slots), max_outputs(n_slots)
        ctx = C.llama_init_from_model(model, params)
        if not ctx:
            raise ModelLoadFailed(f"llama.cpp cannot lay out {n_slots} slots of {n_ctx} tokens; load it to see why")
        parts = breakdown(ctx)
        weights, expected = sum(part.weights for part in parts), int(C.llama_model_size(model))
        # Tied embeddings may be there twice, never half.
        if not expected // 2 <= weights <= 2 * expected + C.llama_n_ctx(ctx):
            raise ModelLoadFailed(f"llama.cpp's breakdown has {weights} bytes of weights, the model has {expected}")
        yield Layout(parts, n_rows, n_outputs, int(C.llama_vocab_n_tokens(C.llama_model_get_vocab(model))))
    finally:
        if ctx:
            C.llama_free(ctx)
        C.llama_model_free(model)


def breakdown(ctx: Any) -> tuple[Part, ...]:
    """What a context and its model have in each kind of buffer.

    Raises:
        ModelLoadFailed: It cannot be read here.
    """
    function = getattr(C._lib, _BREAKDOWN, None) if sys.platform == "linux" else None
    if function is None:
        raise ModelLoadFailed("this build of llama.cpp has no memory breakdown that can be read here")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    tree = (ctypes.c_uint64 * (_MAP_BYTES // 8))()
    function(ctypes.addressof(tree), ctypes.cast(ctx, ctypes.c_void_p))  # the map is returned into memory of ours
    if not tree[_COUNT] <= MAX_BUFFERS:
        raise ModelLoadFailed(f"llama.cpp's breakdown reads as {tree[_COUNT]} kinds of buffers")
    # The nodes are never freed: some hundred bytes for each layout.
    parts = tuple(_part(node) for node in _nodes(tree[_ROOT]))
    if len(parts) != tree[_COUNT] or any(max(p.weights, p.cache, p.compute) > MAX_BYTES for p in parts):
        raise ModelLoadFailed("llama.cpp's breakdown cannot be read here")
    return parts


def _nodes(address: int) -> Iterator[Any]:
    if address:
        node = (ctypes.c_uint64 * _NODE_WORDS).from_address(address)
        yield from _nodes(node[_LEFT])
        yield node
        yield from _nodes(node[_RIGHT])


def _part(node: Any) -> Part:
    weights, cache, compute = node[_SIZES]
    name = ggml("ggml_backend_buft_name", ctypes.c_char_p)(node[_TYPE])
    return Part(name.decode("utf-8", "replace"), _device(node[_TYPE]), weights, cache, compute)


def _device(buffer_type: int) -> int | None:
    if ggml("ggml_backend_buft_is_host", ctypes.c_bool)(buffer_type):
        return None
    # Repacked weights do not count as host memory there, since nobody else can read them; but it is where they lie.
    device = ggml("ggml_backend_buft_get_device", ctypes.c_void_p)(buffer_type)
    is_on_host = bool(device) and ggml("ggml_backend_dev_type", ctypes.c_int)(device) == _CPU_DEVICE
    return None if is_on_host else int(device or 0)


def ggml(name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml, on one pointer unless told otherwise."""
    function = C._lib[name]  # of libggml, which libllama brings with it
    function.restype = result
    function.argtypes = list(arguments) or [ctypes.c_void_p]
    return function
