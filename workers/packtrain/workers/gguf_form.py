"""The form of a GGUF file: from hostile bytes to metadata pairs and the sums of the tensor table.

    magic version n_tensors n_pairs | key type value ... | name n_dims dims type offset ... | padding | weights
                                      metadata pairs       tensor table

The weights are never touched. Neither is the vocabulary, up to half a million strings inside the metadata: arrays are
stepped over, and only scalars, short texts and short arrays of whole numbers are kept.

Files come from strangers and from half-finished downloads, so each count, length, dimension, offset and alignment is
held against the size of the file and a fixed bound *before* it is used. The rules are those of llama.cpp's own reader
(ggml/src/gguf.cpp), so what passes here is not refused there. Reads are buffered, not mapped: a mapped file that
shrinks meanwhile kills its reader with SIGBUS.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from packtrain.workers.ggml_types import GGML_TYPES

# Bounds that no real model comes near: 2,000 tensors, a million strings and 30 MiB of header are large ones.
MAX_HEADER_BYTES = 256 * 1024 * 1024
MAX_PAIRS = 16_384
MAX_TENSORS = 16_384
MAX_ARRAY_STRINGS = 2 * 1024 * 1024  # in all arrays together; each takes 0.2 us to step over
MAX_KEY_BYTES = 1024
MAX_TEXT_BYTES = 1024  # of a text value; the rest is stepped over
MAX_ARRAY_NUMBERS = 1024  # longer arrays are stepped over
MAX_ARRAYS_NUMBERS = 65_536  # in all arrays together
MAX_TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME - 1
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_ALIGNMENT = 1024 * 1024  # bytes
DEFAULT_ALIGNMENT = 32  # bytes
CHUNK_BYTES = 1024 * 1024  # of one read

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SMALLEST_PAIR = 14  # bytes: key length, one letter, type, one byte
_SMALLEST_TENSOR = 24  # bytes: name length, number of dimensions, type, offset
#: `enum gguf_type` (ggml/include/gguf.h).
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_SCALAR = {number: struct.Struct(form) for number, form in _SCALARS.items()}
_WHOLE = {0, 1, 2, 3, 4, 5, 7, 10, 11}


class Malformed(Exception):
    """The bytes break a rule of the format. The message is the reason that the user reads."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array of the metadata."""

    count: int
    numbers: tuple[int, ...]  # empty: not whole numbers, or too many to keep


Value = bool | int | float | str | Array


@dataclass(frozen=True, slots=True)
class TensorLine:
    """One line of the tensor table."""

    dims: tuple[int, ...]  # the innermost first, as ggml counts
    type_name: str
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class TensorSums:
    """What the tensor table adds up to."""

    parameters: int
    bytes_by_type: Counter[str]
    count_by_type: Counter[str]


@dataclass(frozen=True, slots=True)
class Form:
    """A well-formed header whose meaning is not known yet."""

    version: int
    pairs: Mapping[str, Value]
    kinds: Mapping[str, int]  # of the values, numbers of `enum gguf_type`
    tensors: TensorSums
    table: Mapping[str, TensorLine]


def read_form(file: BinaryIO, size: int) -> Form:
    """The header at the start of `file`, which has `size` bytes.

    Raises:
        Malformed: A rule is broken.
        OSError: The file cannot be read.
    """
    cursor = _Cursor(file, size)
    if size < 4 or cursor.take(4, "the magic") != b"GGUF":
        raise Malformed("it does not begin with the letters GGUF")
    version = cursor.number(_U32, "the version")
    if version and version & 0xFFFF == 0:
        raise Malformed("it is big-endian; only little-endian files are supported")
    if version not in (2, 3):
        raise Malformed(f"it has GGUF version {version}; only versions 2 and 3 are supported")
    n_tensors = cursor.number(_U64, "the number of tensors")
    n_pairs = cursor.number(_U64, "the number of metadata pairs")
    _check_count(n_tensors, MAX_TENSORS, _SMALLEST_TENSOR, cursor.left, "tensors")
    _check_count(n_pairs, MAX_PAIRS, _SMALLEST_PAIR, cursor.left, "metadata pairs")
    pairs, kinds = _read_pairs(cursor, n_pairs)
    return Form(version, pairs, kinds, *_read_tensors(cursor, n_tensors, _alignment(pairs)))


