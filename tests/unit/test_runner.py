"""One doorbell: a job is claimed, run and ended, and a renewer keeps its lease meanwhile."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from packtrain.broker import vectors
from packtrain.broker.ids import JobId
from packtrain.broker.jobs import Chunk, Claim, Event, RenewVerdict
from packtrain.broker.memory_jobs import MemoryJobs
from packtrain.broker.messages import JobStatus
from packtrain.broker.states import JobState
from packtrain.workers.backends.base import Sampled, StepRows
from packtrain.workers.backends.scripted import N_DIMS, ScriptedBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.leased_job import LeasedJob
from packtrain.workers.publisher import Publisher
from packtrain.workers.receipts import tokens_sha256
from packtrain.workers.renewer import Renewer
from packtrain.workers.runner import Runner, seed_of
from tests.support.clock import FakeClock
from tests.support.factories import COMPUTER, INSTANCE, MODEL, NODE, spec

pytestmark = pytest.mark.unit

PATIENCE_S = 10
LEASE_MS = 1000


class Store(MemoryJobs):
    """An in-memory store that says when a job was claimed, and whose reads can fail."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock, {MODEL: MODEL})
        self.claims = threading.Semaphore(0)
        self.reads_fail = False
        self.on_renew: Callable[[], object] = lambda: None

    def claim(self, *args: Any, **options: Any) -> Claim | None:
        taken = super().claim(*args, **options)
        self.claims.release()
        return taken

    def events(self, after: Mapping[JobId, str], *, block_ms: int | None = None) -> list[Event]:
        if self.reads_fail:
            raise RedisConnectionError("away")
        return super().events(after, block_ms=block_ms)

    def renew(self, held: Iterable[tuple[JobId, int]], *, lease_ms: int) -> dict[JobId, RenewVerdict]:
        news = super().renew(held, lease_ms=lease_ms)
        self.on_renew()
        return news


class Gated(ScriptedBackend):
    """A scripted model whose steps wait at a gate. It makes no tokens of a blank prompt."""

    def __init__(self, *, embeds_only: bool = False) -> None:
        super().__init__(n_slots=2, n_ctx=64, embeds_only=embeds_only)
        self.gate = threading.Event()
        self.gate.set()

    def tokenize(self, text: str, *, is_rendered: bool) -> list[int]:
        return super().tokenize(text.strip(), is_rendered=is_rendered)

    def step(self, rows: Sequence[StepRows], should_stop: Callable[[], bool]) -> list[Sampled]:
        assert self.gate.wait(PATIENCE_S)
        return super().step(rows, should_stop)


class Instance:
    """All parts of an instance but Celery and its process."""

    def __init__(self, *, embeds_only: bool = False) -> None:
        self.clock = FakeClock()
        self.store = Store(self.clock)
        self.backend = Gated(embeds_only=embeds_only)
        self.engine = Engine(self.backend, clock=self.seconds)
        self.publisher = Publisher(
            self.store, INSTANCE, NODE, COMPUTER, self.engine.cancel, threads=lambda: 2, retry_s=0
        )
        self.renewer = Renewer(self.store, self.engine, lease_ms=LEASE_MS, stall_s=60, clock=self.seconds)
        self.rung: list[str] = []
        self.runner = Runner(
            self.store, self.backend, self.engine, self.publisher, self.renewer,
            model=MODEL, instance=INSTANCE, node=NODE, lease_ms=LEASE_MS,
            numerics="fast", ring=lambda model: self.rung.append(model), clock=self.seconds,
        )  # fmt: skip
        self.publisher.start()
        self._engine_thread = threading.Thread(target=self.engine.run, daemon=True)
        self._engine_thread.start()

    def seconds(self) -> float:
        return self.clock() / 1000

    def close(self) -> None:
        self.backend.gate.set()
        self.engine.stop()
        self._engine_thread.join(PATIENCE_S)
        self.publisher.stop()

    def submit(self, prompt: str = "hello", **fields: Any) -> JobId:
        return self.store.submit(JobId("job"), spec(prompt, **fields), max_waiting=10).job_id

    def status(self) -> JobStatus:
        status = self.store.status(JobId("job"))
        assert status is not None
        return status

    def error(self) -> str:
        outcome = self.status().outcome
        assert outcome is not None
        assert outcome.error is not None
        return str(outcome.error["code"])

    def text(self) -> str:
        outcome = self.status().outcome
        assert outcome is not None
        return outcome.text

    def answering(self) -> tuple[threading.Thread, list[dict[str, Any] | None]]:
        """A pool thread that has heard a bell and claimed."""
        replies: list[dict[str, Any] | None] = []
        thread = threading.Thread(target=lambda: replies.append(self.runner.answer()), daemon=True)
        thread.start()
        assert self.store.claims.acquire(timeout=PATIENCE_S)
        return thread, replies


