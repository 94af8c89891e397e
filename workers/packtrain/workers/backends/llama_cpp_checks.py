"""Models and sizes that llama.cpp takes and then ends the process over, refused before they get that far.

| what                           | what llama.cpp would do                                              |
|--------------------------------|----------------------------------------------------------------------|
| a model without a tokenizer    | SIGABRT at the first token: `type != LLAMA_VOCAB_TYPE_NONE`          |
| an encoder before the decoder  | SIGABRT at the first step: `llama_encode must be called first`       |
| 2^32 cells and more            | take the number modulo 2^32: the cache overflows in mid-flight       |

All three were tried on llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from typing import Any

from llama_cpp import llama_cpp as C

from packtrain.broker.errors import ModelLoadFailed

#: Positions are int32, and the padding of a context must not carry it over.
MAX_CELLS = 2**31 - 2**16


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
