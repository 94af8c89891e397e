"""How fast this machine reads weights: matrices of each type times one vector, as a step of one job has them.

Larger than caches, so that memory is what is measured; made of constants, since no kernel looks at what it multiplies.
"""

from __future__ import annotations

import ctypes
import time

from packtrain.workers.backends.llama_cpp_layout import ggml

#: Types of files that people run, by enum ggml_type.
TYPES = {
    "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13,
    "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30,
}  # fmt: skip
_F32 = 0
#: Of all matrices of one type together.
SIZE = 128 * 1024 * 1024
#: Each type is measured for so long; its best counts, for others may use this machine.
SECONDS = 0.1
_COLUMNS, _ROWS = 4096, 2048
_BYTE = 0x11  # no NaN in any type


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def read_rates(n_threads: int) -> dict[str, float]:
    """Bytes a second of each type. Blocks for some seconds."""
    # One buffer for all: the kernel takes longer to make its pages than a type to be measured.
    buffer = ctypes.create_string_buffer(SIZE + SIZE // 2)
    return {name: _rate(number, n_threads, buffer) for name, number in TYPES.items()}


def _rate(kind: int, n_threads: int, buffer: ctypes.Array[ctypes.c_char]) -> float:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    new = ggml("ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, number, number)
    size_of, data_of = ggml("ggml_nbytes", ctypes.c_size_t, pointer), ggml("ggml_get_data", pointer, pointer)
    multiply = ggml("ggml_mul_mat", pointer, pointer, pointer, pointer)
    expand = ggml("ggml_build_forward_expand", None, pointer, pointer)
    compute = ggml("ggml_graph_compute_with_ctx", ctypes.c_int, pointer, pointer, ctypes.c_int)
    # Besides the matrices: results, and each matrix product's copy of the vector in the format of its weights.
    params = _InitParams(len(buffer), ctypes.addressof(buffer), False)
    context = ggml("ggml_init", pointer, _InitParams)(params)
    try:
        vector = new(context, _F32, _COLUMNS, 1)
        ctypes.memset(data_of(vector), _BYTE, size_of(vector))
        graph, total = ggml("ggml_new_graph", pointer, pointer)(context), 0
        while total < SIZE:
            matrix = new(context, kind, _COLUMNS, _ROWS)
            ctypes.memset(data_of(matrix), _BYTE, size_of(matrix))
            expand(graph, multiply(context, matrix, vector))
            total += size_of(matrix)
        compute(context, graph, n_threads)
        best, until = float("inf"), time.perf_counter() + SECONDS
        while (begin := time.perf_counter()) < until:
            compute(context, graph, n_threads)
            best = min(best, time.perf_counter() - begin)
        return total / best
    finally:
        ggml("ggml_free", None, pointer)(context)
