"""Embedding beside decoding, stepped by hand: who shares a batch, who waits, and that every vector is its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker import vectors
from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import Interrupted
from packtrain.workers.backends.scripted import N_DIMS, ScriptedBackend
from packtrain.workers.engine.embedding import EmbedRequest, Vector, gather, to_bytes, to_length_one
from packtrain.workers.engine.engine import MAX_FAILURES_IN_A_ROW, Engine, EngineBroken
from packtrain.workers.engine.sequence import End, Ended, SequenceRequest

pytestmark = pytest.mark.unit


class Hooked(ScriptedBackend):
    """Something happens within each embedding; then it is broken off if the engine says so."""

    hook: Callable[[], object] = staticmethod(lambda: None)

    def embed(self, inputs: Sequence[Sequence[int]], should_stop: Callable[[], bool]) -> list[Vector]:
        self.hook()
        if should_stop():
            raise Interrupted
        return super().embed(inputs, should_stop)


class Bench:
    """An engine on a scripted model of 4 slots that takes 64 rows in a batch."""

    def __init__(self, *, prefill_budget: int = 32, embeds_only: bool = False) -> None:
        self.now = 100.0
        self.backend = Hooked(n_slots=4, embeds_only=embeds_only)
        self.engine = Engine(self.backend, clock=lambda: self.now, prefill_budget=prefill_budget)
        self.ends: dict[str, Ended] = {}

    def embed(self, text: str, *, deadline: float | None = None, dimensions: int | None = None) -> None:
        self.engine.submit(EmbedRequest(JobId(text), tuple(text.encode()), dimensions, self._ends(text), deadline))

    def generate(self, prompt: str) -> None:
        params = SamplingParams()
        request = SequenceRequest(
            JobId(prompt), tuple(prompt.encode()), params, 1, 100, lambda _: None, self._ends(prompt)
        )
        self.engine.submit(request)

    def finish(self) -> None:
        for _ in range(1000):
            if not self.engine.is_busy:
                return
            self.engine.step()
        raise AssertionError("the engine never came to an end")

    def vector(self, text: str) -> tuple[float, ...]:
        return vectors.from_wire(vectors.to_wire(self.ends[text].embedding))

    @property
    def batches(self) -> list[list[str]]:
        return [[bytes(tokens).decode() for tokens in batch] for batch in self.backend.embedded]

    def _ends(self, name: str) -> Callable[[Ended], None]:
        def on_end(ended: Ended) -> None:
            assert name not in self.ends, "ended twice"
            self.ends[name] = ended

        return on_end


@given(st.lists(st.integers(1, 100)), st.integers(1, 64), st.integers(1, 8))
def test_a_batch_takes_from_the_front_as_many_as_fit_and_at_least_one(
    lengths: list[int], max_rows: int, max_texts: int
) -> None:
    count = gather(lengths, max_rows=max_rows, max_texts=max_texts)

    assert count == 0 or count == 1 or sum(lengths[:count]) <= max_rows
    assert min(1, len(lengths)) <= count <= max_texts
    if count < min(len(lengths), max_texts):
        assert sum(lengths[: count + 1]) > max_rows


def test_those_that_wait_share_a_batch_and_each_vector_is_its_own() -> None:
    bench = Bench()
    for text in ("one", "two", "three"):
        bench.embed(text)
    bench.engine.step()
    alone = Bench()
    alone.embed("two")
    alone.finish()

    assert bench.batches == [["one", "two", "three"]]
    assert {ended.batch_peak for ended in bench.ends.values()} == {3}
    assert {ended.end for ended in bench.ends.values()} == {End.STOP}
    assert bench.vector("two") == alone.vector("two") != bench.vector("one")
    assert bench.engine.stats.batch_peak == 3
    assert not bench.engine.is_busy


def test_a_batch_ends_where_its_rows_or_sequences_do() -> None:
    bench = Bench()
    texts = ["a" * 40, "b" * 20, "c" * 20, "d" * 500, *"efghi"]
    for text in texts:
        bench.embed(text)
    bench.finish()

    assert bench.batches == [["a" * 40, "b" * 20], ["c" * 20], ["d" * 500], ["e", "f", "g", "h"], ["i"]]


def test_a_stream_waits_for_one_batch_at_most_and_for_a_smaller_one() -> None:
    bench = Bench(prefill_budget=32)
    bench.generate("!long stream")
    bench.engine.step()
    for number in range(12):
        bench.embed(f"text {number:02} of 17 row")  # so one to a batch beside a stream
    decoded = len(bench.backend.steps)
    bench.engine.step()

    assert len(bench.backend.steps) == decoded + 1
    assert [len(batch) for batch in bench.batches] == [1]
    bench.engine.cancel(JobId("!long stream"), End.CANCELLED)
    bench.finish()
    assert max(map(len, bench.batches)) == 3  # alone: as many as 64 rows take
    assert len(bench.ends) == 13


def test_a_stream_never_starves_embedding() -> None:
    bench = Bench()
    for number in range(4):
        bench.generate(f"!long stream {number}")
    for number in range(20):
        bench.embed(f"text {number}")
    for _ in range(10):
        bench.engine.step()

    assert len([end for end in bench.ends.values() if end.embedding]) == 20


def test_one_that_fails_ends_alone() -> None:
    bench = Bench()
    for text in ("one", "two !fail", "three"):
        bench.embed(text)
    bench.finish()

    ends = {text: ended.end for text, ended in bench.ends.items()}
    assert ends == {"one": End.STOP, "two !fail": End.FAILED, "three": End.STOP}
    assert bench.ends["two !fail"].error is not None
    assert "scripted failure" in str(bench.ends["two !fail"].error)


def test_a_model_that_embeds_nothing_any_more_breaks_the_engine_only_when_it_has_no_other_use() -> None:
    texts = [f"{number} !fail" for number in range(MAX_FAILURES_IN_A_ROW + 1)]
    useless, useful = Bench(embeds_only=True), Bench()
    for text in texts:
        useless.embed(text)
        useful.embed(text)
    useful.finish()

    with pytest.raises(EngineBroken):
        useless.finish()
    assert {ended.end for ended in useful.ends.values()} == {End.FAILED}
    assert len(useful.ends) == len(texts)
    assert len(useless.ends) == 8  # the last batch goes back to the queue with its jobs


def test_a_waiting_text_is_cancelled_or_expires() -> None:
    bench = Bench()
    bench.embed("cancelled")
    bench.embed("late", deadline=100)
    bench.embed("in time", deadline=101)
    bench.engine.cancel(JobId("cancelled"), End.CANCELLED)
    bench.finish()

    ends = {text: ended.end for text, ended in bench.ends.items()}
    assert ends == {"cancelled": End.CANCELLED, "late": End.EXPIRED, "in time": End.STOP}
    assert bench.batches == [["in time"]]


@pytest.mark.parametrize("reason", [End.CANCELLED, End.LOST])
def test_one_that_leaves_in_the_middle_of_a_batch_breaks_it_off_and_the_others_go_on(reason: End) -> None:
    bench = Bench()
    for text in ("one", "two", "three"):
        bench.embed(text)
    bench.backend.hook = lambda: bench.engine.cancel(JobId("two"), reason)
    bench.engine.step()
    assert bench.ends == {}
    bench.backend.hook = lambda: None
    bench.finish()

    assert bench.ends["two"].end is reason
    assert bench.batches == [["one", "three"]]


def test_a_deadline_that_passes_in_the_middle_breaks_a_batch_off() -> None:
    bench = Bench()
    bench.embed("one", deadline=105)
    bench.embed("two")

    def late() -> None:
        bench.now = 110

    bench.backend.hook = late
    bench.finish()

    assert {text: ended.end for text, ended in bench.ends.items()} == {"one": End.EXPIRED, "two": End.STOP}


def test_an_engine_within_a_batch_is_busy() -> None:
    bench = Bench()
    bench.embed("one")
    seen: list[bool] = []
    bench.backend.hook = lambda: seen.append(bench.engine.is_busy)
    bench.finish()

    assert seen == [True]


def test_what_waits_at_a_stop_is_released() -> None:
    bench = Bench()
    bench.embed("queued")
    bench.engine._read_inbox()
    bench.embed("new")
    bench.engine.stop()
    bench.engine.run()
    bench.embed("too late")

    assert {text: ended.end for text, ended in bench.ends.items()} == dict.fromkeys(
        ("queued", "new", "too late"), End.RELEASED
    )


def test_fewer_dimensions_are_the_first_ones_at_length_one() -> None:
    bench = Bench()
    bench.embed("whole")
    bench.finish()
    whole = np.array(bench.vector("whole"))
    bench.ends.clear()
    bench.embed("whole", dimensions=3)
    bench.finish()

    assert len(whole) == N_DIMS
    assert bench.vector("whole") == pytest.approx(whole[:3] / np.linalg.norm(whole[:3]), abs=1e-6)


def test_all_dimensions_are_the_vector_bit_by_bit() -> None:
    vector = to_length_one(np.array([1.0, 2.0, 4.0]))

    assert to_bytes(vector, 3) == to_bytes(vector, 7) == to_bytes(vector, None) == vector.tobytes()


def test_a_vector_of_zeros_has_no_direction_and_stays() -> None:
    assert to_length_one(np.zeros(4)).tolist() == [0, 0, 0, 0]


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_a_vector_survives_the_wire_bit_by_bit(numbers: list[float]) -> None:
    text = vectors.to_wire(np.array(numbers, "<f4").tobytes())

    assert vectors.from_wire(text) == tuple(numbers)


@pytest.mark.parametrize(("text", "reason"), [("a", "no base64"), ("AAAA", "3 bytes"), ("?", "no base64")])
def test_what_is_no_vector_is_refused(text: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        vectors.from_wire(text)
