"""Deterministic mode on a real model: an answer is the same alone and in any company, to the last bit."""

from __future__ import annotations

import random
import time

import pytest

from packtrain.broker.ids import JobId
from packtrain.broker.messages import SamplingParams
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.sequence import Ended, SequenceRequest, Tokens
from tests.support.demo_model import MODEL, demo_model_folder

pytestmark = pytest.mark.e2e

N_SLOTS, N_CTX = 6, 768
Answer = list[tuple[int, float | None]]


class Run:
    """Requests on one engine, stepped by hand."""

    def __init__(self, backend: LlamaCppBackend, prefill_budget: int = 128) -> None:
        self.engine = Engine(backend, clock=time.monotonic, prefill_budget=prefill_budget)
        self.answers: dict[str, Answer] = {}
        self.ends: dict[str, Ended] = {}

    def submit(self, name: str, prompt: list[int], temperature: float) -> None:
        answer = self.answers.setdefault(name, [])

        def on_tokens(tokens: Tokens) -> None:
            answer.extend((lp.token, lp.logprob) for lp in tokens.logprobs)

        def on_end(ended: Ended) -> None:
            self.ends[name] = ended

        params = SamplingParams(temperature=temperature, logprobs=0, ignore_eos=True)
        seed = int(name.removeprefix("j"))
        self.engine.submit(SequenceRequest(JobId(name), tuple(prompt), params, seed, 12, on_tokens, on_end))

    def finish(self) -> None:
        while self.engine.is_busy:
            self.engine.step()


@pytest.fixture(scope="module")
def backend() -> LlamaCppBackend:
    path = demo_model_folder() / f"{MODEL}.gguf"
    return LlamaCppBackend(path, model=MODEL, n_slots=N_SLOTS, n_ctx=N_CTX, n_threads=1, numerics="deterministic")


def test_company_arrivals_prefixes_and_budgets_change_no_bit(backend: LlamaCppBackend) -> None:
    assert backend.shape.recipe == "batched"
    rng = random.Random(7)
    shared = [rng.randrange(5, 49_000) for _ in range(120)]
    jobs = []
    for number in range(8):
        own = [rng.randrange(5, 49_000) for _ in range(rng.choice([10, 33, 90]))]
        jobs.append((f"j{number}", [*(shared if number % 2 else []), *own], 0.8 if number % 3 else 0.0))

    alone = {}
    for name, prompt, temperature in jobs:
        run = Run(backend)
        run.submit(name, prompt, temperature)
        run.finish()
        alone[name] = run.answers[name]
    together = Run(backend, prefill_budget=70)
    for name, prompt, temperature in jobs:
        together.submit(name, prompt, temperature)
        for _ in range(rng.randrange(4)):
            together.engine.step()
    together.finish()

    assert together.engine.stats.batch_peak == N_SLOTS
    assert together.engine.stats.tokens_reused >= 120
    assert together.answers == alone
