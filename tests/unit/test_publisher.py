"""The way of tokens from the engine to the store: in order, none lost and none doubled, whatever the broker does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError

from packtrain.broker.chunks import Chunk
from packtrain.broker.errors import JobFailed
from packtrain.broker.ids import InstanceId, JobId
from packtrain.broker.jobs import EmitReply
from packtrain.broker.memory_jobs import MemoryJobs
from packtrain.broker.outcome import JobStatus, Outcome
from packtrain.broker.states import JobState
from packtrain.broker.tally import NO_PACE, Pace
from packtrain.workers.engine.sequence import End, Ended, Tokens
from packtrain.workers.leased_job import LeasedJob
from packtrain.workers.publisher import Publisher
from tests.support.clock import FakeClock
from tests.support.factories import COMPUTER, INSTANCE, MODEL, NODE, ROUTES, spec

pytestmark = pytest.mark.unit

PATIENCE_S = 10


class UnsteadyJobs(MemoryJobs):
    """A store whose link breaks: before a write (nothing happens) or after it (only the reply is lost)."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        super().__init__(self.clock, {MODEL: MODEL})
        self.writes: list[tuple[str, object]] = []
        self.breaks: list[str] = []  # "before" or "after", one for each of the next writes; then the link holds
        self.is_away = False
        self.on_break: Callable[[], object] = lambda: None

    def emit(self, chunks: Sequence[tuple[JobId, int, Chunk]]) -> list[EmitReply]:
        with self._link("emit", [chunk for _, _, chunk in chunks]):
            return super().emit(chunks)

    def finish(
        self, job_id: JobId, epoch: int, outcome: Outcome, last: Chunk | None = None, *, pace: Pace = NO_PACE
    ) -> bool:
        with self._link("finish", last):
            return super().finish(job_id, epoch, outcome, last, pace=pace)

    def release(self, job_id: JobId, epoch: int) -> bool:
        with self._link("release", None):
            return super().release(job_id, epoch)

    def _link(self, name: str, what: object) -> _Link:
        return _Link(self, name, what)


class _Link:
    def __init__(self, store: UnsteadyJobs, name: str, what: object) -> None:
        self._store, self._name, self._what = store, name, what
        self._how = ""

    def __enter__(self) -> None:
        store = self._store
        store.writes.append((self._name, self._what))
        self._how = "before" if store.is_away else store.breaks.pop(0) if store.breaks else ""
        if self._how == "before":
            store.on_break()
            raise RedisConnectionError("broken before the write")

    def __exit__(self, *_: object) -> None:
        if self._how == "after":
            self._store.on_break()
            raise RedisConnectionError("broken after the write")


class Desk:
    """A publisher on an unsteady store."""

    def __init__(self) -> None:
        self.store = UnsteadyJobs()
        self.cancels: list[tuple[JobId, End]] = []
        self.publisher = Publisher(
            self.store,
            INSTANCE,
            NODE,
            COMPUTER,
            lambda job_id, end: self.cancels.append((job_id, end)),
            threads=lambda: 2,
            retry_s=0,
        )

    def lease(self, name: str = "job") -> LeasedJob:
        self.store.submit(JobId(name), spec(), max_waiting=100)
        claim = self.store.claim(ROUTES, INSTANCE, NODE, lease_ms=60_000)
        assert claim is not None
        return LeasedJob(claim, spec(), 1, clock=lambda: 0.0, on_news=self.publisher.news)

    def status(self, job: LeasedJob) -> JobStatus:
        status = self.store.status(job.job_id)
        assert status is not None
        return status

    def stream(self, job: LeasedJob) -> tuple[str, list[int]]:
        """Text and tokens that readers have."""
        events = self.store.events({job.job_id: "0"})
        return "".join(event.text for event in events), [token for event in events for token in event.tokens]


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.store.is_away = False
    desk.publisher.stop()


def say(job: LeasedJob, text: str, start: int = 0) -> None:
    """As the engine does: one token for each character."""
    for index, character in enumerate(text, start):
        job.on_tokens(Tokens(index, character, (ord(character),)))


def end(job: LeasedJob, how: End = End.STOP, num_output: int = 0, tail: str = "") -> None:
    job.on_end(Ended(how, tail, num_output))


def wait(job: LeasedJob) -> None:
    assert job.published.wait(PATIENCE_S), "the end was never published"


def test_tokens_stand_in_the_stream_and_the_end_after_them(desk: Desk) -> None:
    job = desk.lease()
    desk.publisher.start()
    say(job, "hello")
    end(job, num_output=5)
    wait(job)

    assert desk.stream(job) == ("hello", list(b"hello"))
    assert desk.store.events({job.job_id: "0"})[-1].end is JobState.SUCCEEDED
    assert desk.store.writes[-1][0] == "finish"


