"""Tiny GGUF models with random weights of which no part of a sequence can be kept without the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from tests.support.tiny_model import BOS, END_OF_TURN, EOS

N_EMBD, N_FF, N_LAYER, N_VOCAB = 64, 128, 2, 261
WINDOW = 16
N_INNER, N_STATE, N_CONV, N_RANK = 2 * N_EMBD, 8, 4, 4


def write_sliding_window_model(path: Path) -> Path:
    """A Gemma 3: all but each sixth layer look back no further than `WINDOW` tokens."""
    writer = _writer(path, "gemma3")
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_feed_forward_length(N_FF)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_sliding_window(WINDOW)
    ones = {f"{name}.weight": (N_EMBD,) for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")}
    ones |= {f"attn_{part}_norm.weight": (16,) for part in "qk"}
    _add(writer, ones, {
        "attn_q.weight": (64, N_EMBD), "attn_k.weight": (32, N_EMBD), "attn_v.weight": (32, N_EMBD),
        "attn_output.weight": (N_EMBD, 64), "ffn_gate.weight": (N_FF, N_EMBD), "ffn_up.weight": (N_FF, N_EMBD),
        "ffn_down.weight": (N_EMBD, N_FF),
    })  # fmt: skip
    return _written(writer, path)


def write_recurrent_model(path: Path) -> Path:
    """A Mamba: what it knows of a sequence is a state of one size."""
    writer = _writer(path, "mamba")
    writer.add_head_count(0)
    writer.add_feed_forward_length(0)
    writer.add_ssm_conv_kernel(N_CONV)
    writer.add_ssm_inner_size(N_INNER)
    writer.add_ssm_state_size(N_STATE)
    writer.add_ssm_time_step_rank(N_RANK)
    writer.add_layer_norm_rms_eps(1e-5)
    ones = {"attn_norm.weight": (N_EMBD,), "ssm_d": (N_INNER,), "ssm_dt.bias": (N_INNER,)}
    _add(writer, ones, {
        "ssm_in.weight": (2 * N_INNER, N_EMBD), "ssm_conv1d.weight": (N_INNER, N_CONV), "ssm_conv1d.bias": (N_INNER,),
        "ssm_x.weight": (N_RANK + 2 * N_STATE, N_INNER), "ssm_dt.weight": (N_INNER, N_RANK),
        "ssm_a": (N_INNER, N_STATE), "ssm_out.weight": (N_EMBD, N_INNER),
    })  # fmt: skip
    return _written(writer, path)


def _writer(path: Path, architecture: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_vocab_size(N_VOCAB)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "<|im_end|>"])
    writer.add_token_scores([0.0] * N_VOCAB)
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 3])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_eot_token_id(END_OF_TURN)
    return writer


def _add(writer: gguf.GGUFWriter, ones: Mapping[str, tuple[int, ...]], matrices: Mapping[str, tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", rng.standard_normal((N_VOCAB, N_EMBD)).astype(np.float32))
    writer.add_tensor("output_norm.weight", np.ones(N_EMBD, np.float32))
    for layer in range(N_LAYER):
        for name, shape in ones.items():
            writer.add_tensor(f"blk.{layer}.{name}", np.ones(shape, np.float32))
        for name, shape in matrices.items():
            weights = rng.standard_normal(shape).astype(np.float32) * 0.12
            writer.add_tensor(f"blk.{layer}.{name}", -np.abs(weights) if name == "ssm_a" else weights)


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
