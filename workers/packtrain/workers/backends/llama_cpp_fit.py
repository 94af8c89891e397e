"""Layers on the GPU: where nobody says how many, as many as fit into the memory that is free there.

The layers that do not fit are computed by the CPU. llama.cpp's own default is all of them, and then a model that is a
little too large for the card is not loaded at all.
"""

from __future__ import annotations

import ctypes
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from llama_cpp import llama_cpp as C

from packtrain.broker.errors import InvalidRequest, ModelLoadFailed
from packtrain.workers.backends.llama_cpp_layout import ggml, laid_out
from packtrain.workers.gguf import read_header
from packtrain.workers.load_options import LoadOptions

logger = logging.getLogger(__name__)

_GPU_TYPES = (1, 2)  # of enum ggml_backend_dev_type: a card of its own, one that shares the host's memory
#: Memory of each GPU that is left to the driver, the screen and what grows later; as much as llama.cpp's `--fit` does.
SPARE_BYTES = 1024 * 1024 * 1024


def free_on_gpus() -> dict[int, int]:
    """Free bytes of each GPU, by the address of its device; empty: there is none."""
    found: dict[int, int] = {}
    for index in range(ggml("ggml_backend_dev_count", ctypes.c_size_t, ctypes.c_void_p)(None)):
        device = ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)(index)
        if ggml("ggml_backend_dev_type", ctypes.c_int)(device) in _GPU_TYPES:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            pointer = ctypes.POINTER(ctypes.c_size_t)
            ask = ggml("ggml_backend_dev_memory", None, ctypes.c_void_p, pointer, pointer)
            ask(device, ctypes.byref(free), ctypes.byref(total))
            found[device] = free.value
    return found


def with_fitting_layers(
    path: Path,
    options: LoadOptions,
    *,
    n_ctx: int,
    n_slots: int,
    free: Callable[[], Mapping[int, int]] = free_on_gpus,
) -> LoadOptions:
    """The options with a number of layers on the GPU, where there is one and they name none. Takes about a second.

    Args:
        path: GGUF file; of a split model, its first part.
        n_ctx: Context of one slot, tokens.
        n_slots: Sequences at once.
        free: Bytes that each GPU has left.
    """
    if options.gpu_layers is not None or not C.llama_supports_gpu_offload():
        return options
    room = {device: max(0, count - SPARE_BYTES) for device, count in free().items()}
    if not room:
        return options

    def fits(layers: int) -> bool:
        with laid_out(path, options.model_copy(update={"gpu_layers": layers}), n_ctx=n_ctx, n_slots=n_slots) as layout:
            wanted: Counter[int] = Counter()
            for part in layout.parts:
                if part.device is not None:
                    wanted[part.device] += part.total
        return all(count <= room.get(device, 0) for device, count in wanted.items())

    # The output counts as one layer more.
    n_layer = read_header(path).n_layer + 1
    try:
        layers = most_that_fit(fits, n_layer)
    except (InvalidRequest, ModelLoadFailed) as error:  # the load will say what is wrong
        logger.warning("Layers on the GPU are left to llama.cpp: %s", error, extra={"event": "gpu.unknown"})
        return options
    logger.info("%d of %d layers fit on the GPU", layers, n_layer, extra={"event": "gpu.layers"})
    return options.model_copy(update={"gpu_layers": layers})


def most_that_fit(fits: Callable[[int], bool], most: int) -> int:
    """The largest count up to `most` that fits, where more never take less; 0 is taken to fit.

    >>> most_that_fit(lambda count: count <= 7, 31)
    7
    """
    if fits(most):
        return most
    low, high = 0, most  # `low` fits, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
