"""GGUF files that llama.cpp loads but that are no text generators: tiny ones, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

N_EMBD, N_FF, N_VOCAB = 64, 128, 261
_SQUARE = (N_EMBD, N_EMBD)
_FEED_FORWARD = {"ffn_norm.weight": (N_EMBD,), "ffn_up.weight": (N_FF, N_EMBD), "ffn_down.weight": (N_EMBD, N_FF)}


def write_model_without_tokenizer(path: Path) -> Path:
    """A llama whose tokenizer is "no_vocab", as files for other programs have it."""
    writer = _writer(path, "llama")
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(N_EMBD // 4)
    writer.add_tokenizer_model("no_vocab")
    attention = {f"attn_{part}.weight": _SQUARE for part in ("q", "k", "v", "output")}
    shapes = {"attn_norm.weight": (N_EMBD,), **attention, **_FEED_FORWARD, "ffn_gate.weight": (N_FF, N_EMBD)}
    _add(writer, {"token_embd.weight": (N_VOCAB, N_EMBD), "output_norm.weight": (N_EMBD,)})
    _add(writer, shapes, "blk.0.")
    return _written(writer, path)


def write_encoder_decoder(path: Path) -> Path:
    """A T5: its decoder needs what its encoder said first."""
    writer = _writer(path, "t5")
    writer.add_key_length(N_EMBD // 4)
    writer.add_value_length(N_EMBD // 4)
    writer.add_layer_norm_eps(1e-5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_relative_attn_buckets_count(32)
    writer.add_decoder_start_token_id(0)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "<|im_end|>"]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * N_VOCAB)
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 3])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    _add(writer, {"token_embd.weight": (N_VOCAB, N_EMBD)})
    for side in ("enc", "dec"):
        _add(writer, {"output_norm.weight": (N_EMBD,), "blk.0.attn_rel_b.weight": (32, 4)}, f"{side}.")
        _add(writer, _FEED_FORWARD, f"{side}.blk.0.")
        for kind in ("attn", "cross_attn") if side == "dec" else ("attn",):
            attention = {f"{kind}_{part}.weight": _SQUARE for part in ("q", "k", "v", "o")}
            _add(writer, {f"{kind}_norm.weight": (N_EMBD,), **attention}, f"{side}.blk.0.")
    return _written(writer, path)


def _writer(path: Path, architecture: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(1)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(4)
    writer.add_vocab_size(N_VOCAB)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    return writer


def _add(writer: gguf.GGUFWriter, shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> None:
    for name, shape in shapes.items():
        writer.add_tensor(prefix + name, np.full(shape, 0.1, np.float32))


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
