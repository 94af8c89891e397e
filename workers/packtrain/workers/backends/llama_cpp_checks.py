"""Models and sizes that llama.cpp takes and then ends the process over, refused before they get that far.

| what                           | what llama.cpp would do                                              |
|--------------------------------|----------------------------------------------------------------------|
| a model without a tokenizer    | SIGABRT at the first token: `type != LLAMA_VOCAB_TYPE_NONE`          |
| an encoder before the decoder  | SIGABRT at the first step: `llama_encode must be called first`       |
| 2^32 cells and more            | take the number modulo 2^32: the cache overflows in mid-flight       |

All three were tried on llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from llama_cpp import llama_cpp as C

from packtrain.broker.errors import ModelLoadFailed
from packtrain.workers.backends.llama_cpp_library import features

#: Positions are int32, and the padding of a context must not carry it over.
MAX_CELLS = 2**31 - 2**16


#: Types of which llamafile computes one row by another kernel than several.
ROW_DEPENDENT = frozenset({"F32", "F16", "BF16", "IQ4_NL"})


def why_not_batched(types: Collection[str]) -> str:
    """Why rows that are multiplied together by matrices of these types differ from rows that are alone; empty: nothing
    is known against it.

    This must not be left to a test: most of the difference is lost when activations are rounded to the 8 bits that
    quantised matrices want, so that a test of 76 tokens finds it with one model or adapter and not with the next.
    """
    kinds = sorted(ROW_DEPENDENT.intersection(types))
    if not kinds or "LLAMAFILE" not in features().split():
        return ""
    return f"llamafile's {kinds[0]} kernels treat one row and several differently"


def check_model(model: Any, name: str) -> None:
    """Raise `ModelLoadFailed` for a loaded model that cannot be asked for text."""
    if C.llama_vocab_type(C.llama_model_get_vocab(model)) == C.LLAMA_VOCAB_TYPE_NONE:
        raise ModelLoadFailed(f"{name!r} has no tokenizer in its file; use a GGUF file that holds one")
    if C.llama_model_has_encoder(model):
        raise ModelLoadFailed(
            f"{name!r} is an encoder or an encoder with a decoder, not a plain text generator; use a decoder-only model"
        )


def check_cells(n_slots: int, n_ctx: int) -> None:
    """Raise `ModelLoadFailed` for a cache with more cells than llama.cpp can number."""
    if n_slots * n_ctx > MAX_CELLS:
        raise ModelLoadFailed(
            f"{n_slots} slots of {n_ctx} tokens are {n_slots * n_ctx} cells, llama.cpp can number {MAX_CELLS}; "
            "set fewer slots or a smaller context in packtrain.toml"
        )
