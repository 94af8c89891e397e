"""Deterministic jobs in a whole fleet with scripted models: where they run, where they never do, and verify."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from packtrain.client import AnswerBegunAnew, InvalidParameter, InvalidRequest, NotDeterministic
from tests.support.fleets import Fleet, scripted_fleet

pytestmark = pytest.mark.integration

MODELS: dict[str, dict[str, Any]] = {
    "echo": {"n_slots": 4, "n_ctx": 512},
    "moving": {"n_slots": 2, "n_ctx": 512, "step_ms": 10},
    "shaky": {"n_slots": 2, "not_deterministic": "its kernels look at the company"},
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with scripted_fleet(tmp_path_factory.mktemp("home"), MODELS) as running:
        yield running


def test_a_deterministic_job_never_runs_on_a_fast_instance(fleet: Fleet) -> None:
    plain = fleet.client.generate("echo", "hello")
    strict = fleet.client.generate("echo", "hello", deterministic=True)
    numerics = {i.instance: i.numerics for i in fleet.client.instances()}

    assert numerics[plain.instance] == "fast"
    assert numerics[strict.instance] == "deterministic"
    assert strict.text == "olleh"


def test_every_answer_has_a_receipt(fleet: Fleet) -> None:
    plain, strict = (fleet.client.generate("echo", "hello", deterministic=flag) for flag in (False, True))

    assert plain.receipt is not None
    assert strict.receipt is not None
    assert strict.receipt.numerics == "deterministic"
    assert strict.receipt.seed == strict.seed
    assert plain.receipt.prompt_sha256 == strict.receipt.prompt_sha256
    assert plain.receipt.output_sha256 == strict.receipt.output_sha256
    assert len(strict.receipt.model_sha256) == 64


def test_a_model_that_cannot_be_deterministic_refuses_such_jobs_and_serves_the_others(fleet: Fleet) -> None:
    with pytest.raises(NotDeterministic, match="its kernels look at the company"):
        fleet.client.generate("shaky", "hello", deterministic=True, timeout=30)

    assert fleet.client.generate("shaky", "hello").text == "olleh"
    with pytest.raises(NotDeterministic) as caught:
        fleet.client.generate("shaky", "again", deterministic=True, timeout=5)
    assert str(caught.value).count("cannot be computed deterministically") == 1


def test_verify_runs_a_job_again_and_finds_it_equal(fleet: Fleet) -> None:
    job_id = fleet.client.generate("echo", "hello", deterministic=True).job_id

    found = fleet.client.verify(job_id, timeout=30)

    assert found.is_equal
    assert found.is_same_class
    assert found.new_job_id != job_id


def test_verify_on_a_named_instance_or_node_runs_there(fleet: Fleet) -> None:
    first = fleet.client.generate("echo", "hello", deterministic=True)

    assert fleet.client.verify(first.job_id, on=first.instance, timeout=30).instance == first.instance
    assert fleet.client.verify(first.job_id, on="n1", timeout=30).node == "n1"
    with pytest.raises(InvalidRequest, match="no instance or node 'n7'"):
        fleet.client.verify(first.job_id, on="n7")


def test_a_job_that_moves_to_another_numerics_class_begins_anew_and_its_readers_are_told(fleet: Fleet) -> None:
    job = fleet.client.submit("moving", "!long hello", deterministic=True, max_tokens=300)
    texts = job.stream()
    first = next(texts)
    before = fleet.instance("moving")
    # The same model by another file is another class.
    path = fleet.running.home / "models" / "moving.scripted.json"
    path.write_text(json.dumps({**MODELS["moving"], "step_ms": 1}))
    fleet.kill(before.pid)

    with pytest.raises(AnswerBegunAnew):
        list(texts)
    result = job.result(30)

    assert result.text.startswith(first)
    assert result.usage.completion_tokens == 300
    assert result.receipt is not None
    after = fleet.instance("moving")
    assert result.receipt.numerics_class == after.numerics_class != before.numerics_class
    assert "".join(job.stream()) == result.text


def test_a_deterministic_job_goes_on_where_it_was_in_the_same_class(fleet: Fleet) -> None:
    job = fleet.client.submit("moving", "!long again", deterministic=True, max_tokens=300)
    texts = job.stream()
    read = next(texts)
    fleet.kill(fleet.instance("moving").pid)

    assert read + "".join(texts) == job.result(30).text
    assert job.status().attempts == 1


def test_choices_share_a_prompt_and_differ_in_their_seeds(fleet: Fleet) -> None:
    found = fleet.client.choices("echo", "hello", 4, seed=5)

    assert [r.text for r in found] == ["olleh"] * 4
    assert found[0].seed == 5
    assert len({r.seed for r in found}) == 4
    assert [r.seed for r in fleet.client.choices("echo", "hello", 4, seed=5)] == [r.seed for r in found]
    with pytest.raises(InvalidParameter, match="1 to 128"):
        fleet.client.choices("echo", "hello", 0)


def test_verify_on_an_instance_that_cannot_take_the_job_says_so_instead_of_waiting(fleet: Fleet) -> None:
    strict = fleet.client.generate("echo", "hello", deterministic=True)
    plain = fleet.client.generate("echo", "hello")
    numerics = {i.instance: i.numerics for i in fleet.client.instances()}
    assert numerics[plain.instance] == "fast"

    with pytest.raises(InvalidRequest, match="deterministic numerics"):
        fleet.client.verify(strict.job_id, on=plain.instance, timeout=5)
