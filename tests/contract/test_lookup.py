"""Prompt lookup on a real model: in deterministic numerics guesses change no bit, alone and in company."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import pytest

from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.sequence import End, Ended, SequenceRequest, Tokens
from packtrain.workers.load_options import LoadOptions, Speculation
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.contract

N_SLOTS, N_CTX = 4, 320
OPTIONS = LoadOptions(numerics="deterministic", speculation="prompt-lookup")
#: Four letters are nearly all that it says, so that much repeats and some guesses are right.
BIASED = {"logit_bias": dict.fromkeys(range(70, 74), 6.0), "logprobs": 2}
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "logprobs": 2},
    "greedy of few letters": {"temperature": 0, **BIASED},
    "drawn of few letters": {"temperature": 0.8, **BIASED},
    "with penalties": {"temperature": 0.8, "repeat_penalty": 1.1, "penalty_last_n": 8, **BIASED},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_tiny_model(folder / "tiny.gguf", kind=gguf.GGMLQuantizationType.Q8_0)


@pytest.fixture(scope="module")
def backend(path: Path) -> Iterator[LlamaCppBackend]:
    backend = LlamaCppBackend(path, model="tiny", n_slots=N_SLOTS, n_ctx=N_CTX, n_threads=1, options=OPTIONS)
    assert backend.shape.recipe == "batched"
    yield backend
    backend.shutdown()


@dataclass
class Asked:
    """A request and what came of it."""

    told: list[tuple[int, float, tuple[float, ...]]] = field(default_factory=list)
    text: str = ""
    ends: list[Ended] = field(default_factory=list)

    def on_tokens(self, tokens: Tokens) -> None:
        self.text += tokens.text
        self.told += [(e.token, e.logprob, tuple(top.logprob for top in e.top)) for e in tokens.logprobs]

    @property
    def answer(self) -> tuple[list[tuple[int, float, tuple[float, ...]]], str, End, str]:
        return self.told, self.text, self.ends[0].end, self.ends[0].tail


def run(
    backend: LlamaCppBackend, requests: dict[int, dict[str, Any]], speculation: Speculation, *, max_new: int = 60
) -> tuple[dict[int, Asked], Engine]:
    """The answers to these requests, by the steps at which they come."""
    for slot in range(N_SLOTS):
        backend.truncate(slot, 0)
    engine = Engine(backend, clock=lambda: 0, speculation=speculation)
    found = {}
    for at in range(max(requests) + 1):
        if at in requests:
            found[at] = asked = Asked()
            prompt = [1, *(70 + (at + i * i) % 4 for i in range(30 + at))]
            params = SamplingParams.model_validate(requests[at])
            engine.submit(
                SequenceRequest(JobId(f"j{at}"), tuple(prompt), params, at, max_new, asked.on_tokens, asked.ends.append)
            )
        engine.step()
    while engine.is_busy:
        engine.step()
    return found, engine


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_guesses_change_no_bit_of_an_answer(backend: LlamaCppBackend, params: dict[str, Any]) -> None:
    plain, _ = run(backend, {0: params}, "off")
    found, engine = run(backend, {0: params}, "prompt-lookup")

    assert found[0].answer == plain[0].answer
    assert engine.stats.guessed > engine.stats.guessed_right
    if params is PARAMS["greedy of few letters"]:
        assert engine.stats.guessed_right > 5


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_guesses_change_no_bit_in_company(backend: LlamaCppBackend, params: dict[str, Any]) -> None:
    requests = dict.fromkeys((0, 1, 5, 9, 20, 40), params)
    alone = {at: run(backend, {at: params}, "off")[0][at].answer for at in requests}

    found, engine = run(backend, requests, "prompt-lookup")

    assert {at: asked.answer for at, asked in found.items()} == alone
    assert engine.stats.guessed


@pytest.mark.parametrize("extra", [{"stop": ["DEC", "GG", "ED"]}, {"logit_bias": {2: 7.0, 70: 8.0, 71: 8.0}}])
def test_an_answer_ends_where_it_would_have(backend: LlamaCppBackend, extra: dict[str, Any]) -> None:
    params = {**PARAMS["drawn of few letters"], **extra}
    requests = dict.fromkeys(range(12), params)
    plain, _ = run(backend, requests, "off")

    found, _ = run(backend, requests, "prompt-lookup")

    assert [found[at].answer for at in found] == [plain[at].answer for at in plain]
    assert End.STOP in {asked.ends[0].end for asked in found.values()}


def test_a_slot_is_filled_to_its_last_token(backend: LlamaCppBackend) -> None:
    params = PARAMS["greedy of few letters"] | {"ignore_eos": True}
    plain, _ = run(backend, {0: params}, "off", max_new=N_CTX - 31)

    found, engine = run(backend, {0: params}, "prompt-lookup", max_new=N_CTX - 31)

    assert found[0].answer == plain[0].answer
    assert len(found[0].told) == N_CTX - 31
    assert engine.stats.guessed_right > 100


def test_guessing_is_not_in_the_numerics_class_of_deterministic_answers(backend: LlamaCppBackend) -> None:
    assert "speculation" not in backend.build.flags