def shown(value: Value) -> str:
    """`value` for a message: escaped and short, for it may be hostile."""
    text = "an array" if isinstance(value, Array) else ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Cursor:
    """A place in the header that cannot leave the file, nor pass `MAX_HEADER_BYTES`."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self._file = file
        # [start, start + len(chunk)) of the file is in memory; the cursor is at start + at, perhaps beyond that.
        self._chunk = b""
        self._start = 0
        self._at = 0

    @property
    def position(self) -> int:
        return self._start + self._at

    @property
    def left(self) -> int:
        return self.size - self.position

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes, at most `CHUNK_BYTES`."""
        self._require(count, what)
        taken = self._chunk[self._at : self._at + count]
        self._at += count
        return taken

    def skip(self, count: int, what: str) -> None:
        self._check(count, what)
        self._at += count

    def number(self, form: struct.Struct, what: str) -> int:
        """The next number. A float where `form` says so, which only callers that pass such a form need to know."""
        self._require(form.size, what)
        (value,) = form.unpack_from(self._chunk, self._at)
        self._at += form.size
        return value  # type: ignore[no-any-return]

    def skip_strings(self, count: int, what: str) -> None:
        """Steps over `count` strings: the vocabulary's loop, the only one here that must be fast."""
        unpack = _U64.unpack_from
        chunk, at, last = self._chunk, self._at, len(self._chunk) - _U64.size
        for _ in range(count):
            if at > last:
                self._at = at
                self._require(_U64.size, what)
                chunk, at, last = self._chunk, self._at, len(self._chunk) - _U64.size
            at += _U64.size + unpack(chunk, at)[0]
        self._at = at
        self._check(0, what)

    def _check(self, count: int, what: str) -> None:
        end = self.position + count
        if end > self.size:
            raise Malformed(f"{what} needs bytes up to {end}, but the file ends at {self.size}")
        if end > MAX_HEADER_BYTES:
            raise Malformed(f"{what} reaches to byte {end}; headers may have {MAX_HEADER_BYTES}")

    def _require(self, count: int, what: str) -> None:
        self._check(count, what)
        if self._at + count > len(self._chunk):
            self._start, self._at = self.position, 0
            self._file.seek(self._start)
            self._chunk = self._file.read(CHUNK_BYTES)
            if len(self._chunk) < count:
                raise Malformed(f"the file became shorter while {what} was read")


