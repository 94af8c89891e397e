"""A real GGUF file of an embedding-only model, some hundred KB: a random BERT of two layers that spells words out.

Its vectors are noise, but noise that depends on every token of a text: what a contract on batches and pooling needs.

    0 [PAD]   1 [UNK]   2 [CLS]   3 [SEP]   4 [MASK]   then each character as the start of a word, and within one
"""

from __future__ import annotations

import string
from pathlib import Path

import gguf
import numpy as np

N_EMBD, N_LAYER, N_HEAD, N_FF, N_CTX = 64, 2, 4, 128, 96
CLS, SEP = 2, 3

_NORMAL, _CONTROL = 1, 3  # llama.cpp's token types


def write_tiny_bert(path: Path, *, pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN, seed: int = 0) -> Path:
    """The model at `path`; the same seed gives the same weights. It was trained for `N_CTX` tokens."""
    characters = string.ascii_lowercase + string.digits + ".,!?"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *(f"▁{c}" for c in characters), *characters]
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("Tiny BERT")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL] * len(special) + [_NORMAL] * 2 * len(characters))
    writer.add_token_type_count(2)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(CLS)
    writer.add_eos_token_id(SEP)
    writer.add_sep_token_id(SEP)
    writer.add_pad_token_id(0)
    writer.add_mask_token_id(4)
    _add_weights(writer, len(tokens), np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_weights(writer: gguf.GGUFWriter, n_vocab: int, rng: np.random.Generator) -> None:
    def add(name: str, *shape: int, scale: float = 0.2) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) * scale).astype(np.float32))

    def add_norm(name: str) -> None:
        writer.add_tensor(name + ".weight", np.ones(N_EMBD, np.float32))
        writer.add_tensor(name + ".bias", np.zeros(N_EMBD, np.float32))

    add("token_embd.weight", n_vocab, N_EMBD, scale=1)
    add("position_embd.weight", N_CTX, N_EMBD, scale=0.5)
    add("token_types.weight", 2, N_EMBD)
    add_norm("token_embd_norm")
    for layer in range(N_LAYER):
        block = f"blk.{layer}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{block}{part}.weight", N_EMBD, N_EMBD)
            add(f"{block}{part}.bias", N_EMBD)
        add(f"{block}ffn_up.weight", N_FF, N_EMBD)
        add(f"{block}ffn_up.bias", N_FF)
        add(f"{block}ffn_down.weight", N_EMBD, N_FF)
        add(f"{block}ffn_down.bias", N_EMBD)
        add_norm(f"{block}attn_output_norm")
        add_norm(f"{block}layer_output_norm")
