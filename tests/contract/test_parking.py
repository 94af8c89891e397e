"""Parking on llama.cpp: the logits of a sequence that was parked are, bit for bit, those of one that stayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from packtrain.broker.fields import Recipe
from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.broker.structured import JsonSchema
from packtrain.workers.backends import llama_cpp_states
from packtrain.workers.backends.base import DecodeFailed, StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.sequence import Ended, SequenceRequest, Tokens
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.machine import MachineMemory
from tests.support.forgetful_models import write_recurrent_model, write_sliding_window_model
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.contract

N_SLOTS, N_CTX = 4, 128
GREEDY = SamplingParams(temperature=0)
PROMPT = list(range(10, 60))


def _q8(path: Path) -> Path:
    return write_tiny_model(path, kind=gguf.GGMLQuantizationType.Q8_0)


#: Model, numerics, and the recipe that it has then.
KINDS: dict[str, tuple[Callable[[Path], Path], LoadOptions, Recipe]] = {
    "fast": (write_tiny_model, LoadOptions(), "fast"),
    "batched": (_q8, LoadOptions(numerics="deterministic"), "batched"),
    "serial": (write_tiny_model, LoadOptions(numerics="deterministic"), "serial"),
    "sliding window": (write_sliding_window_model, LoadOptions(), "fast"),
    "recurrent": (write_recurrent_model, LoadOptions(), "fast"),
}


@pytest.fixture(scope="module", params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppBackend]:
    write, options, recipe = KINDS[request.param]
    path = write(tmp_path_factory.mktemp("model") / "tiny.gguf")
    backend = LlamaCppBackend(path, model="tiny", n_slots=N_SLOTS, n_ctx=N_CTX, n_threads=1, options=options)
    assert backend.shape.recipe == recipe
    assert backend.shape.can_share == (request.param not in ("sliding window", "recurrent"))
    yield backend
    backend.shutdown()


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[LlamaCppBackend]:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    backend = LlamaCppBackend(path, model="tiny", n_slots=N_SLOTS, n_ctx=N_CTX, n_threads=1)
    yield backend
    backend.shutdown()


class Alone:
    """A sequence whose every step is its own; it keeps the logits of each."""

    def __init__(self, backend: LlamaCppBackend, seq_id: int, params: SamplingParams = GREEDY) -> None:
        self.backend, self.seq_id, self.tokens, self.num_cached = backend, seq_id, list(PROMPT), 0
        self.logits: list[bytes] = []
        backend.truncate(seq_id, 0)
        backend.open(seq_id, params, 1, self.tokens, 0)

    def run(self, count: int) -> None:
        for _ in range(count):
            rows = StepRows(self.seq_id, self.num_cached, self.tokens[self.num_cached :], True)
            (sampled,) = self.backend.step([rows], lambda: False)
            self.logits.append(np.array(self.backend.logits(1)).tobytes())
            self.num_cached = len(self.tokens)
            self.tokens.append(sampled.token)


def _disturb(backend: LlamaCppBackend, slots: range) -> None:
    """Let others compute in these slots, together."""
    for seq_id in slots:
        backend.truncate(seq_id, 0)
        backend.open(seq_id, GREEDY, 1, [], 0)
    rows = [StepRows(seq_id, 0, list(range(100, 130 + seq_id)), True) for seq_id in slots]
    for each in [rows] if backend.shape.recipe != "serial" else [[row] for row in rows]:
        backend.step(each, lambda: False)
    for seq_id in slots:
        backend.close(seq_id)


@pytest.mark.parametrize("target", [1, 0, 3])
def test_the_logits_of_a_parked_sequence_are_those_of_one_that_stayed(backend: LlamaCppBackend, target: int) -> None:
    stayed = Alone(backend, 1)
    stayed.run(20)
    backend.close(1)
    sequence = Alone(backend, 1)
    sequence.run(7)

    for place in (2, target):
        parked = backend.park(sequence.seq_id)
        _disturb(backend, range(N_SLOTS))
        backend.unpark(parked, place)
        sequence.seq_id = place
        sequence.run(3)
    sequence.run(7)

    assert sequence.logits == stayed.logits
    assert sequence.tokens == stayed.tokens
    backend.close(target)


class Asked:
    """A request of an engine, and what came of it."""

    def __init__(
        self, backend: LlamaCppBackend, name: str, params: SamplingParams, *, length: int, is_bulk: bool = True
    ) -> None:
        self.told: list[tuple[int, float]] = []
        self.ends: list[Ended] = []
        backend.prepare(params)
        prompt = tuple(10 + (7 * i + len(name)) % 90 for i in range(length))
        self.request = SequenceRequest(
            JobId(name), prompt, params, 3, 40, self._on_tokens, self.ends.append, is_bulk=is_bulk
        )

    def _on_tokens(self, tokens: Tokens) -> None:
        self.told += [(entry.token, entry.logprob) for entry in tokens.logprobs]


def _bulk(backend: LlamaCppBackend) -> list[Asked]:
    words = {"type": "array", "items": {"enum": ["one", "two", "three"]}, "minItems": 8, "maxItems": 9}
    kinds: dict[str, dict[str, Any]] = {
        "drawn": {"temperature": 0.9, "repeat_penalty": 1.2},
        "greedy": {"temperature": 0, "logit_bias": dict.fromkeys(range(70, 74), 6.0)},
        "in a form": {"temperature": 1, "response_format": JsonSchema(words)},
        "scored prompt": {"temperature": 0.9, "prompt_logprobs": 1},
    }
    return [
        Asked(
            backend, name, SamplingParams(**fields, logprobs=0, ignore_eos=name != "in a form"), length=20 + 3 * place
        )
        for place, (name, fields) in enumerate(kinds.items())
    ]


@pytest.mark.parametrize("backend", ["batched", "serial"], indirect=True)
@pytest.mark.parametrize("begins", [2, 9])
def test_parked_jobs_of_every_kind_end_with_the_same_bits_as_alone(backend: LlamaCppBackend, begins: int) -> None:
    alone = []
    for number in range(4):
        asked = _bulk(backend)[number]
        engine = Engine(backend, clock=lambda: 0, speculation="prompt-lookup")
        engine.submit(asked.request)
        while engine.is_busy:
            engine.step()
        alone.append(asked)
    bulk = _bulk(backend)
    engine = Engine(backend, clock=lambda: 0, speculation="prompt-lookup")
    for asked in bulk:
        engine.submit(asked.request)
    for _ in range(begins):
        engine.step()
    talk = [Asked(backend, f"talk {n}", GREEDY, length=5 + n, is_bulk=False) for n in range(3)]
    for asked in talk:
        engine.submit(asked.request)
    while engine.is_busy:
        engine.step()

    assert engine.stats.parkings >= 2
    assert all(asked.ends for asked in talk)
    for mine, its in zip(bulk, alone, strict=True):
        assert mine.told
        assert mine.told == its.told
        assert mine.ends[0].end is its.ends[0].end
        assert mine.ends[0].prompt_logprobs == its.ends[0].prompt_logprobs


def test_a_parked_sequence_keeps_to_its_form(tiny: LlamaCppBackend) -> None:
    form = JsonSchema({"type": "object", "properties": {"a": {"enum": ["one", "two"]}}, "required": ["a"]})
    params = SamplingParams(temperature=1, response_format=form)
    tiny.prepare(params)
    stayed = Alone(tiny, 0, params)
    stayed.run(9)
    tiny.close(0)
    sequence = Alone(tiny, 1, params)
    sequence.run(4)

    tiny.unpark(tiny.park(1), 3)
    sequence.seq_id = 3
    sequence.run(5)

    assert sequence.tokens == stayed.tokens


@pytest.mark.parametrize("trouble", ["no room", "not read"])
def test_a_sequence_that_cannot_be_parked_goes_on_where_it_is(
    tiny: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    stayed = Alone(tiny, 0)
    stayed.run(6)
    sequence = Alone(tiny, 1)
    sequence.run(3)

    with monkeypatch.context() as broken:
        if trouble == "no room":
            little = MachineMemory(2**33, llama_cpp_states.SPARE_BYTES)
            broken.setattr("packtrain.workers.backends.llama_cpp_states.machine.memory", lambda: little)
        else:
            broken.setattr("llama_cpp.llama_cpp.llama_state_seq_get_data", lambda *_: 0)
        with pytest.raises(DecodeFailed, match="too little memory" if trouble == "no room" else "could be read"):
            tiny.park(1)
    sequence.run(3)

    assert sequence.tokens == stayed.tokens


def test_one_whose_cache_cannot_be_brought_back_goes_on_when_it_is_computed_again(
    tiny: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    stayed = Alone(tiny, 0)
    stayed.run(6)
    sequence = Alone(tiny, 1)
    sequence.run(3)
    parked = tiny.park(1)

    with monkeypatch.context() as broken:
        broken.setattr("llama_cpp.llama_cpp.llama_state_seq_set_data", lambda *_: 0)
        with pytest.raises(DecodeFailed, match="could not be written into slot 2"):
            tiny.unpark(parked, 2)
    sequence.seq_id, sequence.num_cached = 2, tiny.truncate(2, 0)
    sequence.run(3)

    assert sequence.tokens == stayed.tokens
