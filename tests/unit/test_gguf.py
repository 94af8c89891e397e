"""The header reader gives a header or ModelFileInvalid, whatever the bytes are."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packtrain.broker.errors import ModelFileInvalid
from packtrain.workers.ggml_types import GGML_TYPES
from packtrain.workers.gguf import GgufHeader, merge_parts, read_header
from packtrain.workers.gguf_form import MAX_ARRAY_STRINGS, MAX_HEADER_BYTES, MAX_PAIRS, MAX_TENSORS
from tests.support.gguf_files import (
    ARRAY,
    F32,
    STRING,
    U8,
    U32,
    U64,
    Raw,
    Tensor,
    Value,
    gguf_bytes,
    metadata,
    write_gguf,
)

pytestmark = pytest.mark.unit

VALID = gguf_bytes()
#: Seconds that any small file may take; the real figure is far below a millisecond per kilobyte.
SOON_S = 2.0


def header_of(tmp_path: Path, content: bytes) -> GgufHeader:
    return read_header(write_gguf(tmp_path / "model.gguf", content))


def reason_for(tmp_path: Path, content: bytes) -> str:
    """Why `content` is refused."""
    path = write_gguf(tmp_path / "model.gguf", content)
    with pytest.raises(ModelFileInvalid) as caught:
        read_header(path)
    assert caught.value.data["path"] == str(path)
    return str(caught.value.data["reason"])


def with_pair(key: str | bytes, value: Value) -> bytes:
    return gguf_bytes({**metadata(), key: value})


# What a good file says


def test_header_tells_the_shape_of_the_model(tmp_path: Path) -> None:
    header = header_of(tmp_path, VALID)

    assert (header.version, header.kind, header.architecture, header.name) == (3, "model", "llama", "Tiny")
    assert (header.n_layer, header.n_embd, header.n_ff, header.n_head, header.n_head_kv) == (2, 64, 128, 4, 2)
    assert (header.key_length, header.value_length) == (16, 16)
    assert (header.n_ctx_train, header.n_vocab) == (512, 8)
    assert header.has_chat_template
    assert (header.split_no, header.split_count) == (0, 1)


@pytest.mark.parametrize(
    ("architecture", "changes", "embeds_only", "has_cache"),
    [
        ("llama", {}, False, True),
        ("bert", {}, True, False),
        ("bert", {"bert__pooling_type": 4}, True, False),  # a reranker answers nothing either
        ("qwen3", {"qwen3__pooling_type": 3}, True, True),
        ("qwen3", {"qwen3__pooling_type": 0}, False, True),
        ("qwen3", {"qwen3__pooling_type": 4}, False, True),
    ],
)
def test_header_tells_what_only_embeds(
    tmp_path: Path, architecture: str, changes: dict[str, Value], embeds_only: bool, has_cache: bool
) -> None:
    header = header_of(tmp_path, gguf_bytes(metadata(architecture, **changes)))

    assert (header.embeds_only, header.has_cache) == (embeds_only, has_cache)


def test_matrices_that_rows_are_multiplied_by_are_told_from_vectors_and_tables(tmp_path: Path) -> None:
    layer = [Tensor("blk.0.attn_q.weight", (64, 8), "Q8_0"), Tensor("blk.0.attn_norm.weight", (64,))]
    table = Tensor("token_embd.weight", (64, 8), "F16")
    output = Tensor("output.weight", (64, 8), "Q8_0")

    tied = header_of(tmp_path, gguf_bytes(tensors=[table, *layer]))
    untied = header_of(tmp_path, gguf_bytes(tensors=[table, *layer, output]))

    assert tied.matrix_types == frozenset({"Q8_0", "F16"})
    assert untied.matrix_types == frozenset({"Q8_0"})


def test_tensor_sums_count_blocks_and_not_padding(tmp_path: Path) -> None:
    tensors = [Tensor("a", (64, 8), "Q8_0"), Tensor("b", (3,)), Tensor("c", (256, 2), "Q4_K")]

    header = header_of(tmp_path, gguf_bytes(tensors=tensors))

    assert header.parameters == 512 + 3 + 512
    assert header.tensor_bytes == 512 // 32 * 34 + 3 * 4 + 512 // 256 * 144
    assert header.tensor_types == {"Q8_0": 1, "F32": 1, "Q4_K": 1}


@pytest.mark.parametrize("version", [2, 3])
def test_both_living_versions_are_read(tmp_path: Path, version: int) -> None:
    assert header_of(tmp_path, gguf_bytes(version=version)).version == version


def test_quantization_is_what_the_file_says_of_itself(tmp_path: Path) -> None:
    assert header_of(tmp_path, gguf_bytes(metadata(general__file_type=15))).quantization == "Q4_K_M"


def test_quantization_without_a_file_type_is_that_of_most_bytes(tmp_path: Path) -> None:
    tensors = [Tensor("norm", (8,), "F32"), Tensor("weight", (256, 64), "Q6_K")]

    header = header_of(tmp_path, gguf_bytes(metadata(general__file_type=None), tensors))

    assert header.quantization == "Q6_K"


def test_kv_heads_may_differ_per_layer(tmp_path: Path) -> None:
    header = header_of(tmp_path, gguf_bytes(metadata(llama__attention__head_count_kv=[0, 4])))

    assert header.n_head_kv == (0, 4)
    assert header.kv_heads == (0, 4)


def test_missing_kv_heads_are_as_many_as_heads(tmp_path: Path) -> None:
    assert header_of(tmp_path, gguf_bytes(metadata(llama__attention__head_count_kv=None))).n_head_kv == 4


def test_architecture_may_come_after_the_keys_it_prefixes(tmp_path: Path) -> None:
    pairs = list(metadata().items())

    assert header_of(tmp_path, gguf_bytes(pairs[1:] + pairs[:1])).n_layer == 2


def test_other_whole_numbers_of_the_architecture_are_kept_as_hints(tmp_path: Path) -> None:
    pairs = {**metadata(), "llama.attention.sliding_window": 1024, "llama.rope.freq_base": 1e4, "other.x": 1}

    header = header_of(tmp_path, gguf_bytes(pairs))

    assert header.sliding_window == 1024
    assert "rope.freq_base" not in header.hints
    assert "x" not in header.hints


def test_long_texts_are_kept_only_in_part(tmp_path: Path) -> None:
    header = header_of(tmp_path, gguf_bytes(metadata(general__name="n" * 100_000)))

    assert len(header.name) == 1024


@pytest.mark.parametrize(
    ("pairs", "kind"),
    [
        ({"general.architecture": "clip", "clip.vision.block_count": 4}, "mmproj"),
        ({"general.architecture": "llama", "general.type": "adapter"}, "adapter"),
        ({"general.architecture": "controlvector"}, "adapter"),
        ({"general.type": "imatrix"}, "imatrix"),
    ],
)
def test_files_that_are_no_models_need_no_shape(tmp_path: Path, pairs: dict[str | bytes, Value], kind: str) -> None:
    header = header_of(tmp_path, gguf_bytes(pairs))

    assert header.kind == kind
    assert not header.is_model


def test_later_part_of_a_split_model_needs_no_shape(tmp_path: Path) -> None:
    header = header_of(tmp_path, gguf_bytes({"split.no": 1, "split.count": 2}))

    assert (header.split_no, header.split_count, header.n_layer) == (1, 2, 0)
    assert header.tensor_bytes > 0


def test_merged_parts_have_the_shape_of_the_first_and_the_weights_of_all(tmp_path: Path) -> None:
    first = header_of(tmp_path, gguf_bytes({**metadata(), "split.no": 0, "split.count": 2}))
    second = header_of(tmp_path, gguf_bytes({"split.no": 1, "split.count": 2}))

    whole = merge_parts([first, second])

    assert whole.n_layer == 2
    assert whole.tensor_bytes == first.tensor_bytes + second.tensor_bytes
    assert whole.tensor_types == {"Q8_0": 2, "F32": 2}


def test_large_vocabulary_is_stepped_over_and_not_kept(tmp_path: Path) -> None:
    count = 60_000
    strings = struct.pack("<IQ", STRING, count) + struct.pack("<Q6s", 6, b"token ") * count
    path = write_gguf(tmp_path / "m.gguf", gguf_bytes(metadata(tokenizer__ggml__tokens=Raw(ARRAY, strings))))
    read_header(path)  # so that lazily made objects do not count

    tracemalloc.start()
    header = read_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert header.n_vocab == count
    assert peak < 3 * 1024 * 1024


def test_type_table_agrees_with_the_reference_library() -> None:
    constants = pytest.importorskip("gguf.constants")

    theirs = {int(kind): (kind.name, *size) for kind, size in constants.GGML_QUANT_SIZES.items()}
    # The reference has 40 for Q8_1, whose scale was two floats once; ggml's `block_q8_1` has 36. No file holds it.
    theirs[9] = ("Q8_1", 32, 36)

    assert {number: GGML_TYPES[number] for number in theirs} == theirs


# What hostile and broken files get


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not begin"),
        (b"GGU", "does not begin"),
        (b"GGML" + VALID[4:], "does not begin"),
        (gguf_bytes(version=1), "GGUF version 1;"),
        (gguf_bytes(version=0), "GGUF version 0;"),
        (gguf_bytes(version=4), "GGUF version 4;"),
        (b"GGUF" + struct.pack(">I", 3) + VALID[8:], "big-endian"),
        (gguf_bytes(n_pairs=2**60), f"claims {2**60} metadata pairs"),
        (gguf_bytes(n_pairs=MAX_PAIRS + 1) + bytes(20 * MAX_PAIRS), f"at most {MAX_PAIRS} are possible"),
        (gguf_bytes(n_tensors=2**63), f"claims {2**63} tensors"),
        (gguf_bytes(n_tensors=MAX_TENSORS + 1) + bytes(40 * MAX_TENSORS), f"at most {MAX_TENSORS} are possible"),
        (gguf_bytes(n_tensors=3), "tensor"),
        (with_pair(b"\xff\xfe", 1), "not UTF-8"),
        (with_pair("", 1), "claims 0 bytes"),
        (with_pair("k" * 1025, 1), "claims 1025 bytes"),
        (gguf_bytes([*metadata().items(), ("general.name", "again")]), "'general.name' is there twice"),
        (with_pair("x", Raw(13, b"")), "unknown type 13"),
        (with_pair("x", Raw(STRING, struct.pack("<Q", 2**63))), "'x' needs bytes up to"),
        (with_pair("x", Raw(STRING, struct.pack("<Q", 2**64 - 1))), "'x' needs bytes up to"),
        (with_pair("x", Raw(ARRAY, struct.pack("<IQ", ARRAY, 1))), "array of arrays"),
        (with_pair("x", Raw(ARRAY, struct.pack("<IQIQ", ARRAY, 1, ARRAY, 1))), "array of arrays"),
        (with_pair("x", Raw(ARRAY, struct.pack("<IQ", 99, 1))), "unknown type 99"),
        (with_pair("x", Raw(ARRAY, struct.pack("<IQ", U64, 2**61))), f"claims {2**61} elements"),
        (with_pair("x", Raw(ARRAY, struct.pack("<IQ", STRING, 2**40))), f"claims {2**40} elements"),
        (with_pair("x", Raw(ARRAY, struct.pack("<IQQ", STRING, 1, 2**63))), "'x' needs bytes up to"),
        (with_pair("x", Raw(ARRAY, struct.pack("<IQQ", STRING, 2, 2**63))), "'x' needs bytes up to"),
        (with_pair("general.alignment", 0), "general.alignment is 0"),
        (with_pair("general.alignment", 48), "general.alignment is 48"),
        (with_pair("general.alignment", 2**31), "general.alignment is 2147483648"),
        (with_pair("general.alignment", "32"), "general.alignment is '32'"),
    ],
)
def test_broken_metadata_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in reason_for(tmp_path, content)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ([Tensor("n" * 64)], "claims 64 bytes"),
        ([Tensor("same"), Tensor("same")], "'same' is there twice"),
        ([Tensor(dims=(32, 1, 1, 1, 1))], "claims 5 dimensions"),
        ([Tensor(dims=(0, 4))], "impossible shape [0, 4]"),
        ([Tensor(type_number=4)], "ggml type 4,"),
        ([Tensor(type_number=2**32 - 1)], "ggml type 4294967295,"),
        ([Tensor(dims=(33,), type_number=8)], "rows of 33 elements"),
        ([Tensor(offset=2**63)], f"at offset {2**63}"),
        ([Tensor(offset=32)], "at offset 32"),
        ([Tensor("a"), Tensor("b", offset=0)], "at offset 0; after the tensors before it comes 512"),
    ],
)
def test_broken_tensor_table_is_refused_with_the_reason(tmp_path: Path, tensors: list[Tensor], reason: str) -> None:
    assert reason in reason_for(tmp_path, gguf_bytes(tensors=tensors))


@pytest.mark.parametrize("dims", [(2**32, 2**32), (2**63,), (2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1)])
def test_dimensions_that_overflow_are_refused(tmp_path: Path, dims: tuple[int, ...]) -> None:
    assert "impossible shape" in reason_for(tmp_path, gguf_bytes(tensors=[Tensor(dims=dims)], with_data=False))


def test_tensor_beyond_the_end_is_named_by_the_bytes_that_are_missing(tmp_path: Path) -> None:
    content = gguf_bytes(tensors=[Tensor(dims=(1024, 1024))], with_data=False)

    assert f"{1024 * 1024 * 4} fewer than its tensors need" in reason_for(tmp_path, content)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"general__architecture": None}, "general.architecture is ''"),
        ({"general__architecture": 5}, "general.architecture is 5"),
        ({"general__architecture": "\x1b[31mred"}, r"general.architecture is '\x1b[31mred'"),
        ({"general__architecture": "a" * 5000}, "must be a plain name"),
        ({"llama__block_count": None}, "llama.block_count is missing"),
        ({"llama__block_count": 0}, "llama.block_count is 0"),
        ({"llama__block_count": -1}, "llama.block_count is -1"),
        ({"llama__block_count": 2**32 - 1}, "llama.block_count is 4294967295"),
        ({"llama__block_count": 2.0}, "llama.block_count is 2.0"),
        ({"llama__block_count": True}, "llama.block_count is True"),
        ({"llama__context_length": 0}, "llama.context_length is 0"),
        ({"llama__embedding_length": "64"}, "llama.embedding_length is '64'"),
        ({"llama__attention__head_count_kv": [1, 2, 3]}, "one whole number for each of 2 layers, not 3 elements"),
        ({"llama__attention__head_count_kv": ["1", "2"]}, "one whole number for each of 2 layers"),
        ({"llama__attention__head_count_kv": [-1, 2]}, "head_count_kv is -1"),
        ({"llama__attention__head_count_kv": 2**20}, "elements per token and layer"),
        ({"llama__attention__key_length": 2**31}, "key_length is 2147483648"),
        ({"tokenizer__chat_template": 1}, "tokenizer.chat_template is 1"),
        ({"split__no": 3, "split__count": 3}, "split.no is 3"),
        ({"split__count": 2**20}, "split.count is 1048576"),
    ],
)
def test_impossible_shape_is_refused_by_its_key(tmp_path: Path, changes: dict[str, Value | None], reason: str) -> None:
    assert reason in reason_for(tmp_path, gguf_bytes(metadata(**changes)))


def test_vocabulary_without_weights_is_refused(tmp_path: Path) -> None:
    assert "no tensors" in reason_for(tmp_path, gguf_bytes(tensors=[]))


def test_truncation_at_any_byte_is_refused(tmp_path: Path) -> None:
    for length in range(len(VALID)):
        assert reason_for(tmp_path, VALID[:length])


def test_more_strings_than_any_vocabulary_are_refused_before_they_are_read(tmp_path: Path) -> None:
    count = MAX_ARRAY_STRINGS + 1
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([("x", Raw(ARRAY, struct.pack("<IQ", STRING, count)))], []))
    os.truncate(path, 16 * count)  # a hole: no disk is used

    started = time.perf_counter()
    with pytest.raises(ModelFileInvalid, match="strings in arrays"):
        read_header(path)
    assert time.perf_counter() - started < SOON_S


def test_header_that_never_ends_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([("x", Raw(ARRAY, struct.pack("<IQ", U8, 2**33)))], []))
    os.truncate(path, 2**34)

    with pytest.raises(ModelFileInvalid, match=f"headers may have {MAX_HEADER_BYTES}"):
        read_header(path)


def test_many_small_arrays_do_not_fill_memory(tmp_path: Path) -> None:
    many = Raw(ARRAY, struct.pack("<IQ", U32, 1024) + bytes(4096))
    content = gguf_bytes([*metadata().items(), *((f"x{i}", many) for i in range(500))])
    path = write_gguf(tmp_path / "m.gguf", content)

    tracemalloc.start()
    read_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 6 * 1024 * 1024


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileInvalid, match="No such file"):
        read_header(tmp_path / "none.gguf")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileInvalid, match="cannot be read"):
        read_header(tmp_path)


def test_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")

    with pytest.raises(ModelFileInvalid, match="not a regular file"):
        read_header(tmp_path / "pipe.gguf")


def test_float_special_values_in_metadata_are_harmless(tmp_path: Path) -> None:
    content = with_pair("llama.rope.freq_base", Raw(F32, struct.pack("<f", float("nan"))))

    assert header_of(tmp_path, content).n_layer == 2


# Anything at all

_quick = settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
_small = gguf_bytes({**metadata(), "llama.attention.head_count_kv": [2, 2], "split.count": 1, "split.no": 0})
_numbers = st.sampled_from([0, 1, 2, 8, 9, 31, 255, 2**16, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1])


def is_answered(path: Path) -> bool:
    try:
        return isinstance(read_header(path), GgufHeader)
    except ModelFileInvalid as error:
        return bool(error.data["reason"])


@_quick
@given(edits=st.lists(st.tuples(st.integers(0, len(_small) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_changed_bytes_give_a_header_or_a_reason(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    content = bytearray(_small)
    for position, byte in edits:
        content[position] = byte

    assert is_answered(write_gguf(tmp_path / "m.gguf", bytes(content)))


@_quick
@given(position=st.integers(4, len(_small) - 8), number=_numbers, cut=st.integers(0, len(_small)))
def test_any_changed_number_and_length_give_a_header_or_a_reason(
    tmp_path: Path, position: int, number: int, cut: int
) -> None:
    content = bytearray(_small)
    content[position : position + 8] = struct.pack("<Q", number)

    assert is_answered(write_gguf(tmp_path / "m.gguf", bytes(content)))
    assert is_answered(write_gguf(tmp_path / "m.gguf", bytes(content[:cut])))


@_quick
@given(tail=st.binary(max_size=400))
def test_any_bytes_after_the_magic_give_a_header_or_a_reason(tmp_path: Path, tail: bytes) -> None:
    assert is_answered(write_gguf(tmp_path / "m.gguf", b"GGUF\x03\0\0\0" + tail))
