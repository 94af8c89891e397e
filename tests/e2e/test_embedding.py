"""Embedding with real files in a whole fleet: a generator that embeds too, and a model that does nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from packtrain.client import InvalidRequest, PromptTooLong
from tests.support import tiny_bert
from tests.support.demo_model import MODEL, demo_model_folder
from tests.support.fleets import Fleet, fleet

pytestmark = pytest.mark.e2e

#: Each pair says one thing in two ways.
PAIRS = [
    ("The cat sleeps on the warm sofa.", "A kitten is napping on the couch."),
    ("Interest rates were raised by the central bank.", "The federal reserve increased its lending rate."),
    ("Bake the bread for forty minutes.", "Leave the loaf in the oven for two thirds of an hour."),
]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("home")
    (home / "packtrain.toml").write_text("[defaults]\nslots = 8\ncontext = 512\n")
    (home / "models").mkdir()
    tiny_bert.write_tiny_bert(home / "models" / "bert.gguf")
    with fleet(home, demo_model_folder()) as running:
        yield running


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_what_means_the_same_is_closer_than_what_does_not(real: Fleet) -> None:
    vectors = real.client.embed(MODEL, [text for pair in PAIRS for text in pair], timeout=120)
    firsts, seconds = vectors[::2], vectors[1::2]

    for number, first in enumerate(firsts):
        likeness = [cosine(first, second) for second in seconds]
        assert likeness.index(max(likeness)) == number
    assert all(cosine(vector, vector) == pytest.approx(1, abs=1e-5) for vector in vectors)
    assert len(vectors[0]) == 576


def test_deterministic_vectors_are_the_same_alone_and_together(real: Fleet) -> None:
    texts = [text for pair in PAIRS for text in pair] + ["Yes.", "word " * 300]
    together = real.client.embed(MODEL, texts, deterministic=True, timeout=120)
    alone = [real.client.embed(MODEL, text, deterministic=True, timeout=120) for text in reversed(texts)][::-1]

    assert together == alone


def test_embedding_beside_a_stream_changes_no_bit_of_it(real: Fleet) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 48, "raw": True, "deterministic": True}
    expected = real.client.generate(MODEL, "Once upon a time", timeout=120, **options).text
    job = real.client.submit(MODEL, "Once upon a time", **options)
    real.client.embed(MODEL, [f"text number {number}" for number in range(20)], deterministic=True, timeout=120)

    assert job.result(120).text == expected


def test_a_model_for_embedding_embeds_and_answers_nothing(real: Fleet) -> None:
    info = next(info for info in real.client.models() if info.id == "bert")
    vectors = real.client.embed("bert", ["one", "two", "one"], timeout=60)
    strict = real.client.submit_embedding("bert", "one", deterministic=True).result(60)

    assert info.embeds_only
    assert [len(vector) for vector in vectors] == [tiny_bert.N_EMBD] * 3
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-5)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
    assert strict.receipt is not None
    assert strict.receipt.recipe == "serial"
    with pytest.raises(InvalidRequest, match="only makes vectors of texts"):
        real.client.generate("bert", "hello", timeout=60)
    with pytest.raises(PromptTooLong, match=f"embeds {tiny_bert.N_CTX} at once"):
        real.client.embed("bert", "word " * 200, timeout=60)
