"""The memory book: a measurement of the same load beats one of another, and that beats the estimate."""

from __future__ import annotations

from pathlib import Path

import pytest

from packtrain.broker.model_info import BufferMemory, ModelMemory
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.memory_book import MAX_LINES, LoadKey, MemoryBook, Readings, measured_bytes
from packtrain.workers.own_memory import OwnMemory

pytestmark = pytest.mark.unit

KEY = LoadKey(file="f", n_ctx=512, n_slots=4, build="b")
BUFFERS = (
    BufferMemory(buffer="CPU", weights=300, cache=200, compute=50),
    BufferMemory(buffer="CPU_REPACK", weights=100),
    BufferMemory(buffer="CUDA0", on_host=False, weights=900, cache=900, compute=900),
)
ESTIMATE = ModelMemory(source="llama.cpp", process_bytes=340, logits_bytes=10, buffers=BUFFERS)  # 1000 on the host
BEFORE = OwnMemory(private=100, mapped=30)


def readings(*, loaded_private: int = 540, loaded_mapped: int = 430, most_private: int = 0) -> Readings:
    return Readings(BEFORE, OwnMemory(private=loaded_private, mapped=loaded_mapped), most_private)


def key(**changes: object) -> LoadKey:
    return KEY.model_copy(update=changes)


def test_estimate_counts_what_is_in_the_machines_own_memory() -> None:
    assert ESTIMATE.estimated_bytes == ESTIMATE.required_bytes == 1000


def test_scratch_space_counts_in_full_before_a_large_step_was_computed() -> None:
    assert measured_bytes(readings(), ESTIMATE) == (540 + 50 + 10) + 30 + 300


def test_the_most_that_was_seen_counts_when_it_is_more() -> None:
    assert measured_bytes(readings(most_private=700), ESTIMATE) == 700 + 30 + 300


def test_weights_that_were_repacked_do_not_count_again_where_the_file_is_mapped() -> None:
    everything_mapped = readings(loaded_mapped=30 + 400)

    assert measured_bytes(everything_mapped, ESTIMATE) == 600 + 30 + 300


def test_weights_that_are_not_mapped_count_once() -> None:
    assert measured_bytes(readings(loaded_private=840, loaded_mapped=30), ESTIMATE) == 900 + 30


def test_what_a_load_took_is_reserved_for_the_next_like_it() -> None:
    book = MemoryBook(None)

    assert book.note_readings(KEY, readings(most_private=640), ESTIMATE)

    assert book.corrected(KEY, ESTIMATE).required_bytes == 970


def test_less_than_was_taken_before_changes_nothing() -> None:
    book = MemoryBook(None)
    book.note_readings(KEY, readings(most_private=800), ESTIMATE)

    assert not book.note_readings(KEY, readings(most_private=700), ESTIMATE)
    assert not book.note_readings(KEY, readings(most_private=801), ESTIMATE)

    assert book.corrected(KEY, ESTIMATE).required_bytes == 1130


def test_another_context_of_the_model_is_corrected_by_the_largest_ratio() -> None:
    book = MemoryBook(None)
    book.note_readings(KEY, readings(most_private=720), ESTIMATE)  # 1050 for 1000
    book.note_readings(key(n_ctx=256), readings(most_private=770), ESTIMATE)  # 1100 for 1000

    corrected = book.corrected(key(n_slots=8), ESTIMATE.model_copy(update={"process_bytes": 1340}))

    assert (corrected.measured_bytes, corrected.factor) == (0, 1.1)
    assert corrected.required_bytes == 2200


@pytest.mark.parametrize(
    "other", [{"file": "g"}, {"build": "c"}, {"options": LoadOptions(kv_type="q8_0")}], ids=["file", "build", "options"]
)
def test_other_models_builds_and_options_teach_nothing(other: dict[str, object]) -> None:
    book = MemoryBook(None)
    book.note_readings(KEY, readings(most_private=900), ESTIMATE)

    assert book.corrected(key(n_ctx=256, **other), ESTIMATE).required_bytes == 1000


def test_measurement_far_below_its_estimate_is_not_believed() -> None:
    book = MemoryBook(None)
    book.note_readings(KEY, readings(loaded_mapped=30 + 100), ESTIMATE)  # 730: most weights were dropped

    assert book.corrected(KEY, ESTIMATE).required_bytes == 1000
    assert book.corrected(key(n_ctx=256), ESTIMATE).required_bytes == 1000


def test_book_is_there_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "memory" / "n1.json"
    book = MemoryBook(path)
    book.note_estimate(KEY, ESTIMATE)
    book.note_readings(KEY, readings(most_private=640), ESTIMATE)

    again = MemoryBook(path)

    assert again.estimate(KEY) == ESTIMATE
    assert again.corrected(KEY, ESTIMATE).required_bytes == 970
    assert [file.name for file in path.parent.iterdir()] == ["n1.json"]


def test_book_that_cannot_be_read_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "n1.json"
    path.write_text('{"lines": [{"key"')

    book = MemoryBook(path)
    book.note_estimate(KEY, ESTIMATE)

    assert MemoryBook(path).estimate(KEY) == ESTIMATE


def test_book_without_a_place_to_write_goes_on(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("a file where the folder should be")
    book = MemoryBook(tmp_path / "memory" / "n1.json")

    book.note_estimate(KEY, ESTIMATE)

    assert book.estimate(KEY) == ESTIMATE


def test_oldest_lines_go_first() -> None:
    book = MemoryBook(None)
    for n_ctx in range(1, MAX_LINES + 2):
        book.note_estimate(key(n_ctx=n_ctx), ESTIMATE)

    assert book.estimate(key(n_ctx=1)) is None
    assert book.estimate(key(n_ctx=2)) == ESTIMATE
