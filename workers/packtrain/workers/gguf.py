"""GGUF headers: what a model file says of itself, read in milliseconds and believed in nothing.

`gguf_form` turns the bytes into metadata pairs; this module gives the pairs their meaning. Numbers that later stand in
products are held within what any real model has, so that an estimate from a hostile header is wrong but never absurd.
Whatever the bytes are, `read_header` gives a header or `ModelFileInvalid`, soon and in little memory.

Key names and defaults: the GGUF specification (ggml/docs/gguf.md) and llama.cpp's `llama_model::load_hparams`.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from packtrain.broker.errors import ModelFileInvalid
from packtrain.workers.ggml_types import FILE_TYPES
from packtrain.workers.gguf_form import Array, Form, Malformed, TensorLine, TensorSums, Value, read_form, shown
from packtrain.workers.gguf_lora import LoraHeader, read_lora
from packtrain.workers.gguf_projector import ProjectorHeader, read_projector

MAX_LAYERS = 1024  # llama.cpp itself stops at 512
MAX_SHAPE = 2**20  # widths, head counts and the like
MAX_KV_WIDTH = 2**18  # elements of K, or of V, of one token in one layer
MAX_VOCAB = 2**24  # tokens
MAX_CONTEXT = 2**31 - 1  # tokens
MAX_PARTS = 99_999  # the five digits of `-00001-of-00003.gguf`

_ARCHITECTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LAYER = re.compile(r"blk\.\d{1,4}(?=\.)", re.ASCII)
_NOT_MODELS = ("adapter", "mmproj", "imatrix")

#: Architectures for which llama.cpp makes no cache (`llama_model::create_memory`): they look at a whole text at once.
CACHELESS = frozenset(
    {
        *(
            "bert",
            "nomic-bert",
            "nomic-bert-moe",
            "jina-bert-v2",
            "jina-bert-v3",
            "neo-bert",
            "modern-bert",
            "eurobert",
        ),
        *("gemma-embedding", "llama-embed", "wavtokenizer-dec", "dream", "llada", "llada-moe", "rnd1"),
    }
)
_POOLINGS = (1, 2, 3)  # enum llama_pooling_type: mean, the first token, the last token

#: Matrices of which rows are only taken; the first is multiplied by, too, where there is no `output.weight`.
_LOOKED_UP = frozenset({"token_embd.weight", "position_embd.weight", "token_types.weight"})

PerLayer = int | tuple[int, ...]  # one number for all layers, or one for each


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says of itself. The shape is zeros in later parts of a split model and in what is no model."""

    version: int
    kind: str  # "model", "adapter" (LoRA, control vector), "mmproj" (vision projector) or "imatrix"
    architecture: str
    name: str
    n_layer: int
    n_embd: int
    n_head: int  # of the layer that has most
    n_head_kv: PerLayer  # 0: a layer without attention
    key_length: int  # elements of K of one head
    value_length: int
    n_ff: int  # of the layer that has most
    n_ctx_train: int  # tokens
    n_vocab: int  # tokens
    has_chat_template: bool
    quantization: str  # "Q8_0", "Q4_K_M"
    parameters: int  # elements of all tensors
    tensor_bytes: int  # of all tensors, without the padding between them
    tensor_types: Mapping[str, int]  # type name -> number of tensors
    matrix_types: frozenset[str]  # of the matrices that rows are multiplied by
    split_no: int  # from 0
    split_count: int  # 1: not split
    hints: Mapping[str, int]  # whole numbers of `<architecture>.*`, prefix removed: "ssm.state_size"
    lora: LoraHeader | None = None  # of an adapter
    bytes_by_part: Mapping[str, int] = field(default_factory=dict)  # "blk.7", "output.weight", "token_embd.weight"
    projector: ProjectorHeader | None = None  # of an mmproj

    @property
    def is_model(self) -> bool:
        """False for what lies beside models: projectors, adapters, importance matrices."""
        return self.kind == "model"

    @property
    def has_cache(self) -> bool:
        """False for models that hold nothing between two steps, and so cannot go on with a text."""
        return self.architecture not in CACHELESS

    @property
    def embeds_only(self) -> bool:
        """True for a model that makes vectors of texts and generates none: the file says how to pool."""
        return not self.has_cache or self.hints.get("pooling_type") in _POOLINGS

    def fault_of_adapter(self, adapter: GgufHeader) -> str:
        """Why this model cannot use the adapter with that header; empty: it may, as far as headers tell."""
        if adapter.lora is None:
            return f"it is no adapter but {'a model' if adapter.is_model else adapter.kind}"
        if adapter.lora.fault:
            return adapter.lora.fault
        if adapter.architecture != self.architecture:
            made_for = shown(adapter.architecture)
            return f"it was made for {made_for}, this model is {shown(self.architecture)}; use one made for this model"
        experts = self.hints.get("expert_count", 0)
        if strange := adapter.lora.num_experts - {experts}:
            return f"it changes mixtures of {max(strange)} experts, this model has {experts}; use one made for it"
        return ""

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """`n_head_kv` of each layer."""
        return self.n_head_kv if isinstance(self.n_head_kv, tuple) else (self.n_head_kv,) * self.n_layer

    @property
    def layer_bytes(self) -> tuple[int, ...]:
        """Weights of each layer."""
        return tuple(self.bytes_by_part.get(f"blk.{layer}", 0) for layer in range(self.n_layer))

    @property
    def output_bytes(self) -> int:
        """Of the matrix that makes logits; some models use their input's for it."""
        return self.bytes_by_part.get("output.weight") or self.bytes_by_part.get("token_embd.weight", 0)

    @property
    def sliding_window(self) -> int:
        """Tokens that a sliding-window layer looks back on; 0: the model has no such layer."""
        return self.hints.get("attention.sliding_window", 0)

    @property
    def is_mla(self) -> bool:
        """True for multi-head latent attention: K holds the compressed pair, and V is not cached."""
        return bool(self.hints.get("attention.key_length_mla") and self.hints.get("attention.value_length_mla"))