@pytest.fixture
def instance() -> Iterator[Instance]:
    instance = Instance()
    yield instance
    instance.close()


def test_a_bell_runs_a_job_to_its_end(instance: Instance) -> None:
    instance.submit()
    shown = instance.runner.answer()

    assert shown is not None
    assert (shown["job"], shown["end"], shown["tokens"]) == ("job", "stop", 5)
    assert (instance.status().state, instance.text()) == (JobState.SUCCEEDED, "olleh")
    assert instance.renewer.num_held == 0


def test_a_spare_bell_does_nothing(instance: Instance) -> None:
    assert instance.runner.answer() is None


def test_a_draining_instance_claims_nothing(instance: Instance) -> None:
    instance.submit()
    instance.runner.drain()

    assert instance.runner.answer() is None
    assert instance.status().state is JobState.QUEUED


def test_a_prompt_that_fills_the_slot_is_refused_with_its_numbers(instance: Instance) -> None:
    instance.submit("x" * 64)
    instance.runner.answer()

    assert instance.error() == "prompt_too_long"


def test_the_longest_prompt_leaves_room_for_one_token(instance: Instance) -> None:
    instance.submit("x" * 63)
    instance.runner.answer()

    assert (instance.status().state, instance.text()) == (JobState.SUCCEEDED, "x")


def test_a_prompt_without_a_single_token_is_refused_and_the_engine_goes_on(instance: Instance) -> None:
    instance.submit("  ")
    instance.runner.answer()

    assert instance.error() == "prompt_empty"
    assert not instance.engine.is_busy


def test_a_job_resumes_after_what_readers_have(instance: Instance) -> None:
    instance.submit("hello")
    first = instance.store.claim(MODEL, INSTANCE, NODE, lease_ms=LEASE_MS)
    assert first is not None
    instance.store.emit([(first.job_id, first.epoch, Chunk(0, "ol", tuple(b"ol")))])
    instance.store.release(first.job_id, first.epoch)
    instance.runner.answer()

    events = instance.store.events({first.job_id: "0"})
    assert instance.text() == "olleh"
    assert "".join(event.text for event in events) == "olleh"
    assert bytes(token for event in events for token in event.tokens) == b"olleh"


def test_a_job_whose_past_cannot_be_read_goes_back_to_the_queue(instance: Instance) -> None:
    instance.submit()
    first = instance.store.claim(MODEL, INSTANCE, NODE, lease_ms=LEASE_MS)
    assert first is not None
    instance.store.release(first.job_id, first.epoch)
    instance.store.reads_fail = True
    instance.runner.answer()

    assert (instance.status().state, instance.status().attempts) == (JobState.QUEUED, 0)


def test_a_job_that_the_same_instance_lost_and_got_again_is_run_by_the_later_lease(instance: Instance) -> None:
    instance.submit("hello")
    instance.backend.gate.clear()
    older, older_reply = instance.answering()
    instance.clock.advance(LEASE_MS + 1)  # silent too long
    instance.store.reap()
    newer, newer_reply = instance.answering()
    instance.backend.gate.set()
    older.join(PATIENCE_S)
    newer.join(PATIENCE_S)

    assert older_reply[0] is not None
    assert newer_reply[0] is not None
    assert (older_reply[0]["end"], newer_reply[0]["end"]) == ("lost", "stop")
    assert (instance.status().state, instance.status().epoch, instance.text()) == (JobState.SUCCEEDED, 2, "olleh")
    assert instance.engine.stats.slots_used == 0
    assert instance.renewer.num_held == 0


def test_a_cancelled_job_ends_by_the_next_renewal(instance: Instance) -> None:
    job_id = instance.submit("!long")
    instance.backend.gate.clear()
    thread, _ = instance.answering()
    instance.store.cancel(job_id)
    while instance.renewer.num_held == 0:
        thread.join(0.001)
    instance.renewer.renew_once()
    instance.backend.gate.set()
    thread.join(PATIENCE_S)

    assert instance.status().state is JobState.CANCELLED