def test_the_outcome_holds_the_whole_text_and_the_facts(desk: Desk) -> None:
    job = desk.lease()
    job.prompt = [1, 2, 3]
    desk.publisher.start()
    say(job, "hel")
    end(job, num_output=4, tail="lo")
    wait(job)

    outcome = desk.status(job).outcome
    assert outcome is not None
    assert (outcome.text, outcome.finish_reason, outcome.seed) == ("hello", "stop", 1)
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (3, 4)
    assert (outcome.node, outcome.instance) == (NODE, INSTANCE)
    assert desk.stream(job)[0] == "hello"


def test_the_last_tokens_travel_with_the_end_in_one_write(desk: Desk) -> None:
    job = desk.lease()
    say(job, "hi")
    end(job, num_output=2)
    desk.publisher.start()
    wait(job)

    assert desk.store.writes == [("finish", Chunk(0, "hi", (104, 105)))]


def test_a_tail_without_tokens_reaches_the_readers(desk: Desk) -> None:
    job = desk.lease()
    end(job, num_output=2, tail="rest")
    desk.publisher.start()
    wait(job)

    assert desk.store.writes == [("finish", Chunk(2, "rest", ()))]


def test_tokens_of_many_jobs_go_out_in_one_write(desk: Desk) -> None:
    jobs = [desk.lease(f"job{number}") for number in range(5)]
    for job in jobs:
        say(job, "ab")
    desk.publisher.start()
    desk.store.events({jobs[0].job_id: "0"}, block_ms=PATIENCE_S * 1000)

    assert desk.store.writes[0] == ("emit", [Chunk(0, "ab", (97, 98))] * 5)


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_chunk_whose_write_broke_off_is_written_again_while_more_tokens_come(desk: Desk, how: str) -> None:
    job = desk.lease()
    say(job, "one ")
    desk.store.breaks = [how] * 3
    more = iter(["two ", "three ", "four"])
    position = [4]

    def engine_goes_on() -> None:
        text = next(more)
        say(job, text, position[0])
        position[0] += len(text)

    desk.store.on_break = engine_goes_on
    desk.publisher.start()
    while desk.stream(job)[0] != "one two three four":
        assert desk.store.events(
            {job.job_id: str(len(desk.store.events({job.job_id: "0"})))}, block_ms=PATIENCE_S * 1000
        )
    end(job, num_output=18)
    wait(job)

    assert desk.stream(job) == ("one two three four", list(b"one two three four"))
    assert [write for write in desk.store.writes if write[0] == "emit"][:4] == [
        ("emit", [Chunk(0, "one ", tuple(b"one "))])
    ] * 4


@pytest.mark.parametrize("how", ["before", "after"])
def test_an_end_whose_write_broke_off_is_written_once(desk: Desk, how: str) -> None:
    job = desk.lease()
    say(job, "hi")
    end(job, num_output=2)
    desk.store.breaks = [how, how]
    desk.publisher.start()
    wait(job)

    assert desk.stream(job) == ("hi", [104, 105])
    assert [event.end for event in desk.store.events({job.job_id: "0"}) if event.end] == [JobState.SUCCEEDED]


def test_a_job_that_was_lost_is_ended_in_the_engine(desk: Desk) -> None:
    job = desk.lease()
    desk.store.reap(INSTANCE)
    say(job, "ghost")
    desk.publisher.start()
    desk.publisher.stop()

    assert desk.cancels == [(job.job_id, End.LOST)]
    assert desk.stream(job) == ("", [])


def test_a_job_that_a_client_cancelled_is_ended_in_the_engine(desk: Desk) -> None:
    job = desk.lease()
    desk.store.cancel(job.job_id)
    say(job, "a")
    desk.publisher.start()
    desk.publisher.stop()

    assert desk.cancels == [(job.job_id, End.CANCELLED)]


def test_replies_meet_the_jobs_they_belong_to(desk: Desk) -> None:
    jobs = [desk.lease(name) for name in ("fine", "cancelled", "also-fine")]
    desk.store.cancel(JobId("cancelled"))
    for job in jobs:
        say(job, "a")
    desk.publisher.start()
    desk.publisher.stop()

    assert desk.cancels == [(JobId("cancelled"), End.CANCELLED)]


def test_a_lost_job_writes_nothing_more(desk: Desk) -> None:
    job = desk.lease()
    say(job, "ghost")
    end(job, End.LOST)
    desk.publisher.start()
    wait(job)

    assert desk.store.writes == []


def test_the_end_of_a_job_lost_meanwhile_is_refused_and_its_thread_is_free(desk: Desk) -> None:
    job = desk.lease()
    desk.store.reap(INSTANCE)
    say(job, "ghost")
    end(job, num_output=5)
    desk.publisher.start()
    wait(job)

    assert desk.status(job).state is JobState.QUEUED
    assert desk.stream(job) == ("", [])


