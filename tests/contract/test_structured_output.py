"""Forms kept by llama.cpp's tokens: on a tiny random model whatever is drawn is nonsense, but has its form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import SequenceFailed
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.backends.llama_cpp_sampling import SamplerChain
from tests.contract.test_backends import Counter, Slot, answer
from tests.support.schemas import random_schema
from tests.support.tiny_model import END_OF_TURN, EOS, write_tiny_model

pytestmark = pytest.mark.contract

N_CTX = 1024
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "bé", "c"]}, "maxItems": 4},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppBackend]:
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    backend = LlamaCppBackend(path, model="tiny", n_slots=2, n_ctx=N_CTX, n_threads=1)
    yield backend
    backend.shutdown()


@pytest.fixture
def backend(loaded: LlamaCppBackend) -> Iterator[LlamaCppBackend]:
    yield loaded
    for seq_id in range(2):
        try:
            loaded.close(seq_id)
        except KeyError:  # was not open
            continue


def schema_params(schema: dict[str, Any], **fields: Any) -> SamplingParams:
    return SamplingParams.model_validate({"response_format": {"type": "json_schema", "schema": schema}, **fields})


def grammar_params(grammar: str, **fields: Any) -> SamplingParams:
    return SamplingParams.model_validate({"response_format": {"type": "grammar", "grammar": grammar}, **fields})


def said(backend: LlamaCppBackend, params: SamplingParams, *, seed: int = 1, limit: int = 900) -> tuple[list[int], str]:
    """All tokens of an answer and its text, without the end; the text is "" when it has none within `limit`."""
    slot = Slot(backend, "Hi", params=params, seed=seed)
    tokens: list[int] = []
    for _ in range(limit):
        token = slot.next()
        if backend.is_end(token):
            slot.close()
            return tokens, b"".join(map(backend.piece, tokens)).decode()
        tokens.append(token)
    slot.close()
    return tokens, ""


_SAMPLING = st.sampled_from(
    [
        {"temperature": 0},
        {"temperature": 1.5},
        {"temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0},
        {"temperature": 1.5, "repeat_penalty": 1.3, "frequency_penalty": 0.5},
        {"temperature": 0, "presence_penalty": 1},
        {"temperature": 0.8, "typical_p": 0.7, "logit_bias": {EOS: 100, END_OF_TURN: 100}},
    ]
)


@given(rng=st.randoms(use_true_random=False), sampling=_SAMPLING, seed=st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
def test_every_answer_of_every_sampling_parses_and_validates(
    backend: LlamaCppBackend, rng: Random, sampling: dict[str, Any], seed: int
) -> None:
    schema = random_schema(rng)
    params = schema_params(schema, **sampling)
    backend.prepare(params)

    _, text = said(backend, params, seed=seed)

    assume(text)  # a greedy one may repeat itself until the slot is full
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_of_a_grammar_is_one_of_its_texts(backend: LlamaCppBackend, temperature: float) -> None:
    texts = [said(backend, grammar_params('root ::= ("ja" | "né" [0-9]{2}) "."', temperature=temperature), seed=s)[1]
             for s in range(20)]  # fmt: skip

    assert all(text == "ja." or (text.startswith("né") and text[2:4].isdigit() and text[4:] == ".") for text in texts)


def test_an_end_forced_by_a_bias_waits_for_the_form(backend: LlamaCppBackend) -> None:
    params = schema_params({"const": {"a": "b"}}, temperature=0, logit_bias={EOS: 100})

    assert json.loads(said(backend, params)[1]) == {"a": "b"}


def test_only_the_form_ends_a_text_that_has_it(backend: LlamaCppBackend) -> None:
    """Nothing may follow `7`, whatever the model would rather say; and then it is one of its end tokens."""
    slot = Slot(backend, params=schema_params({"const": 7}, temperature=0, logit_bias={EOS: -100, END_OF_TURN: -100}))

    tokens = slot.run(2)

    assert backend.piece(tokens[0]) == b"7"
    assert backend.is_end(tokens[1])


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0}, {"temperature": 1.5}, {"temperature": 1.5, "repeat_penalty": 1.3}],
    ids=str,
)
def test_a_resumed_sequence_goes_on_within_its_form(backend: LlamaCppBackend, sampling: dict[str, Any]) -> None:
    params = schema_params(PERSON, **sampling)
    tokens, text = said(backend, params, seed=7)
    assert text
    prompt = backend.tokenize("Hi")

    for done in range(0, len(tokens), 5):
        slot = Slot(backend, prompt, params=params, seed=7, output=tokens[:done])
        rest = slot.run(len(tokens) - done)
        assert rest == tokens[done:]
        assert backend.is_end(slot.next())
        slot.close()


def test_a_form_that_never_bites_changes_no_draw(backend: LlamaCppBackend) -> None:
    warm: dict[str, Any] = {"temperature": 1.2, "repeat_penalty": 1.2, "logit_bias": {EOS: -100, END_OF_TURN: -100}}
    # Bytes of the tiny model are no UTF-8 by themselves, so its texts are ASCII by a bias.
    warm["logit_bias"] |= dict.fromkeys([0, 1, *range(131, 259)], -100.0)

    free = answer(backend, 30, params=SamplingParams(**warm), seed=3)

    assert answer(backend, 30, params=grammar_params("root ::= .*", **warm), seed=3) == free


def test_a_draw_after_a_reject_is_independent_of_the_rejected_one() -> None:
    """Or whoever is rejected for a token of a low id would be given one of a low id: not the model's distribution."""
    params = SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0)
    ids, flat = np.arange(100, dtype=np.int32), np.zeros(100, np.float32)
    pairs = []
    for seed in range(1000):
        chain = SamplerChain(params, seed, n_vocab=100, end_tokens=[], history=[], num_output=0)
        pairs.append([chain.draw(ids, flat, is_redraw=is_redraw) for is_redraw in (False, True)])
        chain.close()

    # By chance alone it has a standard deviation of 0.03.
    assert abs(np.corrcoef(np.transpose(pairs))[0, 1]) < 0.15


