"""Bulk sequences stand back for interactive prompts, break their steps off for them, and get on all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import DecodeFailed, Interrupted
from packtrain.workers.backends.scripted import ScriptedBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.sequence import End, Ended, SequenceRequest, Tokens

pytestmark = pytest.mark.unit


class Model(ScriptedBackend):
    """Something may happen within a step, which is broken off when the engine says so."""

    def __init__(self, *, n_slots: int = 4) -> None:
        super().__init__(n_slots=n_slots)
        self.within: Callable[[], object] = lambda: None
        self.num_broken_off = 0

    def _pass_time(self, seconds: float, should_stop: Callable[[], bool] | None) -> None:
        within, self.within = self.within, lambda: None
        within()
        if should_stop and should_stop():
            self.num_broken_off += 1
            raise Interrupted


class Bench:
    """An engine that is stepped by hand."""

    def __init__(self, *, n_slots: int = 4) -> None:
        self.model = Model(n_slots=n_slots)
        self.engine = Engine(self.model, clock=lambda: 0.0, prefill_budget=8)
        self.texts: dict[str, str] = {}
        self.ends: dict[str, End] = {}

    def submit(self, prompt: str, *, bulk: bool = False, max_new: int = 40) -> None:
        self.texts[prompt] = ""

        def on_tokens(tokens: Tokens) -> None:
            self.texts[prompt] += tokens.text

        def on_end(ended: Ended) -> None:
            self.texts[prompt] += ended.tail
            self.ends[prompt] = ended.end

        self.engine.submit(
            SequenceRequest(
                JobId(prompt), tuple(prompt.encode()), SamplingParams(), 1, max_new, on_tokens, on_end, is_bulk=bulk
            )
        )

    def bulk(self, *names: str) -> None:
        """Bulk sequences that decode."""
        for name in names:
            self.submit(f"!long {name}", bulk=True)
        while not all(self.texts[f"!long {name}"] for name in names):
            self.engine.step()

    def finish(self) -> None:
        while self.engine.is_busy:
            self.engine.step()

    def in_step(self, number: int) -> int:
        """Sequences in a step."""
        return len(self.model.steps[number])


def test_the_step_of_an_interactive_prompt_is_without_bulk_sequences() -> None:
    bench = Bench()
    bench.bulk("a", "b")
    bench.submit("hello, all of you out there")  # beside others only 8 tokens of it would fit into a step
    bench.engine.step()

    assert bench.in_step(-1) == 1
    assert bench.texts["hello, all of you out there"]
    bench.engine.step()
    assert bench.in_step(-1) == 3


def test_bulk_sequences_get_on_in_every_second_step_however_many_prompts_come() -> None:
    bench = Bench()
    bench.bulk("a", "b")
    counts = []
    for number in range(8):
        bench.submit(f"{number}", max_new=1)
        bench.engine.step()
        counts.append(bench.in_step(-1))

    assert counts == [1, 3, 1, 3, 1, 3, 1, 3]


def test_interactive_sequences_that_decode_are_in_every_step() -> None:
    bench = Bench()
    bench.bulk("a")
    bench.submit("!long chat", max_new=20)
    bench.engine.step()
    bench.submit("x" * 30)
    before = len(bench.texts["!long chat"])
    bench.engine.step()
    bench.engine.step()

    assert len(bench.texts["!long chat"]) == before + 2


def test_a_step_of_bulk_sequences_is_broken_off_when_an_interactive_request_comes_and_nothing_is_lost() -> None:
    bench = Bench()
    bench.bulk("a", "b")
    bench.model.within = lambda: bench.submit("chat")
    bench.engine.step()
    bench.engine.step()

    assert bench.model.num_broken_off == 1
    assert (bench.in_step(-1), bench.texts["chat"]) == (1, "t")
    bench.finish()
    assert bench.texts["chat"] == "tahc"
    for name in ("!long a", "!long b"):
        assert (bench.texts[name], bench.ends[name]) == ((name[::-1] * 40)[:40], End.LENGTH)


def test_a_step_with_an_interactive_sequence_goes_on_to_its_end() -> None:
    bench = Bench()
    bench.bulk("a")
    bench.submit("!long chat")
    bench.engine.step()
    bench.model.within = lambda: bench.submit("other")
    bench.engine.step()

    assert bench.model.num_broken_off == 0


def test_a_bulk_request_breaks_nothing_off() -> None:
    bench = Bench()
    bench.bulk("a")
    bench.model.within = lambda: bench.submit("other", bulk=True)
    bench.engine.step()

    assert bench.model.num_broken_off == 0


def test_of_two_steps_of_bulk_sequences_one_is_whole() -> None:
    bench = Bench()
    bench.bulk("a")
    broken = []
    for number in range(6):
        chat = f"{number}"
        bench.model.within = lambda chat=chat: bench.submit(chat, max_new=1)  # type: ignore[misc]
        bench.engine.step()  # of bulk sequences
        broken.append(bench.model.num_broken_off)
        while chat not in bench.ends:
            bench.engine.step()

    assert broken == [1, 1, 2, 2, 3, 3]
    assert len(bench.texts["!long a"]) >= 3


def test_a_step_after_a_failure_that_is_broken_off_counts_as_any_other() -> None:
    bench = Bench()
    bench.bulk("a", "b")

    def fail() -> None:
        bench.model.within = lambda: bench.submit("one", max_new=1)
        raise DecodeFailed("once")

    bench.model.within = fail
    bench.engine.step()  # fails; of those that run alone then the first is broken off
    assert bench.model.num_broken_off == 1
    while not bench.texts["one"]:
        bench.engine.step()
    bench.model.within = lambda: bench.submit("two", max_new=1)
    bench.engine.step()

    assert bench.model.num_broken_off == 1
