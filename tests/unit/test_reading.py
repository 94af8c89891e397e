"""What a reader of one answer gets, and when it is told that the answer begins anew."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from packtrain.broker.chunks import Event
from packtrain.broker.errors import AnswerBegunAnew
from packtrain.broker.ids import JobId
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import Submitted
from packtrain.broker.states import JobState
from packtrain.client import AsyncPacktrain, Packtrain
from packtrain.client.reading import Reader
from tests.support.factories import MODEL
from tests.support.memory_transport import AsyncMemoryTransport, MemoryTransport

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


class Answering(MemoryTransport):
    """Answers each job at once, and counts the events it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.num_given = 0

    def submit(self, job_id: JobId, spec: JobSpec) -> Submitted:
        submitted = super().submit(job_id, spec)
        self.answer_all()
        return submitted

    def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        events = super().events(after, block_s=block_s)
        self.num_given += len(events)
        return events


def test_who_waits_for_many_reads_each_event_once() -> None:
    transport = Answering()
    with Packtrain(transport=transport) as fleet:
        results = list(fleet.map(MODEL, [f"prompt {number}" for number in range(200)], raw=True))

    assert len(results) == 200
    assert transport.num_given == 2 * 200  # a chunk and an end of each job


def test_tasks_that_wait_for_many_read_each_event_once() -> None:
    blocking = Answering()
    transport = AsyncMemoryTransport()
    transport.blocking = blocking
    given = 0
    really = transport.events

    async def counted(after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        nonlocal given
        events = await really(after, block_s=block_s)
        given += len(events)
        return events

    transport.events = counted  # type: ignore[method-assign]

    async def main() -> int:
        async with AsyncPacktrain(transport=transport) as fleet:
            return len([result async for result in fleet.map(MODEL, [f"p {n}" for n in range(100)], raw=True)])

    assert asyncio.run(main()) == 100
    assert given == 2 * 100
