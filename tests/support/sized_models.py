"""GGUF models of any shape and size, made at once: the weights are a hole in the file, so they read as zeros.

Zeros are as large in memory as anything else, and llama.cpp computes with them without complaint, which is all that a
measurement of memory needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.gguf_files import Raw, Tensor, Value, gguf_header

_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # llama.cpp's token types


@dataclass(frozen=True)
class SizedModel:
    """The shape of a llama with zero weights."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_vocab: int
    weight_type: str = "Q8_0"
    n_expert: int = 0  # of which two are used
    is_tied: bool = False  # the output layer is the embedding

    def tensors(self) -> list[Tensor]:
        """The tensor table."""
        kind, embd, ff = self.weight_type, self.n_embd, self.n_ff
        kv = embd // self.n_head * self.n_head_kv
        table = [Tensor("token_embd.weight", (embd, self.n_vocab), kind), Tensor("output_norm.weight", (embd,))]
        if not self.is_tied:
            table.append(Tensor("output.weight", (embd, self.n_vocab), kind))
        experts = (self.n_expert,) if self.n_expert else ()
        names = "_exps" if experts else ""
        for layer in range(self.n_layer):
            block = f"blk.{layer}."
            table += [
                Tensor(block + "attn_norm.weight", (embd,)),
                Tensor(block + "ffn_norm.weight", (embd,)),
                Tensor(block + "attn_q.weight", (embd, embd), kind),
                Tensor(block + "attn_k.weight", (embd, kv), kind),
                Tensor(block + "attn_v.weight", (embd, kv), kind),
                Tensor(block + "attn_output.weight", (embd, embd), kind),
                Tensor(f"{block}ffn_gate{names}.weight", (embd, ff, *experts), kind),
                Tensor(f"{block}ffn_up{names}.weight", (embd, ff, *experts), kind),
                Tensor(f"{block}ffn_down{names}.weight", (ff, embd, *experts), kind),
            ]
            if experts:
                table.append(Tensor(block + "ffn_gate_inp.weight", (embd, self.n_expert)))
        return table

    def metadata(self) -> dict[str | bytes, Value]:
        """The metadata, with a vocabulary of bytes and numbered words."""
        words = [f"word{number}" for number in range(self.n_vocab - 259)]
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
        pairs: dict[str | bytes, Value] = {
            "general.architecture": "llama",
            "llama.block_count": self.n_layer,
            "llama.context_length": 131_072,
            "llama.embedding_length": self.n_embd,
            "llama.feed_forward_length": self.n_ff,
            "llama.attention.head_count": self.n_head,
            "llama.attention.head_count_kv": self.n_head_kv,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.dimension_count": self.n_embd // self.n_head,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [0.0] * self.n_vocab,
            "tokenizer.ggml.token_type": Raw(9, _int32s([_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256], len(words))),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }
        if self.n_expert:
            pairs |= {"llama.expert_count": self.n_expert, "llama.expert_used_count": 2}
        return pairs

    def write(self, path: Path) -> Path:
        """The model at `path`."""
        header, size = gguf_header(self.metadata(), self.tensors())
        with open(path, "wb") as file:
            file.write(header)
            file.truncate(len(header) + size)
        return path


#: 146 to 272 MiB each; what differs is what an estimate may get wrong.
SHAPES = {
    "grouped queries": SizedModel(16, 1024, 16, 4, 2816, 32_000),
    "large vocabulary, tied": SizedModel(6, 768, 12, 12, 2048, 128_000, "F16", is_tied=True),
    "wide feed-forward": SizedModel(4, 1024, 16, 8, 14_336, 4_096),
    "deep and narrow": SizedModel(48, 512, 8, 2, 1408, 8_000),
    "mixture of experts": SizedModel(6, 768, 12, 4, 1024, 16_000, n_expert=8),
    "repacked Q4_0": SizedModel(12, 1536, 12, 2, 4096, 16_000, "Q4_0"),
}


def _int32s(first: list[int], num_normal: int) -> bytes:
    numbers = [*first, *[_NORMAL] * num_normal]
    packed = b"".join(number.to_bytes(4, "little") for number in numbers)
    return (5).to_bytes(4, "little") + len(numbers).to_bytes(8, "little") + packed
