"""What llama.cpp itself says that a model will take, without loading it.

With `no_alloc` llama.cpp lays out weights, cache and the graph of the largest step as for a real load, but takes no
memory for them and reads no weights: 0.2 s. The sums come from `llama_get_memory_breakdown`, a C++ function that
returns a std::map from buffer type to three sizes. The binding does not have it, so its tree is walked here by hand, as
libstdc++ lays it out: that holds on Linux only. Elsewhere, and when any sum looks odd, there is no answer and the
header's formula stands.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# As in llama_cpp_backend: no debugger may be forked onto a dying process.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

from llama_cpp import llama_cpp as C

from packtrain.broker.errors import ModelLoadFailed
from packtrain.broker.messages import BufferMemory, ModelMemory
from packtrain.workers.backends.llama_cpp_embedding import embedding_shape, read_traits
from packtrain.workers.backends.llama_cpp_params import context_params, embedding_params, model_params
from packtrain.workers.gguf import read_header
from packtrain.workers.load_options import LoadOptions, max_outputs, rows_per_step
from packtrain.workers.memory import FLOAT_BYTES, estimate_work_bytes

_BREAKDOWN = "_Z26llama_get_memory_breakdownPK13llama_context"
#: sizeof(std::map) in libstdc++: comparison, then the header node (colour, parent, left, right), then the count.
_MAP_BYTES = 48
_ROOT, _COUNT = 2, 5  # in words of 8 bytes
#: A node: colour, parent, left, right, then the pair: buffer type, model, context, compute.
_NODE_WORDS, _LEFT, _RIGHT, _TYPE, _SIZES = 8, 2, 3, 4, slice(5, 8)
_CPU_DEVICE = 0  # enum ggml_backend_dev_type
MAX_BUFFERS = 64  # far above any machine; a tree that is larger was misread
MAX_BYTES = 2**50


def estimate_by_no_alloc(
    path: Path, options: LoadOptions, *, n_ctx: int, n_slots: int, resident_bytes: Callable[[], int]
) -> ModelMemory:
    """Ask llama.cpp. For a process that ends soon after: what goes wrong in C ends it.

    Args:
        path: GGUF file; of a split model, its first part.
        n_ctx: Context of one slot, tokens.
        n_slots: Sequences at once.
        resident_bytes: Of this process. It is asked when the vocabulary is there and everything else is not, and so
            tells what an instance has besides weights, cache and scratch space.

    Raises:
        ModelLoadFailed: llama.cpp refuses the model or the options, or its answer cannot be read here.
        ModelFileInvalid: The header of the file is wrong.
        InvalidRequest: It is a model for embedding that makes no vectors.
    """
    C.llama_log_set(_silence, ctypes.c_void_p(0))
    C.llama_backend_init()
    model = C.llama_model_load_from_file(str(path).encode(), model_params(options, no_alloc=True))
    if not model:
        raise ModelLoadFailed(f"llama.cpp cannot lay out {path.name}; load it to see why")
    header = read_header(path)
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
    buffers = breakdown(ctx)
    weights, expected = sum(buffer.weights for buffer in buffers), int(C.llama_model_size(model))
    # Tied embeddings may be there twice, never half.
    if not expected // 2 <= weights <= 2 * expected + C.llama_n_ctx(ctx):
        raise ModelLoadFailed(f"llama.cpp's breakdown reads as {weights} bytes of weights, the model has {expected}")
    n_vocab = int(C.llama_vocab_n_tokens(C.llama_model_get_vocab(model)))
    return ModelMemory(
        source="llama.cpp",
        process_bytes=resident_bytes(),
        logits_bytes=FLOAT_BYTES * n_outputs * n_vocab,
        work_bytes=estimate_work_bytes(header, n_rows),
        buffers=buffers,
    )


def breakdown(ctx: Any) -> tuple[BufferMemory, ...]:
    """What a context and its model have in each kind of buffer.

    Raises:
        ModelLoadFailed: This platform or this build lays it out in another way.
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
    # The nodes are never freed: some hundred bytes in a process that ends soon.
    buffers = tuple(_buffer(node) for node in _nodes(tree[_ROOT]))
    if len(buffers) != tree[_COUNT] or any(max(b.weights, b.cache, b.compute) > MAX_BYTES for b in buffers):
        raise ModelLoadFailed("llama.cpp's breakdown cannot be read here")
    return buffers


def _nodes(address: int) -> Iterator[Any]:
    if address:
        node = (ctypes.c_uint64 * _NODE_WORDS).from_address(address)
        yield from _nodes(node[_LEFT])
        yield node
        yield from _nodes(node[_RIGHT])


def _buffer(node: Any) -> BufferMemory:
    weights, cache, compute = node[_SIZES]
    name = _ggml("ggml_backend_buft_name", ctypes.c_char_p)(node[_TYPE])
    return BufferMemory(
        buffer=name.decode("utf-8", "replace"),
        on_host=_is_on_host(node[_TYPE]),
        weights=weights,
        cache=cache,
        compute=compute,
    )


def _is_on_host(buffer_type: int) -> bool:
    if _ggml("ggml_backend_buft_is_host", ctypes.c_bool)(buffer_type):
        return True
    # Repacked weights do not count as host memory there, since nobody else can read them; but it is where they lie.
    device = _ggml("ggml_backend_buft_get_device", ctypes.c_void_p)(buffer_type)
    return bool(device) and _ggml("ggml_backend_dev_type", ctypes.c_int)(device) == _CPU_DEVICE


def _ggml(name: str, result: Any) -> Any:
    """A function of ggml on one pointer."""
    function = C._lib[name]  # of libggml-base, which libllama brings with it
    function.restype = result
    function.argtypes = [ctypes.c_void_p]
    return function


@C.llama_log_callback  # type: ignore[untyped-decorator]
def _silence(_level: int, _text: bytes, _user: Any) -> None:
    """Nobody reads the probe's log; what matters is its answer."""