def read_header(path: Path) -> GgufHeader:
    """The header of the GGUF file at `path`. Blocks for about 20 ms per 50,000 tokens of vocabulary.

    Raises:
        ModelFileInvalid: The file cannot be read, ends too early or breaks a rule of the format; `reason` says which.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Malformed("it is not a regular file")
            return _describe(read_form(file, status.st_size))
    except Malformed as error:
        raise ModelFileInvalid(path=str(path), reason=str(error)) from None
    except OSError as error:
        raise ModelFileInvalid(path=str(path), reason=f"it cannot be read ({error.strerror})") from error


def merge_parts(parts: Sequence[GgufHeader]) -> GgufHeader:
    """One header for a split model: the shape that its first part holds, the weights of all of them."""
    tensor_types, bytes_by_part = Counter[str](), Counter[str]()
    for part in parts:
        tensor_types.update(part.tensor_types)
        bytes_by_part.update(part.bytes_by_part)
    return replace(
        parts[0],
        parameters=sum(part.parameters for part in parts),
        tensor_bytes=sum(part.tensor_bytes for part in parts),
        tensor_types=dict(tensor_types),
        matrix_types=frozenset().union(*(part.matrix_types for part in parts)),
        bytes_by_part=dict(bytes_by_part),
    )


def _describe(form: Form) -> GgufHeader:
    pairs = _Pairs(form.pairs)
    architecture = pairs.text("general.architecture")
    kind = _kind(pairs.text("general.type"), architecture)
    split_count = pairs.whole("split.count", MAX_PARTS, default=1) or 1
    split_no = pairs.whole("split.no", split_count - 1, default=0)
    # Of a split model only the first part says what the model is.
    has_shape = kind == "model" and split_no == 0
    if not _ARCHITECTURE.fullmatch(architecture) and (has_shape or architecture):
        raise Malformed(f"general.architecture is {shown(architecture)}; it must be a plain name")
    if has_shape and split_count == 1 and not form.tensors.parameters:
        raise Malformed("it has no tensors, at most a vocabulary")
    shape = _read_shape(pairs, architecture) if has_shape else _NO_SHAPE
    return GgufHeader(
        version=form.version,
        kind=kind,
        architecture=architecture,
        name=pairs.text("general.name"),
        n_layer=shape.n_layer,
        n_embd=shape.n_embd,
        n_head=_largest(shape.n_head),
        n_head_kv=shape.n_head_kv,
        key_length=shape.key_length,
        value_length=shape.value_length,
        n_ff=_largest(shape.n_ff),
        n_ctx_train=shape.n_ctx_train,
        n_vocab=_n_vocab(pairs, architecture),
        has_chat_template=bool(pairs.text("tokenizer.chat_template")),
        quantization=_quantization(pairs, form.tensors),
        parameters=form.tensors.parameters,
        tensor_bytes=form.tensors.bytes_by_type.total(),
        tensor_types=dict(form.tensors.count_by_type),
        matrix_types=_matrix_types(form.table),
        split_no=split_no,
        split_count=split_count,
        hints=pairs.hints(f"{architecture}.") if has_shape else {},
        lora=read_lora(form) if kind == "adapter" else None,
        bytes_by_part=_bytes_by_part(form.table) if kind == "model" else {},
        projector=read_projector(form) if kind == "mmproj" else None,
    )


def _bytes_by_part(table: Mapping[str, TensorLine]) -> dict[str, int]:
    found = Counter[str]()
    for name, line in table.items():
        if layer := _LAYER.match(name):
            found[layer[0]] += line.size
        elif name in ("output.weight", "token_embd.weight"):
            found[name] = line.size
    return dict(found)


def _matrix_types(table: Mapping[str, TensorLine]) -> frozenset[str]:
    looked_up = _LOOKED_UP if "output.weight" in table else _LOOKED_UP - {"token_embd.weight"}
    return frozenset(
        line.type_name for name, line in table.items() if name not in looked_up and any(n > 1 for n in line.dims[1:])
    )


class _Pairs:
    """The metadata pairs as typed numbers and texts within bounds."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self.values = values

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        if not isinstance(value, str):
            raise Malformed(f"{key} is {shown(value)}; it must be a text")
        return value

    def whole(self, key: str, most: int, *, least: int = 0, default: int | None = None) -> int:
        """The whole number at `key`, which must be there when it has no default."""
        value = self.values.get(key, default)
        if value is None:
            raise Malformed(f"{key} is missing")
        return _whole(key, value, least, most)

    def per_layer(self, key: str, n_layer: int, default: PerLayer) -> PerLayer:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, Array):
            return _whole(key, value, 0, MAX_SHAPE)
        if len(value.numbers) != n_layer:
            raise Malformed(
                f"{key} must have one whole number for each of {n_layer} layers, not {value.count} elements"
            )
        return tuple(_whole(key, number, 0, MAX_SHAPE) for number in value.numbers)

    def hints(self, prefix: str) -> dict[str, int]:
        return {
            key.removeprefix(prefix): value
            for key, value in self.values.items()
            if key.startswith(prefix) and type(value) is int and 0 <= value <= MAX_SHAPE
        }