def _check_count(count: int, limit: int, smallest: int, left: int, what: str) -> None:
    possible = min(limit, left // smallest)
    if count > possible:
        raise Malformed(f"it claims {count} {what}; at most {possible} are possible here")


def _read_pairs(cursor: _Cursor, n_pairs: int) -> tuple[dict[str, Value], dict[str, int]]:
    pairs: dict[str, Value] = {}
    kinds: dict[str, int] = {}
    num_strings = num_numbers = 0  # in arrays so far
    for index in range(n_pairs):
        key = _read_key(cursor, index)
        what = f"the value of {shown(key)}"
        if key in pairs:
            raise Malformed(f"the metadata key {shown(key)} is there twice")
        kinds[key] = kind = cursor.number(_U32, f"the type of {shown(key)}")
        if kind in _SCALAR:
            pairs[key] = cursor.number(_SCALAR[kind], what)
        elif kind == _STRING:
            pairs[key] = _read_text(cursor, what)
        elif kind == _ARRAY:
            element, count = _read_array_head(cursor, what)
            numbers: tuple[int, ...] = ()
            if element == _STRING:
                num_strings += count
                if num_strings > MAX_ARRAY_STRINGS:
                    raise Malformed(f"{what} makes {num_strings} strings in arrays; at most {MAX_ARRAY_STRINGS} may be")
                cursor.skip_strings(count, what)
            elif element in _WHOLE and count <= min(MAX_ARRAY_NUMBERS, MAX_ARRAYS_NUMBERS - num_numbers):
                num_numbers += count
                numbers = tuple(cursor.number(_SCALAR[element], what) for _ in range(count))
            else:
                cursor.skip(count * _SCALAR[element].size, what)
            pairs[key] = Array(count, numbers)
        else:
            raise Malformed(f"{what} has the unknown type {kind}")
    return pairs, kinds


def _read_key(cursor: _Cursor, index: int) -> str:
    what = f"metadata key {index}"
    length = cursor.number(_U64, f"the length of {what}")
    if not 1 <= length <= MAX_KEY_BYTES:
        raise Malformed(f"{what} claims {length} bytes; 1 to {MAX_KEY_BYTES} are allowed")
    try:
        return cursor.take(length, what).decode()
    except UnicodeDecodeError:
        raise Malformed(f"{what} is not UTF-8") from None


def _read_text(cursor: _Cursor, what: str) -> str:
    length = cursor.number(_U64, what)
    text = cursor.take(min(length, MAX_TEXT_BYTES), what)
    cursor.skip(length - len(text), what)
    return text.decode(errors="replace")


def _read_array_head(cursor: _Cursor, what: str) -> tuple[int, int]:
    """Type and number of the elements, which are known to fit into the file."""
    element = cursor.number(_U32, what)
    count = cursor.number(_U64, what)
    if element == _ARRAY:
        raise Malformed(f"{what} is an array of arrays, which GGUF does not allow")
    if element != _STRING and element not in _SCALAR:
        raise Malformed(f"{what} is an array of the unknown type {element}")
    possible = cursor.left // (_U64 if element == _STRING else _SCALAR[element]).size
    if count > possible:
        raise Malformed(f"{what} claims {count} elements; at most {possible} fit into the rest of the file")
    return element, count


def _alignment(pairs: Mapping[str, Value]) -> int:
    value = pairs.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise Malformed(f"general.alignment is {shown(value)}; it must be a power of two up to {MAX_ALIGNMENT}")
    return value


def _read_tensors(cursor: _Cursor, n_tensors: int, alignment: int) -> tuple[TensorSums, dict[str, TensorLine]]:
    parameters = 0
    bytes_by_type, count_by_type = Counter[str](), Counter[str]()
    names: set[bytes] = set()
    table: dict[str, TensorLine] = {}
    end = 0  # of the tensors so far, counted from the start of the weights
    for index in range(n_tensors):
        name = _read_tensor_name(cursor, index)
        what = f"tensor {shown(name.decode(errors='replace'))}"
        if name in names:
            raise Malformed(f"{what} is there twice")
        names.add(name)
        elements, dims = _read_shape(cursor, what)
        row = dims[0] if dims else 1
        number = cursor.number(_U32, f"the type of {what}")
        if number not in GGML_TYPES:
            raise Malformed(f"{what} has the ggml type {number}, which is unknown or was removed from ggml")
        type_name, block, block_bytes = GGML_TYPES[number]
        if row % block:
            raise Malformed(f"{what} has rows of {row} elements, which is no multiple of the {block} of {type_name}")
        # Tensors follow each other without gaps. So none overlaps another, and their sum cannot exceed the file.
        offset = cursor.number(_U64, f"the offset of {what}")
        if offset != _padded(end, alignment):
            raise Malformed(
                f"{what} is at offset {offset}; after the tensors before it comes {_padded(end, alignment)}"
            )
        end = offset + elements // block * block_bytes
        table[name.decode(errors="replace")] = TensorLine(dims, type_name, end - offset)
        parameters += elements
        bytes_by_type[type_name] += end - offset
        count_by_type[type_name] += 1
    missing = _padded(cursor.position, alignment) + end - cursor.size
    if n_tensors and missing > 0:
        raise Malformed(f"the file has {cursor.size} bytes, {missing} fewer than its tensors need")
    return TensorSums(parameters, bytes_by_type, count_by_type), table


def _read_tensor_name(cursor: _Cursor, index: int) -> bytes:
    what = f"the name of tensor {index}"
    length = cursor.number(_U64, what)
    if length > MAX_TENSOR_NAME_BYTES:
        raise Malformed(f"{what} claims {length} bytes; at most {MAX_TENSOR_NAME_BYTES} are allowed")
    return cursor.take(length, what)


def _read_shape(cursor: _Cursor, what: str) -> tuple[int, tuple[int, ...]]:
    """Elements of a tensor, and its dimensions."""
    n_dims = cursor.number(_U32, f"the number of dimensions of {what}")
    if n_dims > MAX_DIMS:
        raise Malformed(f"{what} claims {n_dims} dimensions; at most {MAX_DIMS} are allowed")
    dims = tuple(cursor.number(_U64, f"a dimension of {what}") for _ in range(n_dims))
    elements = 1
    for dim in dims:
        elements *= dim
    if not 1 <= elements < 2**63:
        raise Malformed(f"{what} has the impossible shape {list(dims)}")
    return elements, dims


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
