"""Hashes of model files, and that a remembered one is never that of another file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from packtrain.workers.receipts import model_sha256, tokens_sha256

pytestmark = pytest.mark.unit


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_hashed_once_and_remembered(tmp_path: Path) -> None:
    model, cache = tmp_path / "m.gguf", tmp_path / "home" / "hashes.json"
    model.write_bytes(b"weights")
    assert model_sha256(model, cache) == sha256(b"weights")

    known = json.loads(cache.read_text())
    known[str(model)][-1] = "remembered"
    cache.write_text(json.dumps(known))

    assert model_sha256(model, cache) == "remembered"


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_another_file(tmp_path: Path) -> None:
    model, cache = tmp_path / "m.gguf", tmp_path / "hashes.json"
    model.write_bytes(b"before")
    times = (model.stat().st_atime_ns, model.stat().st_mtime_ns)
    model_sha256(model, cache)

    other = tmp_path / "other"
    other.write_bytes(b"after.")
    os.utime(other, ns=times)  # as `cp -p` and `rsync -t` do
    other.replace(model)

    assert model_sha256(model, cache) == sha256(b"after.")


@pytest.mark.parametrize("garbage", ["", "{", "[]", "null", '{"PATH": [SIZE, TIME]}', '{"PATH": 7}', "\udcff"])
def test_a_cache_that_says_nothing_sensible_is_not_believed(tmp_path: Path, garbage: str) -> None:
    model, cache = tmp_path / "m.gguf", tmp_path / "hashes.json"
    model.write_bytes(b"weights")
    status = model.stat()
    text = garbage.replace("PATH", str(model)).replace("SIZE", str(status.st_size))
    cache.write_bytes(text.replace("TIME", str(status.st_mtime_ns)).encode(errors="surrogateescape"))

    assert model_sha256(model, cache) == sha256(b"weights")


def test_a_cache_that_cannot_be_written_costs_only_the_next_hashing(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"weights")

    assert model_sha256(model, model / "hashes.json") == sha256(b"weights")


def test_a_split_model_is_hashed_with_all_its_parts(tmp_path: Path) -> None:
    cache = tmp_path / "hashes.json"
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(part.name.encode())
    before = model_sha256(parts[0], cache)

    parts[1].write_bytes(b"another second part")

    assert before == sha256("".join(sha256(p.name.encode()) for p in parts).encode())
    assert model_sha256(parts[0], cache) != before


def test_tokens_are_hashed_as_little_endian_integers() -> None:
    assert tokens_sha256([1, 258]) == sha256(b"\x01\0\0\0\x02\x01\0\0")
