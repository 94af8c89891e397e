"""One doorbell: a job is claimed, run and ended, and a renewer keeps its lease meanwhile."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from packtrain.broker import vectors
from packtrain.broker.chat import join_calls
from packtrain.broker.chunks import Chunk, Event
from packtrain.broker.fields import Numerics
from packtrain.broker.ids import JobId, Route
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import Claim, RenewVerdict
from packtrain.broker.memory_jobs import MemoryJobs
from packtrain.broker.outcome import JobStatus
from packtrain.broker.pieces import MAX_LISTED_TOKENS, TokenLogprob, text_of
from packtrain.broker.prefixes import prefix_hashes
from packtrain.broker.states import JobState
from packtrain.workers.backends.base import Sampled, StepRows
from packtrain.workers.backends.scripted import END, N_DIMS, ScriptedBackend
from packtrain.workers.bulk_share import BulkShare
from packtrain.workers.chat.deltas import Delta
from packtrain.workers.chat.preparing import prepare
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.sequence import End, Ended, Tokens
from packtrain.workers.engine.text import TextStream
from packtrain.workers.engine_jobs import EngineJobs
from packtrain.workers.extra_jobs import Seats
from packtrain.workers.leased_job import LeasedJob
from packtrain.workers.publisher import Publisher
from packtrain.workers.receipts import tokens_sha256
from packtrain.workers.renewer import Renewer
from packtrain.workers.runner import Runner, seed_of
from tests.support.clock import FakeClock
from tests.support.factories import COMPUTER, DETERMINISTIC, INSTANCE, MODEL, NODE, ROUTE, spec

pytestmark = pytest.mark.unit

PATIENCE_S = 10
LEASE_MS = 1000


class Store(MemoryJobs):
    """An in-memory store that says when a job was claimed, and whose reads can fail."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock, {MODEL: MODEL})
        self.claims = threading.Semaphore(0)
        self.reads_fail = False
        self.unrung: tuple[Route, ...] = ()
        self.prefixes: tuple[str, ...] = ()  # of the last claim
        self.on_renew: Callable[[], object] = lambda: None

    def claim(self, *args: Any, **options: Any) -> Claim | None:
        taken = super().claim(*args, **options)
        self.prefixes = tuple(options.get("prefixes", ()))
        self.claims.release()
        return taken and replace(taken, unrung=self.unrung)

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

    def __init__(self, n_ctx: int, *, can_share: bool, embeds_only: bool, step_s: float) -> None:
        super().__init__(n_slots=2, n_ctx=n_ctx, step_s=step_s, embeds_only=embeds_only, adapters={"pirate": 0.5})
        self._shape = replace(self._shape, can_share=can_share)
        self.gate = threading.Event()
        self.gate.set()

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return super().tokenize(text.strip(), add_special=add_special, parse_special=parse_special)

    def step(self, rows: Sequence[StepRows], should_stop: Callable[[], bool] | None) -> list[Sampled]:
        assert self.gate.wait(PATIENCE_S)
        return super().step(rows, should_stop)


