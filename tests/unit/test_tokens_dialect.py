"""Tokens of texts and texts of tokens, in the words of llama-server and vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.pieces import Piece
from packtrain.client.dialects.tokens import (
    DetokenizeBody,
    TokenizeBody,
    detokenize_call,
    joined,
    listed,
    tokenize_call,
)
from packtrain.client.openai.calls import checked

pytestmark = pytest.mark.unit


def body(**fields: Any) -> TokenizeBody:
    return checked(TokenizeBody, {"model": "m", **fields})


def spec_of(**fields: Any) -> JobSpec:
    call = tokenize_call(body(**fields))
    assert call is not None
    return call.specs[0]


@pytest.mark.parametrize(
    ("fields", "adds", "parses"),
    [
        ({"content": "Hi"}, False, True),
        ({"content": "Hi", "add_special": True, "parse_special": False}, True, False),
        ({"prompt": "Hi"}, True, True),
        ({"prompt": "Hi", "add_special_tokens": False}, False, True),
    ],
)
def test_a_text_is_taken_as_its_client_is_used_to(fields: dict[str, Any], adds: bool, parses: bool) -> None:
    spec = spec_of(**fields)

    assert (spec.kind, spec.prompt, spec.list_tokens) == ("count", "Hi", True)
    assert (spec.add_special, spec.parse_special) == (adds, parses)
    assert JobSpec.model_validate_json(spec.to_json()) == spec


def test_a_chat_is_taken_by_its_template() -> None:
    spec = spec_of(messages=[{"role": "user", "content": "Hi"}])

    assert (spec.kind, len(spec.messages), spec.list_tokens) == ("count", 1, True)
    assert JobSpec.model_validate_json(spec.to_json()) == spec


def test_nothing_has_no_tokens_and_needs_no_job() -> None:
    assert tokenize_call(body(content="")) is None
    assert detokenize_call(checked(DetokenizeBody, {"model": "m", "tokens": []})) is None


@pytest.mark.parametrize("fields", [{}, {"content": "Hi", "messages": [{"role": "user", "content": "Hi"}]}])
def test_a_request_has_a_text_or_a_chat(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="one of them"):
        tokenize_call(body(**fields))


def test_pieces_that_are_no_text_are_bytes() -> None:
    pieces = [
        Piece(token=7, text="a"),
        Piece(token=8, text="\ufffd", raw="c3"),
        Piece(token=9, text="\ufffd", raw="a9"),
    ]

    assert listed(body(content="aé"), pieces) == {"tokens": [7, 8, 9], "count": 3}
    assert listed(body(content="aé", with_pieces=True), pieces)["tokens"] == [
        {"id": 7, "piece": "a"},
        {"id": 8, "piece": [0xC3]},
        {"id": 9, "piece": [0xA9]},
    ]
    assert listed(body(prompt="aé", return_token_strs=True), pieces)["token_strs"] == ["a", "\ufffd", "\ufffd"]
    assert joined(pieces) == {"content": "aé", "prompt": "aé"}


def test_tokens_are_asked_for_their_texts() -> None:
    call = detokenize_call(checked(DetokenizeBody, {"model": "m", "tokens": [7, 8]}))

    assert call is not None
    assert (call.specs[0].kind, call.specs[0].prompt_tokens) == ("count", (7, 8))
