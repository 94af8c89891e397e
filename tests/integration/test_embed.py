"""Embedding in a whole fleet with scripted models: many texts in order, beside answers, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from packtrain.client import (
    AsyncPacktrain,
    InvalidParameter,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    PromptEmpty,
    PromptTooLong,
    ResultTimeout,
)
from packtrain.workers.backends.scripted import N_DIMS
from tests.support.fleets import Fleet, scripted_fleet

pytestmark = pytest.mark.integration

MODELS: dict[str, dict[str, Any]] = {
    "echo": {"n_slots": 4, "n_ctx": 512},
    "bert": {"n_slots": 16, "n_ctx": 64, "embeds_only": True},
    "slow": {"n_slots": 4, "step_ms": 1000, "embeds_only": True},
}
TEXTS = [f"text {number}" for number in range(150)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with scripted_fleet(tmp_path_factory.mktemp("home"), MODELS) as running:
        yield running


def test_vectors_come_back_in_the_order_of_their_texts(fleet: Fleet) -> None:
    vectors = fleet.client.embed("bert", iter(TEXTS), timeout=60)

    assert len(vectors) == len(TEXTS)
    assert len({tuple(vector) for vector in vectors}) == len(TEXTS)
    assert {len(vector) for vector in vectors} == {N_DIMS}
    assert vectors[::50] == fleet.client.embed("bert", TEXTS[::50], timeout=30)


def test_one_text_gives_its_vector_alone(fleet: Fleet) -> None:
    assert fleet.client.embed("bert", "hello", timeout=30) == fleet.client.embed("bert", ["hello"], timeout=30)[0]
    assert fleet.client.embed("bert", [], timeout=30) == []


def test_a_model_that_answers_embeds_too_and_both_at_once(fleet: Fleet) -> None:
    answer = fleet.client.submit("echo", "hello", stream=False)
    vectors = fleet.client.embed("echo", TEXTS[:20], timeout=30)

    assert answer.result(30).text == "olleh"
    assert vectors == fleet.client.embed("bert", TEXTS[:20], timeout=30)


def test_texts_that_wait_together_share_a_batch(fleet: Fleet) -> None:
    jobs = [fleet.client.submit_embedding("slow", text) for text in TEXTS[:4]]
    results = [job.result(60) for job in jobs]

    assert max(result.batch_peak for result in results) > 1


def test_a_vector_has_usage_and_a_receipt_and_can_be_verified(fleet: Fleet) -> None:
    result = fleet.client.submit_embedding("echo", "hello", deterministic=True).result(30)
    found = fleet.client.verify(result.job_id, timeout=30)

    assert result.receipt is not None
    assert result.usage.prompt_tokens == 5
    assert (result.text, result.finish_reason) == ("", None)
    assert found.is_equal
    assert found.is_same_class
    assert found.new is not None
    assert found.new.output_sha256 == result.receipt.output_sha256
    assert found.unit == "dimension"


def test_fewer_dimensions_on_request(fleet: Fleet) -> None:
    assert len(fleet.client.embed("bert", "hello", dimensions=3, timeout=30)) == 3
    with pytest.raises(InvalidParameter, match=f"have {N_DIMS}"):
        fleet.client.embed("bert", "hello", dimensions=1000, timeout=30)


def test_the_first_failure_is_raised_at_its_turn_and_what_is_in_flight_is_cancelled(fleet: Fleet) -> None:
    with pytest.raises(JobFailed, match="scripted failure"):
        fleet.client.embed("bert", ["fine", "!fail", *TEXTS[:5]], timeout=30)
    assert fleet.client.embed("bert", "fine", timeout=30)

    with pytest.raises(ResultTimeout):
        fleet.client.embed("slow", ["a", "b", "c"], timeout=0.2)
    (newest, *_) = fleet.client.jobs(1)
    with pytest.raises(JobCancelled):
        fleet.client.job(newest.id).result(10)


def test_what_cannot_be_embedded_is_a_clear_error(fleet: Fleet) -> None:
    with pytest.raises(PromptTooLong, match="embeds 64 at once; split it"):
        fleet.client.embed("bert", "x" * 65, timeout=30)
    with pytest.raises(PromptEmpty):
        fleet.client.embed("bert", ["fine", ""], timeout=30)
    with pytest.raises(InvalidParameter, match="'temperature'"):
        fleet.client.embed("bert", "fine", temperature=0)
    with pytest.raises(InvalidParameter, match="is a str or Tokens, not int"):
        fleet.client.embed("bert", [1])  # type: ignore[list-item]


def test_a_model_for_embedding_says_so_and_refuses_to_answer(fleet: Fleet) -> None:
    assert {info.id: info.embeds_only for info in fleet.client.models()} == {"bert": True, "echo": False, "slow": True}
    with pytest.raises(InvalidRequest, match="only makes vectors of texts"):
        fleet.client.generate("bert", "hello", timeout=30)


def test_the_async_twin_embeds_alike(fleet: Fleet) -> None:
    async def embed() -> tuple[list[list[float]], list[float]]:
        async with AsyncPacktrain(fleet.url) as client:
            return await client.embed("bert", TEXTS[:70], timeout=60), await client.embed("bert", "hello", timeout=30)

    assert asyncio.run(embed()) == (
        fleet.client.embed("bert", TEXTS[:70], timeout=60),
        fleet.client.embed("bert", "hello", timeout=30),
    )


def test_the_command_prints_json(fleet: Fleet) -> None:
    def run(*arguments: str, stdin: str = "") -> dict[str, Any]:
        program = "from packtrain.client.cli.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], input=stdin, capture_output=True, text=True, timeout=60,
            env={**os.environ, "PACKTRAIN_URL": fleet.running.url}, check=True,
        )  # fmt: skip
        printed: dict[str, Any] = json.loads(done.stdout)
        return printed

    assert run("embed", "bert", "hello")["embedding"] == fleet.client.embed("bert", "hello", timeout=30)
    piped = run("embed", "bert", "--dimensions", "2", stdin="hello")
    assert len(piped["embedding"]) == 2
    assert piped["usage"]["prompt_tokens"] == 5
    assert piped["receipt"]["output_sha256"]