class Instance:
    """All parts of an instance but Celery and its process."""

    def __init__(
        self,
        n_ctx: int = 64,
        *,
        can_share: bool = True,
        embeds_only: bool = False,
        numerics: Numerics = "fast",
        bulk_slots: int = 2,
        step_s: float = 0,
    ) -> None:
        self.clock = FakeClock()
        self.store = Store(self.clock)
        self.backend = Gated(n_ctx, can_share=can_share, embeds_only=embeds_only, step_s=step_s)
        self.engine = Engine(self.backend, clock=self.seconds)
        self.publisher = Publisher(
            self.store, INSTANCE, NODE, COMPUTER, self.engine.cancel, threads=lambda: 2, retry_s=0
        )
        self.renewer = Renewer(self.store, self.engine, lease_ms=LEASE_MS, stall_s=60, clock=self.seconds)
        self.rung: list[str] = []
        self.runner = Runner(
            self.store, EngineJobs(self.store, self.backend, self.engine, model=MODEL, clock=self.seconds),
            self.engine, self.publisher, self.renewer, model=MODEL, instance=INSTANCE, node=NODE, lease_ms=LEASE_MS,
            numerics=numerics, numerics_class=COMPUTER.numerics_class, bulk_slots=bulk_slots,
            extra_jobs=1, ring=lambda model: self.rung.append(model), clock=self.seconds,
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
        thread = threading.Thread(target=lambda: replies.append(self.runner.answer(ROUTE)), daemon=True)
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
    shown = instance.runner.answer(ROUTE)

    assert shown is not None
    assert (shown["job"], shown["end"], shown["tokens"]) == ("job", "stop", 5)
    assert (instance.status().state, instance.text()) == (JobState.SUCCEEDED, "olleh")
    assert instance.renewer.num_held == 0


def test_a_spare_bell_does_nothing(instance: Instance) -> None:
    assert instance.runner.answer(ROUTE) is None


def test_a_draining_instance_claims_nothing(instance: Instance) -> None:
    instance.submit()
    instance.runner.drain()

    assert instance.runner.answer(ROUTE) is None
    assert instance.status().state is JobState.QUEUED


def test_a_prompt_that_fills_the_slot_is_refused_with_its_numbers(instance: Instance) -> None:
    instance.submit("x" * 64)
    instance.runner.answer(ROUTE)

    assert instance.error() == "prompt_too_long"


def test_a_form_that_the_model_cannot_keep_is_the_jobs_error(instance: Instance) -> None:
    instance.submit(params={"response_format": {"type": "json_object"}})
    instance.runner.answer(ROUTE)

    outcome = instance.status().outcome
    assert instance.status().state is JobState.FAILED
    assert outcome
    assert outcome.error
    assert outcome.error["code"] == "invalid_parameter"
    assert "response_format" in outcome.error["message"]


def test_a_job_is_computed_with_its_adapters_and_its_receipt_names_them(instance: Instance) -> None:
    instance.submit(adapters={"pirate": None})
    instance.runner.answer(ROUTE)

    outcome = instance.status().outcome
    assert instance.text() == "pirate*0.5 olleh"
    assert outcome is not None
    assert outcome.receipt is not None
    assert [(a.name, a.scale) for a in outcome.receipt.adapters] == [("pirate", 0.5)]


def test_a_job_that_names_an_adapter_which_is_not_there_fails_alone(instance: Instance) -> None:
    instance.submit(adapters={"unheard": 1})
    instance.runner.answer(ROUTE)

    assert instance.error() == "adapter_unavailable"
    assert not instance.engine.is_busy


def test_the_longest_prompt_leaves_room_for_one_token(instance: Instance) -> None:
    instance.submit("x" * 63)
    instance.runner.answer(ROUTE)

    assert (instance.status().state, instance.text()) == (JobState.SUCCEEDED, "x")


def test_a_prompt_that_is_only_scored_may_fill_the_slot(instance: Instance) -> None:
    instance.submit("x" * 64, params={"max_tokens": 0, "prompt_logprobs": 0})
    instance.runner.answer(ROUTE)

    outcome = instance.status().outcome
    assert outcome is not None
    assert (outcome.state, outcome.text, outcome.finish_reason) == (JobState.SUCCEEDED, "", "length")
    assert [entry.text for entry in outcome.prompt_logprobs] == ["x"] * 64
    assert [entry.logprob is None for entry in outcome.prompt_logprobs] == [True] + [False] * 63


def test_more_logprobs_of_a_prompt_than_a_record_shall_hold_are_refused_with_the_numbers() -> None:
    instance = Instance(n_ctx=4096)
    instance.submit("x" * 3121, params={"prompt_logprobs": 20})
    instance.runner.answer(ROUTE)

    outcome = instance.status().outcome
    assert outcome is not None
    assert outcome.error is not None
    assert (instance.error(), outcome.error["data"]["field"]) == ("invalid_parameter", "prompt_logprobs")
    assert "65541 logprobs" in outcome.error["message"]
    instance.close()


@pytest.mark.parametrize("max_tokens", [None, 0])
def test_an_echo_comes_once_before_the_answer(instance: Instance, max_tokens: int | None) -> None:
    params = {"max_tokens": max_tokens, "prompt_logprobs": 0}
    instance.submit("hello ", echo=True, params=params)
    instance.runner.answer(ROUTE)

    text = "hello " if max_tokens == 0 else "hello olleh"  # this model strips its prompt
    assert instance.text() == text
    assert "".join(event.text for event in instance.store.events({JobId("job"): "0"})) == text


def test_a_resumed_echo_is_not_told_again(instance: Instance) -> None:
    instance.submit("hello", echo=True)
    first = instance.store.claim(MODEL, INSTANCE, NODE, lease_ms=LEASE_MS)
    assert first is not None
    instance.store.emit([(first.job_id, first.epoch, Chunk(0, "hellool", tuple(b"ol")))])
    instance.store.release(first.job_id, first.epoch)
    instance.runner.answer(ROUTE)

    assert instance.text() == "helloolleh"
    assert "".join(event.text for event in instance.store.events({first.job_id: "0"})) == "helloolleh"


def test_tokens_are_answered_as_the_text_that_has_them(instance: Instance) -> None:
    instance.submit("", prompt_tokens=list(b"hello"), echo=True, params={"prompt_logprobs": 0})
    instance.runner.answer(ROUTE)

    outcome = instance.status().outcome
    assert outcome is not None
    assert outcome.receipt is not None
    assert outcome.text == "helloolleh"
    assert "".join(entry.text for entry in outcome.prompt_logprobs) == "hello"
    assert (outcome.usage.prompt_tokens, outcome.receipt.prompt_sha256) == (5, tokens_sha256(list(b"hello")))


def test_an_echo_of_tokens_leaves_control_tokens_out(instance: Instance) -> None:
    instance.submit("", prompt_tokens=[*b"a", END, *b"b"], echo=True, params={"max_tokens": 0, "prompt_logprobs": 0})
    instance.runner.answer(ROUTE)

    assert instance.text() == "ab"


def test_a_token_outside_the_vocabulary_is_refused_with_its_place(instance: Instance) -> None:
    instance.submit("", prompt_tokens=[104, END, END + 1])
    instance.runner.answer(ROUTE)

    outcome = instance.status().outcome
    assert outcome is not None
    assert outcome.error is not None
    assert (instance.error(), outcome.error["data"]["field"]) == ("invalid_parameter", "prompt_tokens")
    assert "prompt_tokens.2 = 257: the vocabulary of 'tiny' has 257 tokens, 0 to 256;" in outcome.error["message"]
    assert not instance.engine.is_busy


def test_tokens_of_a_text_are_listed_with_their_bytes(instance: Instance) -> None:
    instance.submit("a\u00e9", kind="count", list_tokens=True)
    instance.runner.answer(ROUTE)

    outcome = instance.status().outcome
    assert outcome is not None
    assert [(piece.token, piece.data) for piece in outcome.pieces] == [(97, b"a"), (195, b"\xc3"), (169, b"\xa9")]
    assert (text_of(outcome.pieces), outcome.usage.prompt_tokens, outcome.text) == ("a\u00e9", 3, "")


def test_special_tokens_are_listed_as_they_are_written(instance: Instance) -> None:
    instance.submit("", kind="count", list_tokens=True, prompt_tokens=[97, END])
    instance.runner.answer(ROUTE)

    outcome = instance.status().outcome
    assert outcome is not None
    assert text_of(outcome.pieces) == "a<end>"


def test_a_job_that_only_counts_lists_nothing(instance: Instance) -> None:
    instance.submit("abc", kind="count")
    instance.runner.answer(ROUTE)

    outcome = instance.status().outcome
    assert outcome is not None
    assert (outcome.pieces, outcome.usage.prompt_tokens) == ((), 3)


@pytest.mark.parametrize("size", [MAX_LISTED_TOKENS + 1, 3 * MAX_LISTED_TOKENS])
def test_more_tokens_than_a_record_shall_hold_are_not_listed(instance: Instance, size: int) -> None:
    instance.submit("x" * size, kind="count", list_tokens=True)
    instance.runner.answer(ROUTE)

    outcome = instance.status().outcome
    assert outcome is not None
    assert outcome.error is not None
    assert (instance.error(), outcome.error["data"]["field"]) == ("invalid_parameter", "list_tokens")
    assert f"about {size} tokens, at most 131072" in outcome.error["message"]


def test_a_prompt_without_a_single_token_is_refused_and_the_engine_goes_on(instance: Instance) -> None:
    instance.submit("  ")
    instance.runner.answer(ROUTE)

    assert instance.error() == "prompt_empty"
    assert not instance.engine.is_busy


def test_a_job_resumes_after_what_readers_have(instance: Instance) -> None:
    instance.submit("hello")
    first = instance.store.claim(MODEL, INSTANCE, NODE, lease_ms=LEASE_MS)
    assert first is not None
    instance.store.emit([(first.job_id, first.epoch, Chunk(0, "ol", tuple(b"ol")))])
    instance.store.release(first.job_id, first.epoch)
    instance.runner.answer(ROUTE)

    events = instance.store.events({first.job_id: "0"})
    assert instance.text() == "olleh"
    assert "".join(event.text for event in events) == "olleh"
    assert bytes(token for event in events for token in event.tokens) == b"olleh"


def test_a_deterministic_job_of_another_class_is_never_resumed_and_begins_anew_when_that_is_gone() -> None:
    instance = Instance(numerics="deterministic")
    instance.submit("hello", deterministic=True)
    first = instance.store.claim((DETERMINISTIC,), INSTANCE, NODE, lease_ms=LEASE_MS, numerics_class="another")
    assert first is not None
    instance.store.emit([(first.job_id, first.epoch, Chunk(0, "ol?", tuple(b"ol?")))])
    instance.store.release(first.job_id, first.epoch)

    assert instance.runner.answer(DETERMINISTIC) is None
    assert instance.status().state is JobState.QUEUED
    assert instance.store.begin_anew({DETERMINISTIC: {("", COMPUTER.numerics_class)}})
    instance.runner.answer(DETERMINISTIC)
    instance.close()

    events = instance.store.events({first.job_id: "0"})
    assert instance.text() == "olleh"
    assert events[0].index == 0
    assert bytes(token for event in events for token in event.tokens) == b"olleh"


def test_a_job_whose_past_cannot_be_read_goes_back_to_the_queue(instance: Instance) -> None:
    instance.submit()
    first = instance.store.claim(MODEL, INSTANCE, NODE, lease_ms=LEASE_MS)
    assert first is not None
    instance.store.release(first.job_id, first.epoch)
    instance.store.reads_fail = True
    instance.runner.answer(ROUTE)

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


@pytest.mark.parametrize("can_share", [True, False])
def test_a_claim_names_the_beginnings_held_where_they_can_be_shared(can_share: bool) -> None:
    instance = Instance(can_share=can_share)
    text = "a long beginning " * 20
    instance.submit(text)  # more than the slot holds, but that shows only after the claim
    instance.runner.answer(ROUTE)
    instance.close()

    assert instance.store.prefixes == (prefix_hashes(spec(text)) if can_share else ())


def test_a_bell_spent_on_a_job_of_the_other_route_is_rung_again(instance: Instance) -> None:
    instance.submit()
    instance.store.unrung = (DETERMINISTIC,)
    instance.runner.answer(DETERMINISTIC)

    assert instance.rung == [DETERMINISTIC]


def test_a_bell_spent_on_its_own_route_or_with_bells_enough_is_not(instance: Instance) -> None:
    instance.submit()
    instance.store.unrung = (ROUTE,)
    instance.runner.answer(ROUTE)
    instance.store.submit(JobId("other"), spec(), max_waiting=10)
    instance.store.unrung = ()
    instance.runner.answer(DETERMINISTIC)

    assert instance.rung == []


def test_a_slot_that_served_long_enough_rings_for_every_route_that_is_short_of_bells(instance: Instance) -> None:
    instance.submit()
    instance.store.unrung = (DETERMINISTIC, ROUTE)
    instance.backend.gate.clear()
    thread, _ = instance.answering()
    instance.clock.advance(2000)
    instance.backend.gate.set()
    thread.join(PATIENCE_S)

    assert instance.rung == [DETERMINISTIC, ROUTE]


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


def test_a_job_that_ran_as_long_as_it_may_ends_with_what_it_has_and_says_so(instance: Instance) -> None:
    instance.submit("hello " * 5, max_run_ms=500, expires_in_ms=60_000)
    first = instance.store.claim((ROUTE,), INSTANCE, NODE, lease_ms=LEASE_MS)
    assert first is not None
    instance.store.emit([(first.job_id, 1, Chunk(0, " oll", tuple(b" oll")))])
    instance.store.release(first.job_id, 1)
    instance.clock.advance(400)
    instance.backend.gate.clear()
    thread, _ = instance.answering()
    eventually(lambda: instance.engine.is_busy)
    instance.clock.advance(101)
    instance.backend.gate.set()
    thread.join(PATIENCE_S)

    outcome = instance.status().outcome
    assert outcome is not None
    assert outcome.error is not None
    assert (outcome.state, instance.error()) == (JobState.EXPIRED, "job_expired")
    assert "max_run" in outcome.error["message"]
    assert outcome.text.startswith(" oll")


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


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def full() -> Iterator[Instance]:
    """An instance of two slots in which two long bulk jobs run; no bell is heard."""
    instance = Instance(n_ctx=8192, step_s=0.005)  # they take 40 s
    for name in ("first", "second"):
        instance.store.submit(JobId(name), spec(f"!long {name}", lane="bulk"), max_waiting=10)
        instance.answering()
    eventually(lambda: instance.engine.stats.parkable == 2)
    yield instance
    instance.close()


def test_an_interactive_job_that_meets_a_full_instance_is_run_beyond_its_slots(full: Instance) -> None:
    full.submit()

    full.runner.start()

    eventually(lambda: full.status().state is JobState.SUCCEEDED)
    assert full.text() == "olleh"
    assert {full.store.status(JobId(name)).state for name in ("first", "second")} == {JobState.RUNNING}  # type: ignore[union-attr]
    full.runner.drain()


def test_no_more_jobs_are_taken_beyond_the_slots_than_may_be_nor_without_one_that_waits(full: Instance) -> None:
    assert not full.runner.take_extra()
    full.backend.gate.clear()
    full.submit()
    full.store.submit(JobId("another"), spec(), max_waiting=10)

    assert [full.runner.take_extra(), full.runner.take_extra()] == [True, False]
    assert full.store.ready((ROUTE,)) == (1, 0)


def test_nothing_is_taken_beyond_the_slots_where_nothing_can_be_parked(instance: Instance) -> None:
    instance.backend.gate.clear()
    for name in ("first", "second", "job"):
        instance.store.submit(JobId(name), spec(f"!long {name}"), max_waiting=10)
    instance.answering()
    instance.answering()

    assert not instance.runner.take_extra()
    assert instance.store.ready((ROUTE,)) == (1, 0)


def test_a_bell_waits_while_more_jobs_run_than_there_are_slots(full: Instance) -> None:
    full.submit("!long mine")
    assert full.runner.take_extra()
    eventually(lambda: full.engine.stats.parked == 1)
    full.store.submit(JobId("third"), spec(lane="bulk"), max_waiting=10)

    full.store.cancel(JobId("first"))
    full.renewer.renew_once()
    eventually(lambda: full.engine.stats.parked == 0)
    assert full.store.ready((ROUTE,)) == (0, 1)

    full.store.cancel(JobId("job"))
    full.renewer.renew_once()
    eventually(lambda: full.store.ready((ROUTE,)) == (0, 0))


def test_the_lease_of_a_parked_job_is_renewed_and_its_cancel_is_heard(full: Instance) -> None:
    full.submit("!long mine")
    full.runner.take_extra()
    eventually(lambda: full.engine.stats.parked == 1)
    (parked,) = full.engine._places.parked
    full.clock.advance(LEASE_MS - 1)
    full.renewer.renew_once()
    full.clock.advance(LEASE_MS - 1)
    assert full.store.reap() == []

    full.store.cancel(parked)
    full.renewer.renew_once()

    eventually(lambda: full.store.status(parked).state is JobState.CANCELLED)  # type: ignore[union-attr]


def test_the_last_seat_wakes_who_looks_for_more_and_closing_wakes_all() -> None:
    seats = Seats(2, 1)
    woken: SimpleQueue[bool] = SimpleQueue()
    threading.Thread(target=lambda: woken.put(seats.wait_until_taken()), daemon=True).start()
    assert seats.take()
    assert not seats.take_extra()
    assert woken.empty()

    assert seats.take()

    assert woken.get(timeout=PATIENCE_S)
    assert [seats.take_extra(), seats.take_extra()] == [True, False]
    waiting = threading.Thread(target=lambda: woken.put(seats.take()), daemon=True)
    waiting.start()
    seats.give_back()
    assert woken.empty()
    seats.give_back()
    assert woken.get(timeout=PATIENCE_S)
    threading.Thread(target=lambda: woken.put(seats.take()), daemon=True).start()
    seats.close()
    assert woken.get(timeout=PATIENCE_S) is False
    assert not seats.wait_until_taken()


@pytest.fixture
def one_bulk() -> Iterator[Instance]:
    """An instance of two slots that is running a bulk job, its share, while another one waits."""
    instance = Instance(bulk_slots=1)
    instance.backend.gate.clear()
    for name in ("first", "second"):
        instance.store.submit(JobId(name), spec(lane="bulk"), max_waiting=10)
    instance.answering()
    yield instance
    instance.close()


def test_a_bell_of_a_bulk_job_waits_until_the_share_has_room(one_bulk: Instance) -> None:
    thread, _ = one_bulk.answering()
    eventually(lambda: one_bulk.renewer.num_held == 1)
    assert one_bulk.store.ready((ROUTE,)) == (0, 1)

    one_bulk.backend.gate.set()
    thread.join(PATIENCE_S)

    second = one_bulk.store.status(JobId("second"))  # by this bell, or by that of the first in the same second
    assert second is not None
    assert second.state is JobState.SUCCEEDED


def test_a_waiting_bell_answers_an_interactive_job_at_once(one_bulk: Instance) -> None:
    one_bulk.answering()
    one_bulk.store.submit(JobId("job"), spec(), max_waiting=10)

    eventually(lambda: one_bulk.status().state is JobState.RUNNING)
    assert one_bulk.store.ready((ROUTE,)) == (0, 1)


def test_a_waiting_bell_is_spare_once_nothing_waits(one_bulk: Instance) -> None:
    thread, replies = one_bulk.answering()
    one_bulk.store.cancel(JobId("second"))
    thread.join(PATIENCE_S)

    assert replies == [None]


def test_a_drain_ends_the_wait_with_a_bell(one_bulk: Instance) -> None:
    thread, replies = one_bulk.answering()
    one_bulk.runner.drain()
    thread.join(PATIENCE_S)

    assert replies == [None]
    assert one_bulk.store.ready((ROUTE,)) == (0, 1)


def test_of_many_bells_that_wait_one_looks_for_jobs_until_it_leaves() -> None:
    share = BulkShare(0)
    looks: list[int] = []
    found = threading.Event()

    def look() -> bool:
        looks.append(threading.get_ident())
        return found.is_set()

    threads = [threading.Thread(target=share.wait, args=(look,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(looks) >= 3)
    assert len(set(looks)) == 1

    found.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(set(looks)) == 3


def test_a_text_is_embedded_and_its_receipt_is_of_the_bytes_of_its_vector(instance: Instance) -> None:
    instance.submit("hello", kind="embed")
    shown = instance.runner.answer(ROUTE)

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
    instance.runner.answer(ROUTE)
    assert instance.status().state is JobState.SUCCEEDED

    instance.store.submit(JobId("more"), spec("x" * 65, kind="embed"), max_waiting=10)
    instance.runner.answer(ROUTE)
    more = instance.store.status(JobId("more"))
    assert more is not None
    assert more.outcome is not None
    assert more.outcome.error is not None
    assert more.outcome.error["code"] == "prompt_too_long"
    assert "65 tokens, 'tiny' embeds 64 at once; split it" in more.outcome.error["message"]


def test_more_dimensions_than_there_are_is_refused(instance: Instance) -> None:
    instance.submit(kind="embed", dimensions=N_DIMS + 1)
    instance.runner.answer(ROUTE)

    assert instance.error() == "invalid_parameter"


def test_a_text_of_no_tokens_is_not_embedded(instance: Instance) -> None:
    instance.submit("  ", kind="embed")
    instance.runner.answer(ROUTE)

    assert instance.error() == "prompt_empty"


def test_a_text_whose_instance_was_lost_is_embedded_again(instance: Instance) -> None:
    instance.submit(kind="embed")
    first = instance.store.claim(MODEL, INSTANCE, NODE, lease_ms=LEASE_MS)
    assert first is not None
    instance.store.release(first.job_id, first.epoch)
    instance.runner.answer(ROUTE)

    assert (instance.status().state, instance.status().epoch) == (JobState.SUCCEEDED, 2)


def test_a_model_for_embedding_refuses_to_answer_and_says_what_to_do() -> None:
    instance = Instance(embeds_only=True)
    instance.submit()
    instance.runner.answer(ROUTE)

    assert instance.error() == "invalid_request"
    outcome = instance.status().outcome
    assert outcome is not None
    assert "'tiny' only makes vectors of texts (`embed`); ask another model" in str(outcome.error)
    instance.close()


def test_a_model_for_embedding_counts_tokens() -> None:
    instance = Instance(embeds_only=True)
    instance.submit(kind="count")
    instance.runner.answer(ROUTE)

    outcome = instance.status().outcome
    assert outcome is not None
    assert (outcome.state, outcome.usage.prompt_tokens) == (JobState.SUCCEEDED, 5)
    instance.close()


def test_a_job_whose_model_was_exchanged_under_it_fails_with_the_reason(instance: Instance) -> None:
    instance.submit("hello")
    first = instance.store.claim(MODEL, INSTANCE, NODE, lease_ms=LEASE_MS)
    assert first is not None
    instance.store.emit([(first.job_id, first.epoch, Chunk(0, "ol", (111, 257)))])
    instance.store.reap(INSTANCE)

    instance.runner.answer(ROUTE)

    outcome = instance.status().outcome
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error["data"] == {"token": 257, "n_vocab": 257}
    assert "its file was exchanged" in outcome.error["message"]


@pytest.fixture
def roomy() -> Iterator[Instance]:
    """An instance whose slots hold a tool call."""
    instance = Instance(n_ctx=512)
    yield instance
    instance.close()


TOOL = {"type": "function", "function": {"name": "time"}}
CALL = '<tool_call>{"name": "time", "arguments": {"zone": "é"}}</tool_call>'


def chat(answer: str, **fields: Any) -> JobSpec:
    """A chat that the scripted model answers so."""
    return JobSpec(model=MODEL, messages=[{"role": "user", "content": answer[::-1]}], **fields)


def test_an_answer_ends_in_its_parts(roomy: Instance) -> None:
    answer = f"<think>Hm.</think>\n\nI look.\n{CALL}"
    roomy.store.submit(JobId("job"), chat(answer, tools=[TOOL]), max_waiting=10)
    roomy.runner.answer(ROUTE)

    outcome = roomy.status().outcome
    assert outcome is not None
    assert (outcome.text, outcome.reasoning, outcome.finish_reason) == ("I look.", "Hm.", "tool_calls")
    assert [(c.function.name, c.function.arguments) for c in outcome.tool_calls] == [("time", '{"zone": "é"}')]
    assert outcome.usage.completion_tokens == len(answer.encode())
    events = roomy.store.events({JobId("job"): "0"})
    assert "".join(event.text for event in events) == outcome.text
    assert "".join(event.reasoning for event in events) == outcome.reasoning
    assert join_calls(call for event in events for call in event.calls) == outcome.tool_calls


@pytest.mark.parametrize("place", range(0, 110, 3))
def test_a_job_resumes_within_any_part_of_its_answer(roomy: Instance, place: int) -> None:
    answer = f"<think>Hm, é.</think> I see the time. {CALL} "
    spec = chat(answer, tools=[TOOL], params={"stop": ["see it"]})
    roomy.store.submit(JobId("job"), spec, max_waiting=10)
    claim = roomy.store.claim(MODEL, INSTANCE, NODE, lease_ms=LEASE_MS)
    assert claim is not None
    # An earlier lease has come so far, and was then given back.
    lease = LeasedJob(claim, spec, 1, clock=roomy.seconds, on_news=lambda *_: None)
    lease.read_by(prepare(spec, claim.job_id, roomy.backend).parser)
    tokens = answer.encode()[:place]
    if tokens:
        text = TextStream(spec.params.stop)
        lease.on_tokens(Tokens(0, "".join(text.push(bytes([token])) for token in tokens), tuple(tokens)))
        chunk, _ = lease.take()
        assert chunk is not None
        roomy.store.emit([(claim.job_id, claim.epoch, chunk)])
    roomy.store.release(claim.job_id, claim.epoch)
    roomy.runner.answer(ROUTE)

    outcome = roomy.status().outcome
    assert outcome is not None
    assert (outcome.text, outcome.reasoning) == ("I see the time.", "Hm, é.")
    assert [(c.function.name, c.function.arguments) for c in outcome.tool_calls] == [("time", '{"zone": "é"}')]
    events = roomy.store.events({claim.job_id: "0"})
    assert "".join(event.text for event in events) == outcome.text
    assert "".join(event.reasoning for event in events) == outcome.reasoning
    assert join_calls(call for event in events for call in event.calls) == outcome.tool_calls


def test_a_job_that_goes_on_keeps_the_logprobs_of_its_first_tokens(roomy: Instance) -> None:
    spec = JobSpec(kind="complete", model=MODEL, prompt="hello", params={"logprobs": 2, "temperature": 0})
    roomy.store.submit(JobId("job"), spec, max_waiting=10)
    claim = roomy.store.claim((ROUTE,), INSTANCE, NODE, lease_ms=LEASE_MS)
    assert claim is not None
    earlier = [TokenLogprob(token=token, text=chr(token), logprob=-0.25) for token in b"ol"]
    lease = LeasedJob(claim, spec, 1, clock=roomy.seconds, on_news=lambda *_: None)
    for index, entry in enumerate(earlier):
        lease.on_tokens(Tokens(index, entry.text, (entry.token,), (entry,)))
    chunk, _ = lease.take()
    assert chunk is not None
    roomy.store.emit([(claim.job_id, claim.epoch, chunk)])
    roomy.store.release(claim.job_id, claim.epoch)
    roomy.runner.answer(ROUTE)

    outcome = roomy.status().outcome
    assert outcome is not None
    assert "".join(chr(entry.token) for entry in outcome.logprobs) == outcome.text == "olleh"
    assert outcome.logprobs[:2] == tuple(earlier)
    assert [len(entry.top) for entry in outcome.logprobs[2:]] == [1, 1, 1]  # the scripted model knows only its own
    events = roomy.store.events({claim.job_id: "0"})
    assert tuple(entry for event in events for entry in event.logprobs) == outcome.logprobs


def test_a_defect_costs_the_job_that_meets_it_and_not_its_slot(instance: Instance) -> None:
    instance.backend.prepare = lambda params: 1 // 0  # type: ignore[assignment,method-assign]
    job_id = instance.submit()
    instance.runner.answer(ROUTE)

    status = instance.store.status(job_id)
    assert status is not None
    assert status.outcome is not None
    assert status.outcome.error is not None
    assert "ZeroDivisionError" in status.outcome.error["message"]


def test_a_cancelled_job_keeps_what_was_held_back(roomy: Instance) -> None:
    lease_spec = chat("Hello <tool", tools=[TOOL])
    roomy.store.submit(JobId("job"), lease_spec, max_waiting=10)
    claim = roomy.store.claim(MODEL, INSTANCE, NODE, lease_ms=LEASE_MS)
    assert claim is not None
    lease = LeasedJob(claim, lease_spec, 1, clock=roomy.seconds, on_news=lambda *_: None)
    lease.read_by(prepare(lease_spec, claim.job_id, roomy.backend).parser)
    lease.on_tokens(Tokens(0, "Hello <tool", tuple(b"Hello <tool")))
    first, _ = lease.take()
    lease.on_end(Ended(End.CANCELLED, num_output=11))
    last, ended = lease.take()

    assert first is not None
    assert last is not None
    assert ended is not None
    assert (first.text, last.index, last.text) == ("Hello", 11, " <tool")
    assert lease.outcome(ended, INSTANCE, NODE, COMPUTER, threads=1).text == "Hello <tool"


def test_a_parser_that_fails_costs_a_job_its_parts_only(roomy: Instance) -> None:
    class Broken:
        def push(self, text: str) -> Delta:
            raise RuntimeError("broken")

        def flush(self) -> Delta:
            raise RuntimeError("broken")

    spec = chat("Hello")
    roomy.store.submit(JobId("job"), spec, max_waiting=10)
    claim = roomy.store.claim(MODEL, INSTANCE, NODE, lease_ms=LEASE_MS)
    assert claim is not None
    lease = LeasedJob(claim, spec, 1, clock=roomy.seconds, on_news=lambda *_: None)
    lease.read_by(Broken())
    lease.on_tokens(Tokens(0, "Hello", tuple(b"Hello")))
    lease.on_end(Ended(End.STOP, " there", num_output=5))
    chunk, ended = lease.take()

    assert chunk is not None
    assert ended is not None
    assert chunk.text == lease.outcome(ended, INSTANCE, NODE, COMPUTER, threads=1).text == "Hello there"


@pytest.mark.parametrize("prompt", ["hello", "x" * 100])
def test_tokens_are_counted_without_an_answer(instance: Instance, prompt: str) -> None:
    instance.submit(prompt)
    spec = JobSpec(kind="count", model=MODEL, prompt=prompt)
    instance.store.submit(JobId("count"), spec, max_waiting=10)
    instance.store.cancel(JobId("job"))
    instance.runner.answer(ROUTE)

    status = instance.store.status(JobId("count"))
    assert status is not None
    assert status.outcome is not None
    assert (status.state, status.outcome.usage.prompt_tokens) == (JobState.SUCCEEDED, len(prompt))
    assert (status.outcome.usage.completion_tokens, instance.engine.stats.steps) == (0, 0)


def test_a_gap_cannot_be_filled_by_every_model(instance: Instance) -> None:
    instance.submit("def f(", suffix="return x")
    instance.runner.answer(ROUTE)

    assert instance.error() == "invalid_request"


def test_a_seed_of_its_own_is_the_same_at_every_try() -> None:
    assert seed_of(JobId("a")) == seed_of(JobId("a"))
    assert seed_of(JobId("a")) != seed_of(JobId("b"))
    assert 0 <= seed_of(JobId("a")) < 2**32
