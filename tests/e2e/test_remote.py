"""A fleet whose model is another fleet's real one, through its gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.demo_model import demo_model_folder
from tests.support.fleets import Fleet, fleet, scripted_fleet
from tests.support.gateways import gateway

pytestmark = pytest.mark.e2e

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Two:
    here: Fleet
    there: Fleet


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    with ExitStack() as stack:
        there_home, here_home = tmp_path_factory.mktemp("there"), tmp_path_factory.mktemp("here")
        there_home.joinpath("packtrain.toml").write_text("[defaults]\ncontext = 512\nslots = 2\n")
        there = stack.enter_context(fleet(there_home, demo_model_folder()))
        door = stack.enter_context(gateway(there.url, there_home))
        here_home.joinpath("packtrain.toml").write_text(
            f'[models.far.remote]\nurl = {json.dumps(door.url + "/v1")}\nmodel = "smollm2"\n'
        )
        yield Two(stack.enter_context(scripted_fleet(here_home, {})), there)


def test_the_other_fleet_answers_as_it_would_its_own(two: Two) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "logprobs": 1}
    ours = two.here.client.submit("far", "Why is the sky blue?", **options)
    streamed = "".join(ours.stream())
    result, theirs = ours.result(), two.there.client.generate("smollm2", "Why is the sky blue?", **options)

    assert result.text == streamed == theirs.text
    assert result.finish_reason == theirs.finish_reason == "length"
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (theirs.usage.prompt_tokens, 24)
    assert "".join(entry.text for entry in result.logprobs) == result.text
    assert result.logprobs[0].logprob == pytest.approx(theirs.logprobs[0].logprob, abs=0.05)


def test_forms_and_vectors_are_passed_on(two: Two) -> None:
    answer = two.here.client.generate("far", "A number, as JSON.", schema=SCHEMA, temperature=0, max_tokens=40)
    assert 1 <= json.loads(answer.text)["n"] <= 9
    (ours,), (theirs,) = (
        one.client.embed(model, ["blue sky"]) for one, model in ((two.here, "far"), (two.there, "smollm2"))
    )

    assert ours == pytest.approx(theirs, abs=1e-3)
