"""Small GGUF files for tests, packed byte by byte, so that a test can make any of them and break any part.

A test states only what it is about: `gguf_bytes()` is a valid model of two layers, and each argument replaces one
part of it. Values take their GGUF type from their Python type; `Raw` writes any type and any bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packtrain.workers.ggml_types import GGML_TYPES

U8, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10
TYPE_NUMBERS = {name: number for number, (name, _, _) in GGML_TYPES.items()}


@dataclass(frozen=True)
class Raw:
    """A metadata value with a type number and bytes of the test's choice."""

    kind: int
    payload: bytes


@dataclass(frozen=True)
class Tensor:
    """A line of the tensor table. Its data are zeros; `offset` and `type_number` may lie."""

    name: str | bytes = "token_embd.weight"
    dims: tuple[int, ...] = (32, 4)
    type_name: str = "F32"
    offset: int | None = None  # None: right after the tensor before it
    type_number: int | None = None  # None: that of `type_name`

    @property
    def num_bytes(self) -> int:
        _, block, size = GGML_TYPES[TYPE_NUMBERS[self.type_name]]
        elements = 1
        for dim in self.dims:
            elements *= dim
        return elements // block * size


Value = bool | int | float | str | Raw | Sequence[int] | Sequence[str] | Sequence[float]
Pairs = Mapping[str, Value] | Mapping[str | bytes, Value] | Iterable[tuple[str | bytes, Value]]
DEFAULT_TENSORS = (Tensor("token_embd.weight", (64, 8), "Q8_0"), Tensor("output_norm.weight", (64,)))


def metadata(architecture: str = "llama", /, **changes: Value | None) -> dict[str | bytes, Value]:
    """Metadata of a tiny model. In `changes` a double underscore stands for a dot, None removes a key."""
    pairs: dict[str | bytes, Value] = {
        "general.architecture": architecture,
        "general.name": "Tiny",
        f"{architecture}.block_count": 2,
        f"{architecture}.context_length": 512,
        f"{architecture}.embedding_length": 64,
        f"{architecture}.feed_forward_length": 128,
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.head_count_kv": 2,
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(8)],
        "tokenizer.chat_template": "{{ messages }}",
        "general.file_type": 7,
    }
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del pairs[key]
        else:
            pairs[key] = value
    return pairs


def gguf_bytes(
    pairs: Pairs | None = None,
    tensors: Sequence[Tensor] = DEFAULT_TENSORS,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
    with_data: bool = True,
) -> bytes:
    """A whole file: header, tensor table, and zeros for weights."""
    header, end = gguf_header(
        pairs, tensors, magic=magic, version=version, n_pairs=n_pairs, n_tensors=n_tensors, alignment=alignment,
        with_data=with_data,
    )  # fmt: skip
    return header + bytes(end)


def gguf_header(
    pairs: Pairs | None = None,
    tensors: Sequence[Tensor] = DEFAULT_TENSORS,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
    with_data: bool = True,
) -> tuple[bytes, int]:
    """Everything before the weights, padded, and the bytes of the weights."""
    if pairs is None:
        pairs = metadata()
    listed = list(pairs.items() if isinstance(pairs, Mapping) else pairs)
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(listed) if n_pairs is None else n_pairs,
    )
    body = b"".join(_text(key) + _value(value) for key, value in listed)
    table, end = b"", 0
    for tensor in tensors:
        start = _padded(end, alignment)
        table += _text(tensor.name) + struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
        number = TYPE_NUMBERS[tensor.type_name] if tensor.type_number is None else tensor.type_number
        table += struct.pack("<IQ", number, start if tensor.offset is None else tensor.offset)
        end = start + (tensor.num_bytes if with_data else 0)
    header = head + body + table
    return (header.ljust(_padded(len(header), alignment), b"\0"), end) if tensors else (header, 0)


def write_gguf(path: Path, content: bytes | None = None) -> Path:
    """`content`, or a valid tiny model, at `path`; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf_bytes() if content is None else content)
    return path


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    if isinstance(value, Raw):
        return struct.pack("<I", value.kind) + value.payload
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, Sequence):
        elements = [_value(element) for element in value]  # each begins with the four bytes of its type
        kind = elements[0][:4] if elements else struct.pack("<I", U32)
        return struct.pack("<I", ARRAY) + kind + struct.pack("<Q", len(elements)) + b"".join(e[4:] for e in elements)
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, float):
        return struct.pack("<If", F32, value)
    return struct.pack("<Ii", I32, value) if value < 0 else struct.pack("<II", U32, value)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
