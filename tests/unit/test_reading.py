"""What a reader of one answer gets, and when it is told that the answer begins anew."""

from __future__ import annotations

import pytest

from packtrain.broker.chunks import Event
from packtrain.broker.errors import AnswerBegunAnew
from packtrain.broker.ids import JobId
from packtrain.broker.states import JobState
from packtrain.client.reading import Reader

pytestmark = pytest.mark.unit

JOB = JobId("job")


def chunk(index: int, text: str, *tokens: int) -> Event:
    return Event(JOB, "1-0", text, index, tokens)


def texts(events: list[Event]) -> list[str]:
    reader = Reader(JOB)
    return [delta.text for event in events if (delta := reader.take(event))]


def test_chunks_are_given_as_they_come_and_empty_ones_are_not() -> None:
    events = [chunk(0, "he", 1), chunk(1, "", 2), chunk(2, "y", 3), chunk(3, "!"), Event(JOB, "2-0", end=JobState.DEAD)]

    assert texts(events) == ["he", "y", "!"]


def test_an_answer_that_begins_anew_after_text_was_given_is_an_error() -> None:
    with pytest.raises(AnswerBegunAnew, match="job job begins anew"):
        texts([chunk(0, "he", 1), chunk(1, "l", 2), chunk(0, "H", 7)])


def test_an_answer_that_begins_anew_before_any_text_was_given_goes_on() -> None:
    assert texts([chunk(0, "", 1), chunk(0, "", 7), chunk(1, "Hi", 8)]) == ["Hi"]
