"""Parking: bulk sequences make room for interactive ones, and nothing of theirs is changed by it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import DecodeFailed, Parked
from packtrain.workers.backends.scripted import ScriptedBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.parking import MAX_PARKED, MIN_LEFT_TO_PARK, MIN_STAY, Lot, most_parked
from packtrain.workers.engine.sequence import End, Ended, Sequence, SequenceRequest, Tokens
from packtrain.workers.engine.text import TextStream

pytestmark = pytest.mark.unit

LONG = 100  # tokens


class Bench:
    """An engine that is stepped by hand, on a clock that is moved by hand."""

    def __init__(self, backend: ScriptedBackend | None = None, *, n_slots: int = 2, parks: bool = True) -> None:
        self.now = 0.0
        self.backend = backend or ScriptedBackend(n_slots=n_slots)
        self.engine = Engine(self.backend, clock=lambda: self.now, parks=parks)
        self.told: dict[str, list[Tokens]] = {}
        self.ends: dict[str, Ended] = {}

    def submit(
        self, prompt: str, *, bulk: bool = False, max_new: int = LONG, deadline: float | None = None
    ) -> list[Tokens]:
        """Ask for an answer; what will be told of it."""
        told = self.told[prompt] = []

        def on_end(ended: Ended) -> None:
            assert prompt not in self.ends
            self.ends[prompt] = ended

        self.engine.submit(
            SequenceRequest(
                JobId(prompt), tuple(prompt.encode()), SamplingParams(), 1, max_new, told.append, on_end,
                deadline=deadline, is_bulk=bulk,
            )
        )  # fmt: skip
        return told

    def fill(self, *, max_new: int = LONG) -> list[list[Tokens]]:
        """A bulk sequence in each slot, all decoding."""
        prompts = [f"!long bulk {number}" for number in range(self.backend.shape.n_slots)]
        told = [self.submit(prompt, bulk=True, max_new=max_new) for prompt in prompts]
        self.steps(2)
        assert all(told)
        return told

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    def finish(self) -> None:
        while self.engine.is_busy:
            self.engine.step()

    def text(self, prompt: str) -> str:
        assert [part.index for part in self.told[prompt]] == list(range(len(self.told[prompt])))
        return "".join(part.text for part in self.told[prompt])


def whole(prompt: str, length: int = LONG) -> str:
    return (prompt[::-1] * length)[:length]


def test_an_interactive_sequence_takes_the_slot_of_a_bulk_one_at_once_and_both_end_right() -> None:
    bench = Bench()
    bench.fill()
    told = bench.submit("hello")

    bench.steps(1)

    assert told
    assert (bench.engine.stats.parked, bench.engine.stats.slots_used) == (1, 2)
    bench.finish()
    assert bench.text("hello") == "olleh"
    for prompt in ("!long bulk 0", "!long bulk 1"):
        assert (bench.text(prompt), bench.ends[prompt].end) == (whole(prompt), End.LENGTH)
    assert (bench.engine.stats.parked, bench.engine.stats.parkings) == (0, 1)


def test_a_parked_sequence_is_told_nothing_and_goes_on_before_new_bulk_ones() -> None:
    bench = Bench(n_slots=1)
    (told,) = bench.fill()
    bench.submit("hello")
    bench.submit("new", bulk=True)
    bench.steps(3)
    num_told = len(told)
    bench.steps(2)
    assert len(told) == num_told

    bench.steps(5)

    assert "hello" in bench.ends
    assert len(told) > num_told
    assert not bench.told["new"]


def test_no_sequence_is_parked_for_a_bulk_one_or_where_it_is_switched_off_or_while_a_slot_is_free() -> None:
    for bench, bulk in ((Bench(), True), (Bench(parks=False), False)):
        bench.fill()
        told = bench.submit("hello", bulk=bulk)
        bench.steps(10)
        assert not told
    free = Bench(n_slots=3)
    free.submit("!long one", bulk=True)
    free.submit("hello")
    free.steps(3)
    assert free.engine.stats.parkings == 0


def test_no_interactive_sequence_is_parked() -> None:
    bench = Bench(n_slots=1)
    bench.submit("!long first")
    bench.steps(2)
    told = bench.submit("hello")

    bench.steps(10)

    assert not told
    assert bench.engine.stats.parkable == 0


def test_how_many_can_be_parked_is_told_while_all_slots_are_taken() -> None:
    bench = Bench(n_slots=3)
    bench.submit("!long one", bulk=True)
    bench.submit("!long two", bulk=True)
    bench.steps(2)
    assert bench.engine.stats.parkable == 0  # a slot is free

    bench.submit("!long mine")
    bench.steps(2)
    assert bench.engine.stats.parkable == 2

    bench.submit("!long mine, too")
    bench.steps(1)
    assert bench.engine.stats.parkable == 1


def test_a_sequence_that_is_about_to_end_keeps_its_slot() -> None:
    bench = Bench(n_slots=1)
    bench.fill(max_new=MIN_LEFT_TO_PARK + 1)
    bench.submit("hello")

    bench.finish()

    assert bench.engine.stats.parkings == 0
    assert bench.text("hello") == "olleh"


def test_a_sequence_that_came_back_stays_for_a_while_however_many_interactive_ones_come() -> None:
    bench = Bench(n_slots=1)
    (told,) = bench.fill(max_new=300)
    stays = []
    for number in range(4):
        begun = len(told)
        bench.submit(f"hello {number}")
        while f"hello {number}" not in bench.ends:
            bench.steps(1)
        stays.append(len(told) - begun)
        bench.steps(1)  # it comes back

    assert stays == [0, *[MIN_STAY - 1] * 3]
    bench.finish()
    assert bench.text("!long bulk 0") == whole("!long bulk 0", 300)


@pytest.mark.parametrize("end", [End.CANCELLED, End.LOST])
def test_a_parked_sequence_can_be_ended_from_outside(end: End) -> None:
    bench = Bench(n_slots=1)
    bench.fill()
    bench.submit("hello")
    bench.steps(1)

    bench.engine.cancel(JobId("!long bulk 0"), end)
    bench.finish()

    assert bench.ends["!long bulk 0"].end is end
    assert bench.ends["!long bulk 0"].num_output == len(bench.told["!long bulk 0"])
    assert bench.text("hello") == "olleh"


def test_a_parked_sequence_ends_at_its_deadline() -> None:
    bench = Bench(n_slots=1)
    bench.submit("!long bulk", bulk=True, deadline=50)
    bench.steps(2)
    bench.submit("hello")
    bench.steps(1)

    bench.now = 60
    bench.steps(1)

    assert bench.ends["!long bulk"].end is End.EXPIRED
    assert "hello" not in bench.ends


def test_an_engine_that_stops_releases_parked_sequences() -> None:
    bench = Bench(n_slots=1)
    bench.fill()
    bench.submit("hello")
    bench.steps(1)

    bench.engine.stop()
    bench.engine.run()

    assert {ended.end for ended in bench.ends.values()} == {End.RELEASED}
    assert not bench.engine.is_busy


def test_an_engine_with_nothing_but_parked_sequences_is_busy() -> None:
    bench = Bench(n_slots=1)
    bench.fill()
    bench.submit("hello")
    bench.steps(1)

    bench.engine.cancel(JobId("hello"), End.CANCELLED)
    bench.engine._read_inbox()

    assert bench.engine.stats.slots_used == 0
    assert bench.engine.is_busy


class Full(ScriptedBackend):
    """There is no memory to park anything."""

    def park(self, seq_id: int) -> Parked:
        raise DecodeFailed("no memory")


def test_a_sequence_that_cannot_be_parked_runs_on_and_is_not_tried_again() -> None:
    bench = Bench(Full(n_slots=2))
    first, second = bench.fill()
    told = bench.submit("hello")
    lengths = len(first), len(second)

    bench.steps(3)

    assert (len(first), len(second)) == tuple(length + 3 for length in lengths)
    assert not told
    assert (bench.engine.stats.parked, bench.engine.stats.parkable) == (0, 0)
    bench.finish()
    assert bench.text("hello") == "olleh"


class Forgetful(ScriptedBackend):
    """What was parked cannot be brought back."""

    def unpark(self, parked: Parked, seq_id: int) -> None:
        super().unpark(parked, seq_id)
        self._caches[seq_id] = [0] * 5
        raise DecodeFailed("cannot be written")


def test_a_parked_sequence_whose_cache_is_lost_is_computed_again_and_goes_on() -> None:
    bench = Bench(Forgetful(n_slots=1))
    bench.fill()
    bench.submit("hello")

    bench.finish()

    assert bench.text("!long bulk 0") == whole("!long bulk 0")


def test_no_more_are_parked_than_may_be_and_the_rest_waits() -> None:
    bench = Bench(n_slots=MAX_PARKED + 2)
    bench.fill()
    told = [bench.submit(f"!long hello {number}") for number in range(MAX_PARKED + 2)]

    bench.steps(2)

    assert [bool(each) for each in told] == [True] * MAX_PARKED + [False] * 2
    assert bench.engine.stats.parked == MAX_PARKED


def sequence(
    name: str = "a",
    *,
    num_cached: int = 20,
    num_output: int = 10,
    max_new: int = LONG,
    order: int = 0,
    bulk: bool = True,
) -> Sequence:
    nothing: Callable[[object], None] = lambda _: None  # noqa: E731
    prompt = (1,) * (num_cached - num_output + 1)
    request = SequenceRequest(JobId(name), prompt, SamplingParams(), 1, max_new, nothing, nothing, is_bulk=bulk)
    tokens = [1] * (num_cached + 1)
    return Sequence(request, 0, order, TextStream(()), tokens, num_cached=num_cached, has_begun=True)


def lot(*, n_slots: int = 4, n_ctx: int = 100, can_share: bool = True) -> Lot:
    return Lot(n_slots=n_slots, n_ctx=n_ctx, can_share=can_share)


def test_the_one_that_is_cheapest_to_hold_goes_first_then_the_one_with_most_left_then_the_youngest() -> None:
    long, short = sequence(num_cached=60), sequence(num_cached=20, max_new=50, order=3)
    most_left, youngest = sequence(num_cached=20, max_new=90, order=1), sequence(num_cached=20, max_new=90, order=2)

    found = lot().candidates([long, short, most_left, youngest], [])

    assert found == [youngest, most_left, short, long]


def test_one_whose_beginning_others_wait_for_stays() -> None:
    held = sequence(num_cached=20)
    held.awaited_to = 40

    assert lot().candidates([held], []) == []


def test_one_that_has_not_begun_stays() -> None:
    new = sequence()
    new.has_begun = False

    assert lot().candidates([new], []) == []


def test_no_more_tokens_are_held_than_a_quarter_of_the_cells() -> None:
    parked, fits, too_long = sequence(num_cached=60), sequence(num_cached=40), sequence(num_cached=41)

    assert lot().candidates([fits, too_long], [parked]) == [fits]


def test_where_parts_cannot_be_kept_each_counts_as_a_whole_slot() -> None:
    parked, small = sequence(num_cached=12), sequence(num_cached=12)

    assert lot(can_share=False).candidates([small], []) == [small]
    assert lot(can_share=False).candidates([small], [parked]) == []
    assert lot(n_slots=2, can_share=False).candidates([small], []) == []


@pytest.mark.parametrize(("n_slots", "most"), [(0, 0), (1, 1), (3, 3), (4, 4), (64, MAX_PARKED)])
def test_the_number_that_may_be_parked_grows_with_the_slots_to_a_bound(n_slots: int, most: int) -> None:
    assert most_parked(n_slots) == most
    live = [sequence(str(number), num_cached=12) for number in range(n_slots)]
    assert lot(n_slots=n_slots, n_ctx=1000).count(live, []) == most
