"""What llama.cpp itself says that a model will take, without loading it: `no_alloc`, see llama_cpp_layout.py.

Where that cannot be read, there is no answer and the header's formula stands.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# As in llama_cpp_library: no debugger may be forked onto a dying process.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

from llama_cpp import llama_cpp as C

from packtrain.broker.model_info import BufferMemory, ModelMemory
from packtrain.workers.backends.llama_cpp_fit import with_fitting_layers
from packtrain.workers.backends.llama_cpp_layout import laid_out
from packtrain.workers.gguf import read_header
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.memory import FLOAT_BYTES, estimate_work_bytes


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
    options = with_fitting_layers(path, options, n_ctx=n_ctx, n_slots=n_slots)
    with laid_out(path, options, n_ctx=n_ctx, n_slots=n_slots) as layout:
        return ModelMemory(
            source="llama.cpp",
            process_bytes=resident_bytes(),
            logits_bytes=FLOAT_BYTES * layout.n_outputs * layout.n_vocab,
            work_bytes=estimate_work_bytes(read_header(path), layout.n_rows),
            buffers=tuple(
                BufferMemory(
                    buffer=part.name,
                    on_host=part.device is None,
                    weights=part.weights,
                    cache=part.cache,
                    compute=part.compute,
                )
                for part in layout.parts
            ),
        )


@C.llama_log_callback  # type: ignore[untyped-decorator]
def _silence(_level: int, _text: bytes, _user: Any) -> None:
    """Nobody reads the probe's log; what matters is its answer."""
