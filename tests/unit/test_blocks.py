"""An answer as blocks: what is opened, filled and closed, in the order in which it comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.chat import CallDelta, FunctionCall, ToolCall
from packtrain.client.dialects.blocks import INVALID, Block, Blocks, blocks_of
from packtrain.client.result import AnswerDelta, Result

pytestmark = pytest.mark.unit

WEATHER = CallDelta(0, '{"city": ', "call1", "weather")


def changes(*deltas: AnswerDelta) -> list[tuple[str, int, str]]:
    blocks = Blocks()
    told: list[tuple[str, int, str]] = [
        (what, block.index, text) for delta in deltas for what, block, text in blocks.take(delta)
    ]
    return told + [(what, block.index, text) for what, block, text in blocks.end()]


def test_a_block_is_closed_before_the_next_is_opened() -> None:
    assert changes(AnswerDelta(reasoning="hm"), AnswerDelta("a"), AnswerDelta("b"), AnswerDelta(calls=(WEATHER,))) == [
        *[("opened", 0, ""), ("grew", 0, "hm"), ("closed", 0, "")],
        *[("opened", 1, ""), ("grew", 1, "a"), ("grew", 1, "b"), ("closed", 1, "")],
        *[("opened", 2, ""), ("grew", 2, '{"city": '), ("closed", 2, "")],
    ]


def test_each_call_is_a_block_with_its_own_arguments() -> None:
    blocks = Blocks()
    pieces = [WEATHER, CallDelta(0, '"Rome"}'), CallDelta(1, "", "call2", "time")]
    for _ in (*blocks.take(AnswerDelta(calls=tuple(pieces))), *blocks.end()):
        pass

    assert [(block.call_id, block.name, block.arguments) for block in blocks.blocks] == [
        ("call1", "weather", {"city": "Rome"}),
        ("call2", "time", {}),
    ]


def test_text_after_a_call_is_a_block_of_its_own() -> None:
    blocks = Blocks()
    for _ in (*blocks.take(AnswerDelta("a", calls=(WEATHER,))), *blocks.take(AnswerDelta("b"))):
        pass

    assert [(block.kind, block.text) for block in blocks.blocks] == [
        ("text", "a"),
        ("call", '{"city": '),
        ("text", "b"),
    ]


def test_an_answer_without_anything_is_one_empty_text() -> None:
    assert changes() == [("opened", 0, ""), ("closed", 0, "")]


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_arguments_that_are_no_object_are_kept_as_text(text: str) -> None:
    assert Block(0, "call", text).arguments == {INVALID: text}


@given(
    deltas=st.lists(
        st.builds(AnswerDelta, text=st.sampled_from(["", "a", "b"]), reasoning=st.sampled_from(["", "r"])), max_size=20
    )
)
def test_blocks_hold_all_that_came_and_each_is_closed_once(deltas: list[AnswerDelta]) -> None:
    told = changes(*deltas)

    texts = "".join(delta.reasoning + delta.text for delta in deltas)
    assert "".join(text for _, _, text in told) == texts
    opened = [index for what, index, _ in told if what == "opened"]
    assert opened == [index for what, index, _ in told if what == "closed"] == list(range(len(opened)))


def test_a_whole_answer_has_reasoning_then_text_then_calls() -> None:
    call = ToolCall(id="c", function=FunctionCall(name="f", arguments="{}"))
    result = Result("j", "text", "tool_calls", reasoning="why", tool_calls=(call,))

    assert [block.kind for block in blocks_of(result)] == ["reasoning", "text", "call"]