def test_a_form_out_of_its_budget_ends_its_sequence_and_moves_no_other(backend: LlamaCppBackend) -> None:
    warm = SamplingParams(temperature=0.8)
    person = schema_params(PERSON, temperature=0.8)
    expected = [answer(backend, 3, prompt="free", params=p, seed=5) for p in (warm, person)]

    for params, tokens in zip((warm, person), expected, strict=True):
        slot = Slot(backend, "free", params=params, seed=5)
        stuck = Slot(backend, "stuck", seq_id=1, params=grammar_params('root ::= "x" ' + '"x"? ' * 1000))
        stuck.next()
        assert slot.next() == tokens[0]
        before = slot.num_cached
        with pytest.raises(SequenceFailed) as caught:
            backend.step([slot.rows(), stuck.rows()], Counter())
        assert caught.value.seq_id == 1
        assert "response_format" in str(caught.value.error)
        stuck.close()

        slot.num_cached = backend.truncate(0, before)

        assert slot.run(2) == tokens[1:]
        slot.close()


def test_output_that_another_model_said_under_that_name_ends_the_sequence(backend: LlamaCppBackend) -> None:
    slot = Slot(backend, "Hi", params=schema_params(PERSON), output=[77, 78])

    with pytest.raises(SequenceFailed):
        slot.next()


def test_the_same_file_loaded_again_answers_the_same(backend: LlamaCppBackend, tmp_path: Path) -> None:
    params = schema_params(PERSON, temperature=1.5)
    again = LlamaCppBackend(write_tiny_model(tmp_path / "t.gguf"), model="t", n_slots=1, n_ctx=N_CTX, n_threads=1)

    assert said(again, params, seed=11) == said(backend, params, seed=11)
    again.shutdown()