def test_news_of_an_earlier_lease_do_not_end_a_later_one(instance: Instance) -> None:
    instance.submit()
    leases = []
    for _ in range(2):
        claim = instance.store.claim(MODEL, INSTANCE, NODE, lease_ms=LEASE_MS)
        assert claim is not None
        leases.append(LeasedJob(claim, spec(), 1, clock=instance.seconds, on_news=instance.publisher.news))
        instance.store.reap(INSTANCE)
    cancelled: list[JobId] = []
    instance.engine.cancel = lambda job_id, end: cancelled.append(job_id)  # type: ignore[method-assign]
    instance.renewer.hold(leases[0])
    instance.store.on_renew = lambda: instance.renewer.hold(leases[1])  # while the reply is on its way
    instance.renewer.renew_once()

    assert cancelled == []


def test_an_engine_that_stands_still_is_not_vouched_for(instance: Instance) -> None:
    instance.submit()
    instance.backend.gate.clear()
    thread, _ = instance.answering()
    while not instance.engine.is_busy:
        thread.join(0.001)
    instance.clock.advance(61_000)
    instance.renewer.renew_once()

    assert [reaped.job_id for reaped in instance.store.reap()] == ["job"]


def test_a_text_is_embedded_and_its_receipt_is_of_the_bytes_of_its_vector(instance: Instance) -> None:
    instance.submit("hello", kind="embed")
    shown = instance.runner.answer()

    outcome = instance.status().outcome
    assert shown is not None
    assert (shown["end"], shown["tokens"]) == ("stop", 0)
    assert outcome is not None
    assert outcome.receipt is not None
    assert (outcome.state, outcome.text, outcome.finish_reason) == (JobState.SUCCEEDED, "", None)
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (5, 0)
    assert len(vectors.from_wire(outcome.embedding)) == N_DIMS
    assert outcome.receipt.output_sha256 == hashlib.sha256(base64.b64decode(outcome.embedding)).hexdigest()
    assert outcome.receipt.prompt_sha256 == tokens_sha256(list(b"hello"))


def test_a_text_may_fill_the_whole_context_but_no_more(instance: Instance) -> None:
    instance.submit("x" * 64, kind="embed")
    instance.runner.answer()
    assert instance.status().state is JobState.SUCCEEDED

    instance.store.submit(JobId("more"), spec("x" * 65, kind="embed"), max_waiting=10)
    instance.runner.answer()
    more = instance.store.status(JobId("more"))
    assert more is not None
    assert more.outcome is not None
    assert more.outcome.error is not None
    assert more.outcome.error["code"] == "prompt_too_long"
    assert "65 tokens, 'tiny' embeds 64 at once; split it" in more.outcome.error["message"]


def test_more_dimensions_than_there_are_is_refused(instance: Instance) -> None:
    instance.submit(kind="embed", dimensions=N_DIMS + 1)
    instance.runner.answer()

    assert instance.error() == "invalid_parameter"


def test_a_text_of_no_tokens_is_not_embedded(instance: Instance) -> None:
    instance.submit("  ", kind="embed")
    instance.runner.answer()

    assert instance.error() == "prompt_empty"


def test_a_text_whose_instance_was_lost_is_embedded_again(instance: Instance) -> None:
    instance.submit(kind="embed")
    first = instance.store.claim(MODEL, INSTANCE, NODE, lease_ms=LEASE_MS)
    assert first is not None
    instance.store.release(first.job_id, first.epoch)
    instance.runner.answer()

    assert (instance.status().state, instance.status().epoch) == (JobState.SUCCEEDED, 2)


def test_a_model_for_embedding_refuses_to_answer_and_says_what_to_do() -> None:
    instance = Instance(embeds_only=True)
    instance.submit()
    instance.runner.answer()

    assert instance.error() == "invalid_request"
    outcome = instance.status().outcome
    assert outcome is not None
    assert "'tiny' only makes vectors of texts (`embed`); ask another model" in str(outcome.error)
    instance.close()


def test_a_seed_of_its_own_is_the_same_at_every_try() -> None:
    assert seed_of(JobId("a")) == seed_of(JobId("a"))
    assert seed_of(JobId("a")) != seed_of(JobId("b"))
    assert 0 <= seed_of(JobId("a")) < 2**32
