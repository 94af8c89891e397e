"""Deterministic mode on a real model: an answer is the same alone and in any company, to the last bit."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.broker.states import JobState
from packtrain.client import Tokens as Ids
from packtrain.client import text_of
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.sequence import Ended, SequenceRequest, Tokens
from packtrain.workers.load_options import LoadOptions, Speculation
from tests.support.demo_model import MODEL, demo_model_folder
from tests.support.fleets import Fleet, fleet, until_first_text

pytestmark = pytest.mark.e2e

N_SLOTS, N_CTX = 6, 768
Answer = list[tuple[int, float | None]]


class Run:
    """Requests on one engine, stepped by hand."""

    def __init__(
        self, backend: LlamaCppBackend, prefill_budget: int = 128, *, speculation: Speculation = "off"
    ) -> None:
        self.engine = Engine(backend, clock=time.monotonic, prefill_budget=prefill_budget, speculation=speculation)
        self.answers: dict[str, Answer] = {}
        self.ends: dict[str, Ended] = {}

    def submit(self, name: str, prompt: list[int], temperature: float, *, max_new: int = 12) -> None:
        answer = self.answers.setdefault(name, [])

        def on_tokens(tokens: Tokens) -> None:
            answer.extend((lp.token, lp.logprob) for lp in tokens.logprobs)

        def on_end(ended: Ended) -> None:
            self.ends[name] = ended

        params = SamplingParams(temperature=temperature, logprobs=0, ignore_eos=True)
        seed = int(name.removeprefix("j"))
        self.engine.submit(SequenceRequest(JobId(name), tuple(prompt), params, seed, max_new, on_tokens, on_end))

    def finish(self) -> None:
        while self.engine.is_busy:
            self.engine.step()


@pytest.fixture(scope="module")
def backend() -> LlamaCppBackend:
    path = demo_model_folder() / f"{MODEL}.gguf"
    return LlamaCppBackend(
        path, model=MODEL, n_slots=N_SLOTS, n_ctx=N_CTX, n_threads=1, options=LoadOptions(numerics="deterministic")
    )


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


def test_guesses_change_no_bit(backend: LlamaCppBackend) -> None:
    quoted = "The list:\n1. Lima\n2. Oslo\n3. Cairo\n4. Quito\n" * 3 + "The list:\n"
    texts = [quoted, "Once upon a time", "ha ha ha ha", quoted + "1."]
    jobs = [(f"j{n}", backend.tokenize(text), 0.8 * (n % 2)) for n, text in enumerate(texts)]

    def run(speculation: Speculation, *, at_once: bool) -> tuple[dict[str, Answer], int]:
        answers: dict[str, Answer] = {}
        num_right = 0
        for group in [jobs] if at_once else [[job] for job in jobs]:
            one = Run(backend, speculation=speculation)
            for name, prompt, temperature in group:
                one.submit(name, prompt, temperature, max_new=24)
                one.engine.step()
            one.finish()
            answers |= one.answers
            num_right += one.engine.stats.guessed_right
        return answers, num_right

    plain, _ = run("off", at_once=False)
    for at_once in (False, True):
        guessed, num_right = run("prompt-lookup", at_once=at_once)
        assert guessed == plain
        assert num_right > 10


def test_a_scored_prompt_on_the_whole_fleet(tmp_path: Path) -> None:
    (tmp_path / "packtrain.toml").write_text(
        f'[models.{MODEL}]\nslots = 4\ncontext = 512\nspeculation = "prompt-lookup"\n'
    )
    text = "The capital of France is Paris. The capital of Peru is Lima."
    options: dict[str, Any] = {"raw": True, "deterministic": True, "max_tokens": 0, "prompt_logprobs": 1, "echo": True}
    with fleet(tmp_path, demo_model_folder()) as running:
        result = running.client.generate(MODEL, text, **options)
        answer = options | {"max_tokens": 3, "echo": False, "ignore_eos": True}  # unseeded, it may draw the end
        answered = running.client.generate(MODEL, text, **answer)
        found = running.client.verify(result.job_id, timeout=120)

    assert (result.text, result.finish_reason, result.usage.completion_tokens) == (text, "length", 0)
    assert "".join(entry.text for entry in result.prompt_logprobs) == text
    assert [entry.logprob is None for entry in result.prompt_logprobs].count(True) == 1
    paris = next(entry for entry in result.prompt_logprobs if entry.text == " Paris")
    assert paris.logprob is not None
    assert paris.logprob > -2
    assert answered.prompt_logprobs == result.prompt_logprobs
    assert answered.usage.completion_tokens == 3
    assert (found.is_equal, found.is_same_class, found.unit) == (True, True, "prompt token")


def test_verify_on_the_whole_fleet(tmp_path: Path) -> None:
    (tmp_path / "packtrain.toml").write_text(f"[models.{MODEL}]\nslots = 4\ncontext = 512\n")
    options: dict[str, Any] = {"deterministic": True, "max_tokens": 12, "temperature": 0.9, "logprobs": 2}
    with fleet(tmp_path, demo_model_folder()) as running:
        results = list(running.client.map(MODEL, [f"Tell me of the number {n}." for n in range(4)], **options))
        found = [running.client.verify(result.job_id, timeout=120) for result in results]

    assert max(result.batch_peak for result in results) > 1
    assert all(v.is_equal and v.is_same_class for v in found)
    receipt = results[0].receipt
    assert receipt is not None
    assert (receipt.numerics, receipt.recipe) == ("deterministic", "batched")
    assert [len(r.logprobs) for r in results] == [r.usage.completion_tokens for r in results]
    assert all(len(entry.top) == 2 for r in results for entry in r.logprobs)


@pytest.fixture(scope="module")
def two_slots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("home")
    (home / "packtrain.toml").write_text(f"[models.{MODEL}]\nslots = 2\ncontext = 512\n")
    with fleet(home, demo_model_folder(), PACKTRAIN_CORES="1") as running:
        yield running


def test_jobs_that_were_parked_have_the_bits_of_those_that_were_not(two_slots: Fleet) -> None:
    options: dict[str, Any] = {
        "deterministic": True, "max_tokens": 100, "logprobs": 2, "temperature": 0.9, "seed": 5, "lane": "bulk",
        "raw": True, "ignore_eos": True,
    }  # fmt: skip
    prompts = ["A long story about a llama:", "A long story about a mule:"]
    client = two_slots.client
    client.generate(MODEL, "hello", deterministic=True, max_tokens=1)  # loads it
    parked = [client.submit(MODEL, prompt, **options) for prompt in prompts]
    for job in parked:
        until_first_text(job)
    talk = [client.submit(MODEL, f"What is {n} + {n}?", deterministic=True, max_tokens=6) for n in range(2)]
    for job in talk:
        job.result(100)
    assert [job.status().state for job in parked] == [JobState.RUNNING] * 2  # so both slots were theirs all the time

    again = [client.submit(MODEL, prompt, **options) for prompt in prompts]
    for first, second in zip(parked, again, strict=True):
        one, other = first.result(120), second.result(120)
        assert one.text == other.text
        assert one.logprobs == other.logprobs
        assert len(one.logprobs) == 100
        assert one.receipt == other.receipt


def test_tokens_are_scored_and_answered_bit_by_bit_as_their_text(two_slots: Fleet) -> None:
    client = two_slots.client
    text = "The capital of France is Paris \U0001f5fc. The capital of Italy is"
    pieces = client.tokenize(MODEL, text)
    ids = Ids(piece.token for piece in pieces)
    options: dict[str, Any] = {
        "max_tokens": 12, "temperature": 0, "echo": True, "prompt_logprobs": 2, "logprobs": 2, "deterministic": True,
    }  # fmt: skip
    by_text = client.generate(MODEL, text, raw=True, **options)
    by_ids = client.generate(MODEL, ids, **options)

    assert by_ids.text == by_text.text
    assert by_ids.text.startswith(text)
    assert (by_ids.logprobs, by_ids.prompt_logprobs) == (by_text.logprobs, by_text.prompt_logprobs)
    assert by_ids.receipt is not None
    assert by_text.receipt is not None
    assert by_ids.receipt.prompt_sha256 == by_text.receipt.prompt_sha256
    assert text_of([*by_ids.prompt_logprobs, *by_ids.logprobs]) == by_ids.text
    assert any(piece.raw for piece in pieces)  # the tower is split
    assert client.verify(by_ids.job_id).is_equal