def test_a_released_job_waits_again_with_all_its_tokens_in_the_stream(desk: Desk) -> None:
    job = desk.lease()
    say(job, "so far")
    end(job, End.RELEASED, num_output=6)
    desk.publisher.start()
    wait(job)

    assert [name for name, _ in desk.store.writes] == ["emit", "release"]
    assert desk.stream(job) == ("so far", list(b"so far"))
    assert (desk.status(job).state, desk.status(job).attempts) == (JobState.QUEUED, 0)


def test_a_released_job_has_its_tokens_in_the_stream_even_when_the_link_broke(desk: Desk) -> None:
    job = desk.lease()
    say(job, "so far")
    end(job, End.RELEASED, num_output=6)
    desk.store.breaks = ["after", "before", "", "before"]
    desk.publisher.start()
    wait(job)

    assert desk.stream(job) == ("so far", list(b"so far"))
    assert desk.status(job).state is JobState.QUEUED


@pytest.mark.parametrize(
    ("how", "state", "code"),
    [
        (End.CANCELLED, JobState.CANCELLED, "job_cancelled"),
        (End.EXPIRED, JobState.EXPIRED, "job_expired"),
        (End.FAILED, JobState.FAILED, "job_failed"),
    ],
)
def test_an_end_without_success_says_why_and_keeps_the_text(desk: Desk, how: End, state: JobState, code: str) -> None:
    job = desk.lease()
    say(job, "half")
    job.on_end(Ended(how, "", 4, error=JobFailed("broken; mend it") if how is End.FAILED else None))
    desk.publisher.start()
    wait(job)

    outcome = desk.status(job).outcome
    assert outcome is not None
    assert outcome.error is not None
    assert (outcome.state, outcome.error["code"], outcome.text, outcome.finish_reason) == (state, code, "half", None)


def test_an_outcome_names_the_stop_string_that_ended_it(desk: Desk) -> None:
    job = desk.lease()
    job.on_end(Ended(End.STOP, stopped_by="###"))
    desk.publisher.start()
    wait(job)

    outcome = desk.status(job).outcome
    assert outcome is not None
    assert (outcome.finish_reason, outcome.stopped_by) == ("stop", "###")


def test_text_of_an_earlier_lease_is_in_the_outcome_but_not_sent_again(desk: Desk) -> None:
    job = desk.lease()
    job.resume("before ", [], [])
    say(job, "after", 7)
    end(job, num_output=12)
    desk.publisher.start()
    wait(job)

    outcome = desk.status(job).outcome
    assert outcome is not None
    assert outcome.text == "before after"
    assert desk.stream(job)[0] == "after"


def test_a_stop_publishes_what_is_left(desk: Desk) -> None:
    jobs = [desk.lease(f"job{number}") for number in range(3)]
    desk.publisher.start()
    for job in jobs:
        say(job, "hi")
        end(job, num_output=2)
    desk.publisher.stop()

    assert {desk.status(job).state for job in jobs} == {JobState.SUCCEEDED}


def test_a_stop_does_not_wait_for_a_broker_that_is_away(desk: Desk) -> None:
    job = desk.lease()
    desk.store.is_away = True
    desk.publisher.start()
    say(job, "hi")
    end(job, num_output=2)
    desk.publisher.stop()

    assert job.published.is_set()
    assert desk.status(job).state is JobState.RUNNING  # its lease will lapse


def test_a_later_lease_of_a_job_is_published_beside_an_earlier_one(desk: Desk) -> None:
    older = desk.lease()
    desk.store.reap(INSTANCE)
    claim = desk.store.claim(ROUTES, InstanceId("tiny-1"), NODE, lease_ms=60_000)
    assert claim is not None
    newer = LeasedJob(claim, spec(), 1, clock=lambda: 0.0, on_news=desk.publisher.news)
    say(older, "old")
    end(older, End.LOST)
    say(newer, "new")
    end(newer, num_output=3)
    desk.publisher.start()
    wait(newer)
    wait(older)

    assert desk.stream(newer)[0] == "new"


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(st.text("abc", min_size=1, max_size=5), max_size=6),
    breaks=st.lists(st.sampled_from(["before", "after", ""]), max_size=8),
)
def test_readers_get_every_token_once_however_often_the_link_breaks(parts: list[str], breaks: list[str]) -> None:
    desk = Desk()
    job = desk.lease()
    desk.store.breaks = breaks
    desk.publisher.start()
    written = 0
    for part in parts:
        say(job, part, written)
        written += len(part)
    end(job, num_output=written, tail="!")
    wait(job)
    desk.publisher.stop()

    text = "".join(parts)
    assert desk.stream(job) == (text + "!", [ord(character) for character in text])
