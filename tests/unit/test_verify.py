"""Running a job again and saying where the answers part."""

from __future__ import annotations

from array import array

import pytest

from packtrain.broker import vectors
from packtrain.broker.chat import FunctionCall, ToolCall
from packtrain.broker.errors import InvalidRequest
from packtrain.broker.outcome import Outcome, Receipt, Usage
from packtrain.broker.pieces import Logprob, PromptLogprob, TokenLogprob
from packtrain.broker.states import JobState
from packtrain.client.verify import Candidate, Difference, first_difference, request_again
from tests.support.factories import spec

pytestmark = pytest.mark.unit


def answer(*tokens: int, text: str = "") -> Outcome:
    entries = tuple(
        TokenLogprob(token=t, text=f"<{t}>", logprob=-0.5, top=(Logprob(token=9, text="<9>", logprob=-1.5),))
        for t in tokens
    )
    return Outcome(state=JobState.SUCCEEDED, text=text, tokens=tokens, logprobs=entries, seed=77)


def test_equal_tokens_are_no_difference() -> None:
    assert first_difference(answer(1, 2), answer(1, 2), is_deterministic=True) is None


def test_the_first_differing_token_is_named_with_both_candidates_and_logprobs() -> None:
    found = first_difference(answer(1, 9, 3), answer(1, 2, 3), is_deterministic=True)

    assert found == Difference(1, Candidate(9, "<9>", -1.5), Candidate(2, "<2>", -0.5))


def test_a_token_that_the_new_run_does_not_rank_has_no_logprob() -> None:
    found = first_difference(answer(5), answer(2), is_deterministic=True)

    assert found == Difference(0, Candidate(5), Candidate(2, "<2>", -0.5))


def test_a_shorter_answer_parts_at_its_end() -> None:
    found = first_difference(answer(1, 2), answer(1), is_deterministic=True)

    assert found == Difference(1, Candidate(2), Candidate(None))


def test_an_answer_of_another_server_cannot_be_verified() -> None:
    texts = ("model_sha256", "numerics_class", "library", "features", "flags", "prompt_sha256", "output_sha256")
    empty = dict.fromkeys(texts, "")
    receipt = Receipt(**empty, numerics="fast", recipe="fast", threads=0, seed=0, remote="api.example.com big")
    with pytest.raises(InvalidRequest, match=r"answered by api.example.com big, and nothing"):
        request_again("j", spec(), answer(1).model_copy(update={"receipt": receipt}), model="far", on=None)


def test_a_fast_answer_is_compared_by_its_text() -> None:
    found = first_difference(answer(1, text="a cat"), answer(2, text="a dog"), is_deterministic=False)

    assert found is not None
    assert (found.index, found.old.text, found.new.text) == (2, "cat", "dog")


def test_vectors_part_at_the_first_dimension_that_differs() -> None:
    old, new = (
        Outcome(state=JobState.SUCCEEDED, embedding=vectors.to_wire(array("f", numbers).tobytes()))
        for numbers in ([0.5, 0.25], [0.5, 0.125])
    )

    assert first_difference(old, old, is_deterministic=True) is None
    for flag in (True, False):
        found = first_difference(old, new, is_deterministic=flag)
        assert found == Difference(1, Candidate(None, "0.25"), Candidate(None, "0.125"))


def test_a_text_embedded_again_asks_for_no_logprobs() -> None:
    again = request_again("j", spec(kind="embed", deterministic=True), answer(), model="tiny", on=None)

    assert (again.kind, again.params.logprobs) == ("embed", None)


def test_fast_answers_are_compared_in_all_their_parts() -> None:
    def called(arguments: str) -> Outcome:
        call = ToolCall(id="c1", function=FunctionCall(name="time", arguments=arguments))
        return Outcome(state=JobState.SUCCEEDED, reasoning="Hm.", tool_calls=(call,))

    assert first_difference(called("{}"), called("{}"), is_deterministic=False) is None
    found = first_difference(called('{"a": 1}'), called('{"a": 2}'), is_deterministic=False)
    assert found is not None
    assert (found.old.text, found.new.text) == ("1}", "2}")


def test_the_new_run_takes_the_seed_that_was_drawn_with() -> None:
    again = request_again("j", spec(deterministic=True, expires_in_ms=5), answer(1), model="tiny", on="n2")

    assert again.params.seed == 77
    assert again.params.logprobs
    assert (again.meant_for, again.expires_in_ms) == ("n2", None)


def test_the_new_run_goes_to_the_model_and_not_to_what_its_alias_means_now() -> None:
    again = request_again("j", spec(model="little"), answer(1), model="tiny", on=None)

    assert again.model == "tiny"


def test_an_answer_that_filled_its_slot_is_compared_at_its_length() -> None:
    filled = answer(1, 2, 3).model_copy(update={"finish_reason": "length", "usage": Usage(completion_tokens=3)})

    assert request_again("j", spec(), filled, model="tiny", on=None).params.max_tokens == 3
    stopped = filled.model_copy(update={"finish_reason": "stop"})
    assert request_again("j", spec(), stopped, model="tiny", on=None).params.max_tokens is None


@pytest.mark.parametrize("state", [s for s in JobState if s.is_terminal and s is not JobState.SUCCEEDED])
def test_only_a_whole_answer_is_verified(state: JobState) -> None:
    with pytest.raises(InvalidRequest, match=state.value):
        request_again("j", spec(), Outcome(state=state), model="tiny", on=None)


def test_a_job_without_an_end_is_not_verified() -> None:
    with pytest.raises(InvalidRequest, match="not ended"):
        request_again("j", spec(), None, model="tiny", on=None)


def test_a_prompt_that_was_only_scored_parts_at_the_first_logprob_that_differs() -> None:
    old, new = (
        Outcome(
            state=JobState.SUCCEEDED, finish_reason="length",
            prompt_logprobs=(PromptLogprob(token=1), PromptLogprob(token=2, text="b", logprob=logprob)),
        )
        for logprob in (-0.5, -0.25)
    )  # fmt: skip

    assert first_difference(old, old, is_deterministic=True) is None
    found = first_difference(old, new, is_deterministic=True)
    assert found == Difference(1, Candidate(2, "b", -0.5), Candidate(2, "b", -0.25))
