"""A real LoRA file for the tiny model, made in a moment: random matrices that change its answers."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.support.tiny_model import N_EMBD, N_LAYER

RANK = 4


def write_tiny_lora(
    path: Path,
    *,
    seed: int = 0,
    architecture: str = "llama",
    n_embd: int = N_EMBD,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    invocation: tuple[int, ...] = (),
    rank: int = RANK,
    scale: float = 0.3,
) -> Path:
    """The adapter at `path`; its folder is made. The same seed gives the same matrices.

    Args:
        n_embd: Other than the tiny model's: it was made for another model.
        kind: Type of its matrices.
        invocation: Tokens that make it an activated LoRA.
        scale: Of the elements; NaN makes a damaged one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 2.0 * rank)
    if invocation:
        writer.add_array("adapter.alora.invocation_tokens", list(invocation))
    for layer in range(N_LAYER):
        for weight in ("attn_q", "attn_output"):
            for part, shape in (("a", (rank, n_embd)), ("b", (n_embd, rank))):
                matrix = (rng.standard_normal(shape) * scale).astype(np.float32)
                name = f"blk.{layer}.{weight}.weight.lora_{part}"
                writer.add_tensor(name, gguf.quants.quantize(matrix, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
