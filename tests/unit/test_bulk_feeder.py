"""The loop of a bulk run on a fleet in memory, whose instances the test plays."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from packtrain.broker.chunks import Event
from packtrain.broker.errors import BrokerUnavailable, JobFailed, ModelLoadFailed, QueueFull, SetupError, TryLater
from packtrain.broker.ids import JobId
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import Submitted
from packtrain.broker.outcome import JobStatus, Outcome, Usage
from packtrain.broker.states import JobState
from packtrain.client.bulk import BulkOptions, BulkRun
from packtrain.client.bulk.feeder import Feeder
from packtrain.client.bulk.flights import MOST_TRIES
from packtrain.client.bulk.intake import take_in
from packtrain.client.bulk.ledger import Ledger, State
from packtrain.client.bulk.output import Journal
from packtrain.client.bulk.progress import Tally
from packtrain.client.bulk.translate import Manner
from packtrain.client.bulk.window import LEAST
from tests.support.bulk_runs import read_rows, row, write_rows
from tests.support.clock import FakeClock
from tests.support.factories import INSTANCE, MODEL, NODE, ROUTES
from tests.support.memory_transport import MemoryTransport

pytestmark = pytest.mark.unit

Answer = Callable[[JobSpec], Outcome]


def prompt_of(spec: JobSpec) -> str:
    return spec.messages[-1].content


def backwards(spec: JobSpec) -> Outcome:
    return Outcome(state=JobState.SUCCEEDED, text=prompt_of(spec)[::-1], usage=Usage(completion_tokens=1), node=NODE)


def failed(error: Exception) -> Outcome:
    assert isinstance(error, JobFailed | ModelLoadFailed)
    return Outcome(state=JobState.FAILED, error=error.to_wire())


class Fleet(MemoryTransport):
    """A fleet whose instance answers when the feeder sleeps, and that fails as it is told to."""

    def __init__(self, answer: Answer = backwards) -> None:
        super().__init__()
        self.answer = answer
        self.most = 0  # jobs that waited at once
        self.answered: list[str] = []
        self.trouble: list[Exception] = []  # of the next submissions
        self.forgotten: list[JobId] = []  # jobs that the broker lost

    def submit(self, job_id: JobId, spec: JobSpec) -> Submitted:
        if self.trouble:
            raise self.trouble.pop(0)
        if job_id in self.forgotten:
            self.forgotten.remove(job_id)
        return super().submit(job_id, spec)

    def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        return super().events(after, block_s=0)  # nobody else would make one meanwhile

    def statuses(self, job_ids: Collection[JobId]) -> dict[JobId, JobStatus | None]:
        found = super().statuses(job_ids)
        return {job_id: None if job_id in self.forgotten else status for job_id, status in found.items()}

    def play(self, most: int = 10_000) -> None:
        """Answer jobs that wait."""
        self.most = max(self.most, sum(self.store.waiting().values()))
        while most and (claim := self.store.claim(ROUTES, INSTANCE, NODE, lease_ms=60_000)):
            spec = JobSpec.model_validate_json(claim.spec_json)
            self.answered.append(prompt_of(spec))
            self.store.finish(claim.job_id, claim.epoch, self.answer(spec))
            most -= 1


class Run:
    """A run in a folder: `feed` is what one process does of it."""

    def __init__(self, folder: Path, rows: list[Any], fleet: Fleet) -> None:
        self.folder = folder
        self.fleet = fleet
        self.source = write_rows(folder / "in.jsonl", rows)
        self.ledger = Ledger(folder / "ledger.sqlite")
        self.found = take_in(str(self.source), self.ledger, Manner(), {MODEL: MODEL})
        self.clock = FakeClock()
        self.reasons: set[str] = set()  # why it waits, as it was told
        self.blocked: list[Any] = []

    def feed(self, play: Callable[[Feeder], None] | None = None, *, is_cancelled: bool = False) -> Tally:
        """Run until the end, or as long as `play` (called when the feeder sleeps) lets it.

        Args:
            is_cancelled: Before it begins.
        """
        tally = Tally.of(self.ledger.counts())
        rows = os.open(self.source, os.O_RDONLY)
        answers, errors = Journal(self.folder / "out"), Journal(self.folder / "err")

        def sleep(seconds: float) -> None:
            self.clock.advance(int(seconds * 1000))
            if play:
                play(feeder)
            else:
                self.fleet.play()

        feeder = Feeder(
            self.fleet, self.ledger, rows, answers, errors, run_id="run", manner=Manner(), tally=tally,
            report=lambda now: self.reasons.add(now.waits_for), clock=lambda: self.clock.now_ms / 1000, sleep=sleep,
        )  # fmt: skip
        if is_cancelled:
            feeder.cancel()
        try:
            self.blocked = feeder.run()
        finally:
            answers.close()
            errors.close()
            os.close(rows)
        return tally

    @property
    def out(self) -> dict[str, str]:
        """Answers by id; each once."""
        rows = read_rows(self.folder / "out")
        assert len({each["custom_id"] for each in rows}) == len(rows)
        return {each["custom_id"]: each["response"]["body"]["choices"][0]["message"]["content"] for each in rows}

    @property
    def failures(self) -> dict[str, Any]:
        """Errors by id."""
        return {each["custom_id"]: each["response"]["body"]["error"] for each in read_rows(self.folder / "err")}


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def rows(count: int, **body: Any) -> list[dict[str, Any]]:
    return [row(number, MODEL, **body) for number in range(count)]


def test_every_row_is_answered_once_and_only_a_window_of_them_waits_in_the_fleet(tmp_path: Path, fleet: Fleet) -> None:
    run = Run(tmp_path, rows(100), fleet)

    tally = run.feed(lambda _: fleet.play(4))

    assert run.out == {f"row-{n}": f"row {n}"[::-1] for n in range(100)}
    assert (tally.completed, tally.failed, len(fleet.answered)) == (100, 0, 100)
    assert LEAST <= fleet.most < 100
    assert run.ledger.counts()[MODEL].rows == {State.DONE: 100}


def test_rows_that_begin_alike_are_run_one_after_the_other(tmp_path: Path, fleet: Fleet) -> None:
    begins = ["a" * 300, "b" * 300]
    run = Run(tmp_path, [row(n, MODEL, text=f"{begins[n % 2]} {n}") for n in range(20)], fleet)
    run.feed()

    assert sum(a[0] != b[0] for a, b in pairwise(fleet.answered)) == 1


def test_a_process_that_dies_leaves_its_jobs_to_the_next_one_and_none_runs_twice(tmp_path: Path, fleet: Fleet) -> None:
    run = Run(tmp_path, rows(50), fleet)

    def die(feeder: Feeder) -> None:
        fleet.play(3)
        if len(fleet.answered) > 20:
            raise MemoryError

    with pytest.raises(MemoryError):
        run.feed(die)
    os.truncate(tmp_path / "out", run.ledger.end_of(State.DONE))  # as if they had never been written
    run.feed()

    assert len(run.out) == len(fleet.answered) == 50


def test_a_job_that_the_broker_forgot_is_submitted_again(tmp_path: Path, fleet: Fleet) -> None:
    run = Run(tmp_path, rows(8), fleet)
    asleep = 0

    def play(_: Feeder) -> None:
        nonlocal asleep
        asleep += 1
        if asleep == 1:
            fleet.forgotten = list(fleet.submitted)
        run.clock.advance(3000)
        if not fleet.forgotten:
            fleet.play()

    run.feed(play)

    assert len(run.out) == 8
    assert len(fleet.submitted) == 16
    assert len(set(fleet.submitted)) == 8


def test_a_broker_that_is_away_and_a_queue_that_is_full_are_waited_for(tmp_path: Path, fleet: Fleet) -> None:
    run = Run(tmp_path, rows(10), fleet)
    full = QueueFull(model=MODEL, waiting=1, limit=1, retry_after_s=30)
    begin_ms = run.clock.now_ms
    fleet.trouble = [BrokerUnavailable(url="x", reason="gone")] * 3 + [full, TryLater("not now")]

    run.feed()

    assert len(run.out) == 10
    assert run.clock.now_ms - begin_ms > 30_000


def test_what_the_fleet_fails_is_tried_again_and_then_it_has_failed(tmp_path: Path, fleet: Fleet) -> None:
    fleet.answer = lambda spec: failed(JobFailed("no luck")) if "bad" in prompt_of(spec) else backwards(spec)
    run = Run(tmp_path, [row(1, MODEL, text="bad"), row(2, MODEL)], fleet)

    tally = run.feed()

    assert fleet.answered.count("bad") == MOST_TRIES
    assert (list(run.out), tally.failed) == (["row-2"], 1)
    assert run.failures["row-1"]["code"] == "job_failed"

    run.ledger.retry_failed()
    os.truncate(tmp_path / "err", 0)
    fleet.answer = backwards
    assert run.feed().failed == 0
    assert run.out["row-1"] == "dab"


def test_a_model_that_cannot_load_keeps_its_rows_to_do(tmp_path: Path, fleet: Fleet) -> None:
    fleet.answer = lambda _: failed(ModelLoadFailed("no memory"))
    run = Run(tmp_path, rows(30), fleet)
    tally = run.feed()

    assert (tally.completed, tally.failed) == (0, 0)
    assert [str(error) for error in run.blocked] == ["no memory"]

    fleet.answer = backwards  # it was mended
    assert run.feed().completed == 30


def test_several_choices_and_prompts_of_a_row_are_jobs_of_their_own_and_one_answer(
    tmp_path: Path, fleet: Fleet
) -> None:
    fleet.answer = lambda spec: Outcome(state=JobState.SUCCEEDED, text=f"seed {spec.params.seed}")
    run = Run(tmp_path, rows(3, n=4), fleet)
    run.feed()

    for line in read_rows(tmp_path / "out"):
        texts = [choice["message"]["content"] for choice in line["response"]["body"]["choices"]]
        assert len(set(texts)) == 4
    assert len(fleet.answered) == 12


def test_a_row_of_which_one_job_fails_is_one_failure(tmp_path: Path, fleet: Fleet) -> None:
    seeds: set[int | None] = set()

    def answer(spec: JobSpec) -> Outcome:
        seeds.add(spec.params.seed)
        return failed(JobFailed("no luck")) if spec.params.seed == 7 else backwards(spec)

    fleet.answer = answer
    run = Run(tmp_path, [row(1, MODEL, n=3, seed=7), row(2, MODEL)], fleet)
    tally = run.feed(lambda _: fleet.play(1))

    assert (tally.completed, tally.failed, len(run.failures)) == (1, 1, 1)
    assert not fleet.store.waiting()


def test_cancelling_ends_what_is_in_the_fleet_and_keeps_what_is_done(tmp_path: Path, fleet: Fleet) -> None:
    run = Run(tmp_path, rows(50), fleet)

    def play(feeder: Feeder) -> None:
        if len(fleet.answered) >= 10:
            feeder.cancel()
        else:
            fleet.play(5)

    tally = run.feed(play)

    assert 10 <= tally.completed < 50
    assert not fleet.store.waiting()
    assert run.feed().completed == 50  # and it can be gone on with
    assert len(run.out) == 50


def test_cancelling_ends_jobs_of_a_process_that_was_killed_and_keeps_their_answers(
    tmp_path: Path, fleet: Fleet
) -> None:
    run = Run(tmp_path, rows(50, n=2), fleet)
    tally = run.feed(lambda feeder: feeder.stop())
    waiting = sum(fleet.store.waiting().values())
    assert waiting == tally.in_flight > 10
    fleet.play(6)  # three rows, of which nobody heard

    tally = run.feed(lambda _: None, is_cancelled=True)

    assert not fleet.store.waiting()
    assert len(fleet.answered) == 6
    assert len(run.out) == tally.completed == 3
    assert run.feed().completed == 50
    assert len(run.out) == 50


def test_stopping_leaves_jobs_in_the_fleet(tmp_path: Path, fleet: Fleet) -> None:
    run = Run(tmp_path, rows(50), fleet)
    tally = run.feed(lambda feeder: feeder.stop())

    assert tally.completed == 0
    assert sum(fleet.store.waiting().values()) == tally.in_flight > 0


def test_lines_that_are_no_rows_fail_by_themselves_when_they_are_not_refused(tmp_path: Path, fleet: Fleet) -> None:
    run = Run(tmp_path, [row(1, MODEL), "no json", row(2, "nosuch"), row(3, MODEL, stream=True)], fleet)
    assert (run.found.bad.count, run.found.fatal.count) == (3, 0)

    tally = run.feed()

    assert (list(run.out), tally.failed) == (["row-1"], 3)
    assert {name: error["code"] for name, error in run.failures.items()} == {
        None: "invalid_json_line", "row-2": "model_not_found", "row-3": "streaming_unsupported",
    }  # fmt: skip


def test_a_full_disk_ends_the_run_with_a_sentence_and_costs_nothing(tmp_path: Path, fleet: Fleet) -> None:
    class Quick(Fleet):
        def submit(self, job_id: JobId, spec: JobSpec) -> Submitted:
            submitted = super().submit(job_id, spec)
            self.play()
            return submitted

    quick = Quick()
    out = tmp_path / "out.jsonl"
    out.symlink_to("/dev/full")
    options = BulkOptions(source=str(write_rows(tmp_path / "in.jsonl", rows(5))), out=out)
    with BulkRun(quick, options) as bulk:
        bulk.prepare()
        with pytest.raises(SetupError, match="No space left"):
            bulk.run()
    out.unlink()  # there is room again

    with BulkRun(quick, options) as bulk:
        bulk.prepare()
        assert bulk.run().completed == 5
    assert len(read_rows(out)) == len(quick.answered) == 5


def test_a_run_in_which_nothing_ends_says_why(tmp_path: Path, fleet: Fleet) -> None:
    run = Run(tmp_path, rows(3), fleet)
    begin_ms = run.clock.now_ms

    def play(_: Feeder) -> None:
        if run.clock.now_ms - begin_ms > 20_000:
            fleet.play()

    run.feed(play)

    (reason,) = run.reasons - {""}
    assert reason.startswith(f"{MODEL}: {MODEL} is not loaded, and no coordinator has planned lately")
