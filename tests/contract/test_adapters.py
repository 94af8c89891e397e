"""LoRA adapters, shown on the scripted model and on llama.cpp with a tiny one and tiny adapters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from packtrain.broker.fields import Numerics
from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.adapters import AdapterFile, AdapterSet
from packtrain.workers.backends.base import Backend, StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.backends.scripted import ScriptedBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.sequence import Ended, SequenceRequest, Tokens
from packtrain.workers.load_options import LoadOptions
from tests.support.tiny_lora import write_tiny_lora
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.contract

N_SLOTS, N_CTX = 4, 256
GREEDY = SamplingParams(temperature=0)
PIRATE: AdapterSet = (("pirate", 1.0),)
HALF: AdapterSet = (("pirate", 0.5),)
POLITE: AdapterSet = (("polite", 1.0),)
BOTH: AdapterSet = (*PIRATE, *POLITE)
LONG = "x" * 40 + "the quick brown fox"


class Run:
    """A request to an engine that is stepped by hand."""

    def __init__(self, engine: Engine, backend: Backend, name: str, text: str, adapters: AdapterSet) -> None:
        self.tokens: list[int] = []
        self.ends: list[Ended] = []
        prompt = tuple(backend.tokenize(text))
        engine.submit(
            SequenceRequest(JobId(name), prompt, GREEDY, 1, 12, self._on_tokens, self.ends.append, adapters=adapters)
        )

    def _on_tokens(self, tokens: Tokens) -> None:
        self.tokens += tokens.tokens

    @property
    def num_reused(self) -> int:
        return self.ends[0].num_reused


def run(backend: Backend, *requests: tuple[str, AdapterSet], one_by_one: bool = False) -> list[Run]:
    engine = Engine(backend, clock=time.monotonic)
    runs: list[Run] = []
    for number, (text, adapters) in enumerate(requests):
        runs.append(Run(engine, backend, f"j{number}", text, adapters))
        while one_by_one and engine.is_busy:
            engine.step()
    while engine.is_busy:
        engine.step()
    return runs


def answers(backend: Backend, *requests: tuple[str, AdapterSet]) -> list[list[int]]:
    return [run.tokens for run in run(backend, *requests)]


class AdapterContract:
    """Inherited by one class for each backend. It has the usable adapters `pirate` and `polite`."""

    def test_it_says_which_adapters_there_are(self, backend: Backend) -> None:
        assert {name for name, adapter in backend.adapters.items() if not adapter.fault} == {"pirate", "polite"}

    def test_an_adapter_changes_the_answer_and_each_in_its_own_way(self, backend: Backend) -> None:
        found = [answers(backend, (LONG, adapters))[0] for adapters in ((), PIRATE, HALF, POLITE, BOTH)]

        assert len({tuple(tokens) for tokens in found}) == 5

    def test_after_an_adapter_the_model_answers_as_before(self, backend: Backend) -> None:
        before = answers(backend, (LONG, ()))
        answers(backend, (LONG, PIRATE))

        assert answers(backend, (LONG, ())) == before

    def test_jobs_with_other_adapters_run_beside_each_other_as_alone(self, backend: Backend) -> None:
        requests = [(LONG, PIRATE), (LONG, ()), (LONG + "!", POLITE), ("other", PIRATE)]
        alone = [answers(backend, request)[0] for request in requests]

        assert answers(backend, *requests) == alone

    def test_a_prefix_of_one_adapter_is_never_used_for_another(self, backend: Backend) -> None:
        expected = [answers(backend, (LONG, adapters))[0] for adapters in (PIRATE, (), POLITE, HALF)]

        found = run(backend, (LONG, PIRATE), (LONG, ()), (LONG, POLITE), (LONG, HALF), one_by_one=True)

        assert [r.tokens for r in found] == expected
        assert [r.num_reused for r in found] == [0, 0, 0, 0]

    def test_a_prefix_of_the_same_adapter_is(self, backend: Backend) -> None:
        text = LONG * 3  # more than a chunk, for the serial recipe
        first, between, again = run(backend, (text, PIRATE), ("other", ()), (text, PIRATE), one_by_one=True)

        assert again.tokens == first.tokens
        assert (between.num_reused, again.num_reused > 0) == (0, True)

    def test_rows_of_two_sets_in_one_step_are_refused(self, backend: Backend) -> None:
        for seq_id, adapters in enumerate(((), PIRATE)):
            backend.truncate(seq_id, 0)
            backend.open(seq_id, GREEDY, 1, [], 0, adapters=adapters)

        with pytest.raises((AssertionError, ValueError)):
            backend.step([StepRows(0, 0, [5], True), StepRows(1, 0, [5], True)], lambda: False)
        for seq_id in range(2):
            backend.close(seq_id)


class TestScripted(AdapterContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return ScriptedBackend(n_slots=N_SLOTS, n_ctx=N_CTX, adapters={"pirate": 1.0, "polite": 1.0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and adapters, good and bad."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder / "tiny.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    write_tiny_lora(folder / "pirate.gguf", seed=1)
    write_tiny_lora(folder / "polite.gguf", seed=2)
    write_tiny_lora(folder / "wide.gguf", n_embd=128)
    write_tiny_lora(folder / "damaged.gguf", scale=float("nan"))
    write_tiny_lora(folder / "bytes.gguf", rank=32, kind=gguf.GGMLQuantizationType.Q8_0)
    return folder


def load(folder: Path, *names: str, numerics: Numerics = "fast", model: str = "tiny") -> LlamaCppBackend:
    return LlamaCppBackend(
        folder / f"{model}.gguf",
        model=model,
        n_slots=N_SLOTS,
        n_ctx=N_CTX,
        n_threads=1,
        options=LoadOptions(numerics=numerics),
        adapters=[AdapterFile(name=name, path=str(folder / f"{name}.gguf")) for name in names],
    )


@pytest.fixture(scope="module", params=["fast", "deterministic"])
def loaded(folder: Path, request: pytest.FixtureRequest) -> Iterator[LlamaCppBackend]:
    backend = load(folder, "pirate", "polite", "wide", "tiny", "gone", numerics=request.param)
    yield backend
    backend.shutdown()


class TestLlamaCpp(AdapterContract):
    @pytest.fixture
    def backend(self, loaded: LlamaCppBackend) -> Backend:
        return loaded

    def test_one_that_cannot_be_used_says_why_and_fails_no_other(self, backend: Backend) -> None:
        faults = {name: adapter.fault for name, adapter in backend.adapters.items()}

        assert "incorrect shape" in faults["wide"]
        assert "no adapter but a model" in faults["tiny"]
        assert "cannot be read" in faults["gone"]


def logits(backend: LlamaCppBackend, adapters: AdapterSet) -> np.ndarray[Any, Any]:
    backend.truncate(0, 0)
    backend.open(0, GREEDY, 1, [], 0, adapters=adapters)
    backend.step([StepRows(0, 0, [5, 6, 7], True)], lambda: False)
    backend.close(0)
    return backend.logits(1).copy()


def test_an_adapter_that_is_taken_off_leaves_no_trace_in_the_logits(folder: Path) -> None:
    backend, plain = load(folder, "pirate", "polite"), load(folder)
    base = logits(plain, ())
    found = {adapters: logits(backend, adapters) for adapters in (PIRATE, HALF, BOTH, ())}

    assert np.array_equal(found[()], base)
    assert not any(np.allclose(found[adapters], base) for adapters in (PIRATE, HALF, BOTH))
    backend.shutdown()
    plain.shutdown()


@pytest.mark.parametrize(
    ("adapters", "recipe"), [([], "batched"), (["bytes"], "batched"), (["bytes", "pirate"], "serial")]
)
def test_a_recipe_holds_with_each_adapter(folder: Path, adapters: list[str], recipe: str) -> None:
    """Of 8-bit matrices each row is computed alone; of those in 32 bits llamafile computes a single one otherwise."""
    backend = load(folder, *adapters, numerics="deterministic")

    assert backend.shape.recipe == recipe
    assert not any(adapter.fault for adapter in backend.adapters.values())
    backend.shutdown()


def test_in_the_batched_recipe_adapters_take_turns_without_a_trace(folder: Path) -> None:
    backend = load(folder, "bytes", numerics="deterministic")
    mine: AdapterSet = (("bytes", 1.0),)
    requests = [(LONG, mine), (LONG, ()), (LONG[::-1], mine), (LONG[::-1], ())]
    alone = [answers(backend, request)[0] for request in requests]

    assert answers(backend, *requests) == alone
    backend.shutdown()


def test_a_damaged_one_costs_a_deterministic_model_nothing_but_itself(folder: Path) -> None:
    backend = load(folder, "damaged", "pirate", numerics="deterministic")

    assert "it computes nothing" in backend.adapters["damaged"].fault
    assert not backend.adapters["pirate"].fault
    assert answers(backend, ("the", PIRATE)) == answers(backend, ("the", PIRATE))
    backend.shutdown()
