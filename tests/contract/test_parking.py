"""Parking on llama.cpp: the logits of a sequence that was parked are, bit for bit, those of one that stayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from packtrain.broker.messages import Recipe, SamplingParams
from packtrain.broker.structured import JsonSchema
from packtrain.workers.backends import llama_cpp_states
from packtrain.workers.backends.base import DecodeFailed, StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
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
