"""A real GGUF file of a few hundred KB: a random llama of two layers whose tokens are bytes, made in a moment.

Its answers are noise, but noise that depends on every token before it, which is all that a contract on caches, batches
and samplers needs.

    0 <unk>   1 <s>   2 </s>   [3, 259) bytes   259 a space   260 <|im_end|>
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

N_EMBD, N_LAYER, N_HEAD, N_FF, N_CTX = 64, 2, 4, 128, 1024
BOS, EOS, FIRST_BYTE, END_OF_TURN = 1, 2, 3, 260
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}assistant:"

_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # llama.cpp's token types


def write_tiny_model(
    path: Path,
    *,
    seed: int = 0,
    template: str = TEMPLATE,
    special: tuple[str, ...] = (),
    pooling: gguf.PoolingType | None = None,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    architecture: str = "llama",
    n_layer: int = N_LAYER,
    n_ff: int = N_FF,
) -> Path:
    """The model at `path`; the same seed gives the same weights. An empty template is left out.

    Args:
        special: Further control tokens, from id 261 on.
        pooling: Makes it a model for embedding.
        kind: Type of its matrices.
        architecture: `llama`, or `qwen2vl`, whose positions have several dimensions.
        n_ff: 45,056 make its three largest matrices of F32 11 MiB each.
    """
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "<|im_end|>", *special]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, _NORMAL, _CONTROL, *[_CONTROL] * len(special)]
    writer = gguf.GGUFWriter(path, architecture)
    if architecture == "qwen2vl":
        writer.add_rope_dimension_sections([2, 3, 3, 0])
    writer.add_name("Tiny")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(N_EMBD // N_HEAD)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_eot_token_id(END_OF_TURN)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    if template:
        writer.add_chat_template(template)
    _add_weights(writer, len(tokens), np.random.default_rng(seed), kind, n_layer, n_ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_weights(
    writer: gguf.GGUFWriter,
    n_vocab: int,
    rng: np.random.Generator,
    kind: gguf.GGMLQuantizationType,
    n_layer: int,
    n_ff: int,
) -> None:
    def add(name: str, *shape: int, scale: float = 0.12) -> None:
        weights = (rng.standard_normal(shape) * scale).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)

    def add_ones(name: str) -> None:
        writer.add_tensor(name, np.ones(N_EMBD, np.float32))

    add("token_embd.weight", n_vocab, N_EMBD, scale=1)
    add_ones("output_norm.weight")
    add("output.weight", n_vocab, N_EMBD, scale=0.3)
    for layer in range(n_layer):
        block = f"blk.{layer}."
        add_ones(block + "attn_norm.weight")
        add_ones(block + "ffn_norm.weight")
        add(block + "attn_q.weight", N_EMBD, N_EMBD)
        add(block + "attn_k.weight", N_EMBD // 2, N_EMBD)
        add(block + "attn_v.weight", N_EMBD // 2, N_EMBD)
        add(block + "attn_output.weight", N_EMBD, N_EMBD)
        add(block + "ffn_gate.weight", n_ff, N_EMBD)
        add(block + "ffn_up.weight", n_ff, N_EMBD)
        add(block + "ffn_down.weight", N_EMBD, n_ff)