@dataclass(frozen=True, slots=True)
class _Shape:
    n_layer: int
    n_embd: int
    n_ctx_train: int
    n_head: PerLayer
    n_head_kv: PerLayer
    n_ff: PerLayer
    key_length: int
    value_length: int


_NO_SHAPE = _Shape(0, 0, 0, 0, 0, 0, 0, 0)


def _read_shape(pairs: _Pairs, architecture: str) -> _Shape:
    n_layer = pairs.whole(f"{architecture}.block_count", MAX_LAYERS, least=1)
    n_embd = pairs.whole(f"{architecture}.embedding_length", MAX_SHAPE, least=1)
    n_head = pairs.per_layer(f"{architecture}.attention.head_count", n_layer, 0)
    n_head_kv = pairs.per_layer(f"{architecture}.attention.head_count_kv", n_layer, n_head)
    head_size = n_embd // _largest(n_head) if _largest(n_head) else 0
    key_length = pairs.whole(f"{architecture}.attention.key_length", MAX_SHAPE, default=head_size)
    value_length = pairs.whole(f"{architecture}.attention.value_length", MAX_SHAPE, default=head_size)
    width = _largest(n_head_kv) * max(key_length, value_length)
    if width > MAX_KV_WIDTH:
        raise Malformed(
            f"its KV heads and their lengths make {width} elements per token and layer, over {MAX_KV_WIDTH}"
        )
    return _Shape(
        n_layer=n_layer,
        n_embd=n_embd,
        n_ctx_train=pairs.whole(f"{architecture}.context_length", MAX_CONTEXT, least=1),
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_ff=pairs.per_layer(f"{architecture}.feed_forward_length", n_layer, 0),
        key_length=key_length,
        value_length=value_length,
    )


def _kind(declared: str, architecture: str) -> str:
    # Files from before `general.type` say it by their architecture.
    if architecture == "clip":
        return "mmproj"
    if architecture == "controlvector":
        return "adapter"
    return declared if declared in _NOT_MODELS else "model"


def _n_vocab(pairs: _Pairs, architecture: str) -> int:
    tokens = pairs.values.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Array):
        return _whole("the number of tokens", tokens.count, 0, MAX_VOCAB)
    return pairs.whole(f"{architecture}.vocab_size", MAX_VOCAB, default=0)


def _quantization(pairs: _Pairs, tensors: TensorSums) -> str:
    """What `general.file_type` says, else the type that holds the most bytes."""
    file_type = pairs.values.get("general.file_type")
    if isinstance(file_type, int) and file_type in FILE_TYPES:
        return FILE_TYPES[file_type]
    most = tensors.bytes_by_type.most_common(1)
    return most[0][0] if most else ""


def _whole(key: str, value: Value, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise Malformed(f"{key} is {shown(value)}; it must be a whole number from {least} to {most}")
    return value


def _largest(value: PerLayer) -> int:
    return max(value) if isinstance(value, tuple) else value


def _open_without_waiting(path: str, flags: int) -> int:
    """A named pipe in a model folder must not hold up its reader."""
    return os.open(path, flags | os.O_NONBLOCK)
