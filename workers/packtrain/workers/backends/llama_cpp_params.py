"""Parameters for llama.cpp from our own options: the one place that says how a model and its context are made.

The instance and the memory estimate both use these functions, so what is estimated is what is loaded.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from llama_cpp import llama_cpp as C

from packtrain.workers.backends.base import EmbeddingShape
from packtrain.workers.load_options import LoadOptions, max_outputs, rows_per_step

_KV_TYPES = {
    "f32": C.GGML_TYPE_F32,
    "f16": C.GGML_TYPE_F16,
    "bf16": 30,  # not named by the binding
    "q8_0": C.GGML_TYPE_Q8_0,
    "q5_1": C.GGML_TYPE_Q5_1,
    "q5_0": C.GGML_TYPE_Q5_0,
    "q4_1": C.GGML_TYPE_Q4_1,
    "q4_0": C.GGML_TYPE_Q4_0,
    "iq4_nl": C.GGML_TYPE_IQ4_NL,
}
#: The tensors that hold experts, as llama.cpp's own `--cpu-moe` names them.
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
#: What a head keeps of a split model besides layers. Models with tied embeddings have `token_embd` for the output, too.
_OUTPUT = (r"^output", r"^token_embd")


@dataclass(frozen=True, slots=True)
class RemoteLayers:
    """The last layers of a model on other devices, in order."""

    devices: tuple[int, ...]  # addresses of `ggml_backend_dev_t`
    layers: tuple[int, ...]  # of each


class _Override(ctypes.Structure):
    """`llama_model_tensor_buft_override`: tensors whose names match go into buffers of this type."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def model_params(options: LoadOptions, *, no_alloc: bool = False, remote: RemoteLayers | None = None) -> Any:
    """`llama_model_params`. It keeps alive what it points to.

    Args:
        remote: Shards, instead of the GPUs here.
        no_alloc: Lay everything out but take no memory and read no weights: for estimates.
    """
    params = C.llama_model_default_params()
    if options.gpu_layers is not None:
        params.n_gpu_layers = options.gpu_layers
    if options.tensor_split:
        shares = (ctypes.c_float * C.llama_max_devices())(*options.tensor_split)
        params.tensor_split = shares
    patterns = _experts_on_cpu(options.moe_on_cpu)
    if remote:
        _give_away(params, remote)
        patterns += [pattern.encode() for pattern in _OUTPUT]
    if patterns:
        overrides = (_Override * (len(patterns) + 1))(*(_Override(pattern, _cpu_buffer_type()) for pattern in patterns))
        params.tensor_buft_overrides = ctypes.addressof(overrides)  # the zeros behind the last are the end mark
        params.overrides = overrides  # ctypes knows no owner of a bare address
    if options.numerics == "deterministic":
        params.use_extra_bufts = False  # repacked weights have other kernels for 4 rows and more
    if no_alloc:
        params.no_alloc = True
        params.load_mode = C.LLAMA_LOAD_MODE_NONE
    return params


def _give_away(params: Any, remote: RemoteLayers) -> None:
    # llama.cpp counts the output as one layer more, behind the last. With whole numbers for shares each device gets
    # exactly as many layers as it says: both sides of its comparison are the same division.
    counts = [*remote.layers[:-1], remote.layers[-1] + 1]
    devices = (ctypes.c_void_p * (len(counts) + 1))(*remote.devices, None)
    shares = (ctypes.c_float * C.llama_max_devices())(*counts)
    params.n_gpu_layers = sum(counts)
    params.tensor_split = shares
    params.devices = ctypes.cast(devices, ctypes.c_void_p)
    params.remote = devices  # as of `overrides`


def context_params(options: LoadOptions, *, n_slots: int, n_ctx: int, n_threads: int) -> Any:
    """`llama_context_params` for `n_slots` sequences of `n_ctx` tokens each."""
    params = C.llama_context_default_params()
    # A stream of cells for each slot: a tenth faster than one pool for all, and in deterministic mode a must, for in a
    # pool the order of a sequence's cells depends on its company.
    params.n_ctx = n_slots * n_ctx
    params.kv_unified = False
    params.n_seq_max = n_slots
    params.n_batch = params.n_ubatch = rows_per_step(n_slots)
    params.n_outputs_max = max_outputs(n_slots)
    params.n_threads = params.n_threads_batch = n_threads
    _set_numerics(params, options)
    return params


def embedding_params(options: LoadOptions, shape: EmbeddingShape, *, n_threads: int) -> Any:
    """`llama_context_params` for hidden states of all rows, which are pooled outside of it."""
    params = C.llama_context_default_params()
    params.embeddings = True
    params.pooling_type = C.LLAMA_POOLING_TYPE_NONE
    params.n_ctx = max(shape.n_rows, shape.max_tokens)
    params.n_batch = params.n_ubatch = shape.n_rows
    params.n_seq_max = shape.max_texts
    # One pool for all: it is emptied before each batch, so a text's cells lie in order whoever else is there, and
    # only so sequences of unequal length are computed in one piece.
    params.kv_unified = True
    params.n_threads = params.n_threads_batch = n_threads
    _set_numerics(params, options)
    return params


def _set_numerics(params: Any, options: LoadOptions) -> None:
    params.type_k = params.type_v = _KV_TYPES[options.kv_type_used]
    if options.numerics == "deterministic":
        params.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_ENABLED
    elif options.flash_attention is not None:
        params.flash_attn_type = (
            C.LLAMA_FLASH_ATTN_TYPE_ENABLED if options.flash_attention else C.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )


def numeric_flags(options: LoadOptions) -> str:
    """What of all this tells on the bits of an answer, for receipts."""
    flags = [f"kv={options.kv_type_used}", "streams"]
    if options.numerics == "deterministic":
        flags += ["flash-attention", "no-repack", "no-tiles"]
    # Guesses are rows more in a step, and company tells on no bit of a deterministic answer.
    silent = {"numerics", "kv_type"} | ({"speculation"} if options.numerics == "deterministic" else set())
    changed = {name: value for name, value in options.changed().items() if name not in silent}
    return " ".join(flags + [f"{name}={value}" for name, value in sorted(changed.items())])


def _experts_on_cpu(layers: int | bool) -> list[bytes]:
    if layers is True:
        return [_EXPERTS.encode()]
    return [rf"blk\.{layer}{_EXPERTS}".encode() for layer in range(int(layers))]


def _cpu_buffer_type() -> int:
    function = C._lib.ggml_backend_cpu_buffer_type  # of libggml-base, which libllama brings with it
    function.restype = ctypes.c_void_p
    function.argtypes = []
    return int(function())
