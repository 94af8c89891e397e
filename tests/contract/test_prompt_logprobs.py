"""Logprobs of a prompt: those of one plain decode with all logits, in every recipe, whoever the neighbours are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_cpp import llama_cpp as C  # noqa: N812  as in the backend

from packtrain.broker.fields import Recipe
from packtrain.broker.ids import JobId
from packtrain.broker.pieces import PromptLogprob
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.backends.llama_cpp_batch import Batch
from packtrain.workers.backends.llama_cpp_params import context_params, model_params
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.sequence import End, Ended, SequenceRequest, Tokens
from packtrain.workers.load_options import LoadOptions
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.contract

N_SLOTS, N_CTX = 5, 320
FAST, DETERMINISTIC = LoadOptions(), LoadOptions(numerics="deterministic")
#: Which weights take which recipe, see docs/determinism.md.
MODELS = {
    "fast": (gguf.GGMLQuantizationType.F32, FAST),
    "batched": (gguf.GGMLQuantizationType.Q8_0, DETERMINISTIC),
    "serial": (gguf.GGMLQuantizationType.F32, DETERMINISTIC),
}


@pytest.fixture(scope="module", params=list(MODELS))
def recipe(request: pytest.FixtureRequest) -> Recipe:
    found: Recipe = request.param
    return found


@pytest.fixture(scope="module")
def path(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", kind=MODELS[recipe][0])


@pytest.fixture(scope="module")
def backend(recipe: Recipe, path: Path) -> Iterator[LlamaCppBackend]:
    options = MODELS[recipe][1]
    backend = LlamaCppBackend(path, model="tiny", n_slots=N_SLOTS, n_ctx=N_CTX, n_threads=1, options=options)
    assert backend.shape.recipe == recipe
    yield backend
    backend.shutdown()


@dataclass
class Asked:
    """A request and what came of it."""

    told: list[tuple[int, float]] = field(default_factory=list)
    ends: list[Ended] = field(default_factory=list)

    def on_tokens(self, tokens: Tokens) -> None:
        self.told += [(entry.token, entry.logprob) for entry in tokens.logprobs]

    @property
    def scores(self) -> list[PromptLogprob]:
        return list(self.ends[0].prompt_logprobs)


class Run:
    """Requests on one engine, stepped by hand."""

    def __init__(self, backend: LlamaCppBackend) -> None:
        for slot in range(N_SLOTS):
            backend.truncate(slot, 0)
        self.engine = Engine(backend, clock=lambda: 0)
        self._count = 0

    def submit(
        self,
        prompt: Sequence[int],
        *,
        num_top: int | None = 2,
        max_new: int = 4,
        resumed: Sequence[int] = (),
        temperature: float = 0.8,
    ) -> Asked:
        asked = Asked()
        params = SamplingParams(temperature=temperature, logprobs=0, prompt_logprobs=num_top, ignore_eos=True)
        self._count += 1
        self.engine.submit(
            SequenceRequest(
                JobId(f"j{self._count}"),
                tuple(prompt),
                params,
                7,
                max_new,
                asked.on_tokens,
                asked.ends.append,
                tuple(resumed),
            )
        )
        return asked

    def finish(self) -> None:
        while self.engine.is_busy:
            self.engine.step()


def alone(backend: LlamaCppBackend, prompt: Sequence[int], *, num_top: int | None = 2, max_new: int = 4) -> Asked:
    run = Run(backend)
    asked = run.submit(prompt, num_top=num_top, max_new=max_new)
    run.finish()
    return asked


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [3 + (7919 * (i + 1) + 104_729 * seed) % 256 for i in range(length)]


def reference(path: Path, prompt: Sequence[int], options: LoadOptions) -> np.ndarray[Any, Any]:
    """Logprobs of all tokens behind each of the prompt's, (prompt, n_vocab), by one llama_decode."""
    model = C.llama_model_load_from_file(str(path).encode(), model_params(options))
    params = context_params(options, n_slots=1, n_ctx=N_CTX, n_threads=1)
    params.n_outputs_max = params.n_batch
    ctx = C.llama_init_from_model(model, params)
    batch = Batch(int(params.n_batch))
    batch.add(prompt, 0, 0, wants_all=True)
    assert C.llama_decode(ctx, batch.struct) == 0
    n_vocab = C.llama_vocab_n_tokens(C.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(C.llama_get_logits(ctx), shape=(len(prompt), n_vocab)).astype(np.float64)
    C.llama_free(ctx)
    C.llama_model_free(model)
    highest = logits.max(1, keepdims=True)
    logprobs: np.ndarray[Any, Any] = logits - highest - np.log(np.exp(logits - highest).sum(1, keepdims=True))
    return logprobs


@pytest.mark.parametrize("length", [2, 16, 17, 40, 200])
def test_each_prompt_token_has_the_logprob_of_a_plain_decode(
    backend: LlamaCppBackend, path: Path, recipe: Recipe, length: int
) -> None:
    prompt = prompt_of(length)
    expected = reference(path, prompt, MODELS[recipe][1])
    tolerance = 1e-9 if recipe == "batched" else 0.02  # other pieces meet other kernels

    scores = alone(backend, prompt, num_top=3).scores

    assert [entry.token for entry in scores] == prompt
    assert (scores[0].logprob, scores[0].top) == (None, ())
    for row, entry in zip(expected, scores[1:], strict=False):
        likeliest = np.argsort(-row)[:3]
        assert entry.logprob == pytest.approx(row[entry.token], abs=tolerance)
        assert [top.logprob for top in entry.top] == pytest.approx(row[likeliest].tolist(), abs=tolerance)
    assert {entry.text for entry in scores} <= {backend.piece(token).decode("utf-8", "replace") for token in prompt}


def test_company_changes_no_bit_of_a_score(backend: LlamaCppBackend, recipe: Recipe) -> None:
    prompts = [prompt_of(length, seed) for seed, length in enumerate((150, 33, 150, 70, 20))]
    expected = [alone(backend, prompt) for prompt in prompts]
    run = Run(backend)

    found = []
    for number, prompt in enumerate(prompts):
        found.append(run.submit(prompt))
        run.submit(prompts[number - 1], num_top=None, max_new=9)
        run.engine.step()
    run.finish()

    if recipe == "fast":
        for one, other in zip(expected, found, strict=True):
            assert [entry.token for entry in one.scores] == [entry.token for entry in other.scores]
            pairs = zip(one.scores[1:], other.scores[1:], strict=True)
            assert all(a.logprob == pytest.approx(b.logprob, abs=0.02) for a, b in pairs)
    else:
        assert [asked.scores for asked in found] == [asked.scores for asked in expected]
        assert [asked.told for asked in found] == [asked.told for asked in expected]


def test_scores_change_no_bit_of_the_answer(backend: LlamaCppBackend, recipe: Recipe) -> None:
    prompt = prompt_of(150)
    silent, scored = alone(backend, prompt, num_top=None), alone(backend, prompt)

    assert silent.scores == []
    if recipe == "fast":
        assert len(silent.told) == len(scored.told)
    else:
        assert silent.told == scored.told


def test_a_prompt_may_be_scored_without_an_answer(backend: LlamaCppBackend) -> None:
    whole = [3 + i % 250 for i in range(N_CTX)]

    asked = alone(backend, whole, max_new=0)

    assert (asked.ends[0].end, asked.ends[0].num_output, asked.told) == (End.LENGTH, 0, [])
    assert len(asked.scores) == N_CTX


def test_a_single_token_has_nothing_to_score(backend: LlamaCppBackend) -> None:
    asked, silent = alone(backend, [5]), alone(backend, [5], max_new=0)

    assert asked.scores == silent.scores == [PromptLogprob(token=5, text=backend.piece(5).decode("utf-8", "replace"))]
    assert (len(asked.told), silent.told) == (4, [])


@pytest.mark.parametrize("done", [1, 4])
def test_a_resumed_job_has_the_same_scores(backend: LlamaCppBackend, recipe: Recipe, done: int) -> None:
    prompt = prompt_of(150)
    expected = alone(backend, prompt)
    run = Run(backend)

    asked = run.submit(prompt, resumed=[token for token, _ in expected.told[:done]])
    run.finish()

    assert (asked.ends[0].end, asked.ends[0].num_output) == (End.LENGTH, 4)
    assert [entry.token for entry in asked.scores] == prompt
    if recipe != "fast":
        assert asked.scores == expected.scores
        assert asked.told == expected.told[done:]


def test_others_begin_with_a_prompt_that_was_scored_but_not_where_that_would_show(
    backend: LlamaCppBackend, recipe: Recipe
) -> None:
    prompt = prompt_of(300)
    expected = alone(backend, prompt, num_top=None)
    run = Run(backend)
    run.submit(prompt, max_new=0)
    run.finish()

    asked = run.submit(prompt, num_top=None)
    again = run.submit(prompt)
    run.finish()

    assert asked.ends[0].num_reused == (0 if recipe == "serial" else 299)
    assert again.ends[0].num_reused == 0
    if recipe != "fast":
        assert asked.told == expected.told


def test_a_cancelled_job_has_no_half_of_its_scores(backend: LlamaCppBackend) -> None:
    run = Run(backend)
    asked = run.submit(prompt_of(200))
    run.engine.step()
    run.engine.cancel(JobId("j1"), End.CANCELLED)
    run.finish()

    assert (asked.ends[0].end, asked.scores) == (End.CANCELLED, [])


@pytest.mark.parametrize("num_scored", [2, N_CTX])
def test_more_rows_with_logits_than_there_is_room_for_are_refused_before_c(
    backend: LlamaCppBackend, num_scored: int
) -> None:
    params = SamplingParams(prompt_logprobs=0)
    backend.truncate(0, 0)
    backend.open(0, params, 0, [], 0)
    rows = StepRows(0, 0, [5] * num_scored, True, [5] * num_scored)

    with pytest.raises(AssertionError, match="rows"):
        backend.step([rows], lambda: False)
    backend.close(0)
