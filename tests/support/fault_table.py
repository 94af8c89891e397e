"""What faults cost: each fault test injects one, and what is measured of it becomes a row of a table.

`inject` measures from the fault until every job that was hit has got on, waits for the ends, and counts what was lost
(tokens that never came, answers that are not their job's) and doubled (tokens that came twice, second ends). A test
fails when anything was, or when it took twice the bound. The bound is what the design promises with the leases of the
test; a machine that is busy with other things takes longer, hence twice.

`make faults` prints the table and writes it as markdown: docs/reliability.md shows one such run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis import Redis, RedisError

from packtrain.broker import keys
from packtrain.broker.chunks import Event
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.client import AnswerBegunAnew, Job, Packtrain, PacktrainError
from tests.support.fleets import eventually, until_first_text

#: How much longer than its bound a recovery may take before the test fails.
SLACK = 2.0
#: What a load takes here at most: processes that import Celery, one after the other, on two cores.
LOAD_S = 6.0
PROMPT = "abcdefghi !long"


@dataclass(slots=True)
class Load:
    """Jobs in mid-generation that a fault is to hit, and what readers of their streams have seen."""

    redis: Redis
    jobs: list[Job]
    expected: list[str]
    seen: list[str]
    failures: list[str] = field(default_factory=list)  # of readers: an honest one reads to the end

    @property
    def num_tokens(self) -> int:
        """Of all answers together."""
        return sum(map(len, self.expected))

    def progress(self) -> list[int]:
        """Tokens of each job that are stored; an ended job has all it will ever have."""
        rows = [self.redis.hmget(keys.job(job.id), ["tokens", "state"]) for job in self.jobs]
        return [10**6 if state not in ("QUEUED", "RUNNING") else int(tokens or 0) for tokens, state in rows]

    def got_on_since(self, before: list[int]) -> bool:
        """Whether each job has more than it had."""
        return all(now > then or now == 10**6 for now, then in zip(self.progress(), before, strict=True))

    def wait(self, timeout_s: float) -> None:
        """Until every job has ended and every reader has read its end."""
        deadline = time.monotonic() + timeout_s
        for job in self.jobs:
            with suppress(PacktrainError):  # it counts as lost
                job.result(timeout=max(0.1, deadline - time.monotonic()))
        with suppress(AssertionError):
            eventually(lambda: self.seen == self.expected, "the readers", max(5.0, deadline - time.monotonic()))

    def lost(self) -> int:
        """Tokens and ends that never came, and readers that did not see their job's answer."""
        wrong = sum(seen != expected for seen, expected in zip(self.seen, self.expected, strict=True))
        endless = sum(not any(event.end for event in every_event(self.redis, job)) for job in self.jobs)
        return (
            wrong
            + endless
            + sum(
                len(set(range(len(expected))) - set(self._indices(job)))
                for job, expected in zip(self.jobs, self.expected, strict=True)
            )
        )

    def doubled(self) -> int:
        """Tokens that stand in the streams more than once, and ends after the first."""
        total = 0
        for job in self.jobs:
            indices = self._indices(job)
            ends = sum(event.end is not None for event in every_event(self.redis, job))
            total += len(indices) - len(set(indices)) + max(0, ends - 1)
        return total

    def _indices(self, job: Job) -> list[int]:
        events = every_event(self.redis, job)
        return [index for event in events for index in range(event.index, event.index + len(event.tokens))]


def until_on_file(redis: Redis) -> None:
    """Wait until the broker has written all that it has acknowledged.

    Mostly that is at once. While its disk is busy with a sync it holds writes back, 2 s at most, and a kill takes them.
    """
    eventually(lambda: redis.info("persistence")["aof_buffer_length"] == 0, "the append-only file to be written")


def every_event(redis: Redis, job: Job) -> list[Event]:
    """The whole stream of a job."""
    events: list[Event] = []
    while more := RedisJobs(redis).events({job.id: events[-1].id if events else "0"}):
        events += more
    return events


def start_load(
    client: Packtrain, redis: Redis, model: str = "steady", *, count: int = 4, num_tokens: int = 100
) -> Load:
    """Jobs that have begun, each with an answer of its own and a reader."""
    prompts = [f"{PROMPT} {number}" for number in range(count)]
    jobs = [client.submit(model, prompt, max_tokens=num_tokens) for prompt in prompts]
    load = watch(redis, jobs, [answer(prompt, num_tokens) for prompt in prompts])
    for job in jobs:
        until_first_text(job)
    return load


def watch(redis: Redis, jobs: list[Job], expected: list[str]) -> Load:
    """A load of these jobs, with a reader for each. A reader is a thread, and ends with its job."""
    load = Load(redis, jobs, expected, [""] * len(jobs))

    def read(number: int) -> None:
        try:
            while True:
                load.seen[number] = ""
                with suppress(AnswerBegunAnew):
                    for text in jobs[number].stream():
                        load.seen[number] += text
                    return
        except Exception as error:  # a broken reader must not look like a slow one
            load.failures.append(f"{jobs[number].id}: {error!r}")

    for number in range(len(jobs)):
        threading.Thread(target=read, args=(number,), daemon=True).start()
    return load


def answer(prompt: str, num_tokens: int) -> str:
    """What the scripted model says to a `!long` prompt."""
    return (prompt[::-1] * (num_tokens // len(prompt) + 1))[:num_tokens]


@dataclass(frozen=True, slots=True)
class Row:
    """What one fault cost."""

    fault: str
    at: str
    recovered_s: float
    bound_s: float
    lost: int
    doubled: int

    @property
    def cells(self) -> list[str]:
        """As the table has them."""
        times = [f"{self.recovered_s:.1f} s", f"{self.bound_s:.1f} s"]
        return [self.fault, self.at, *times, str(self.lost), str(self.doubled)]


ROWS: list[Row] = []
HEADER = ["fault", "injected at", "recovered in", "bound", "lost", "doubled"]


@dataclass(slots=True)
class Injection:
    """A fault under way."""

    begun: float  # monotonic seconds
    before: list[int]

    def is_over(self, load: Load) -> None:
        """The fault itself has ended (a cable is plugged in again): from now on recovery counts."""
        self.begun = time.monotonic()
        with suppress(RedisError):
            self.before = load.progress()


@contextmanager
def inject(
    fault: str, load: Load, bound_s: float, *, until: Callable[[], object] | None = None, ends_s: float = 60
) -> Iterator[Injection]:
    """Measure the fault that the block injects.

    Args:
        fault: Its name in the table.
        bound_s: Within which the design promises that every job gets on.
        until: What else must be true again, such as that somebody leads.
        ends_s: Within which all jobs must have ended after that.
    """
    before = load.progress()
    shown = [str(tokens) for tokens in sorted({min(before), max(before)})]
    at = f"token {' to '.join(shown)} of {len(load.expected[0])}"
    injection = Injection(time.monotonic(), before)
    yield injection
    with suppress(RedisError):  # it may be the broker that is gone
        injection.before = load.progress() if injection.before is before else injection.before

    def has_recovered() -> bool:
        try:
            return load.got_on_since(injection.before) and (until is None or bool(until()))
        except (RedisError, PacktrainError):
            return False

    try:
        eventually(has_recovered, f"recovery from {fault!r}, bound {bound_s} s", bound_s * SLACK)
        recovered_s = time.monotonic() - injection.begun
    except AssertionError:
        ROWS.append(Row(fault, at, float("inf"), bound_s, load.num_tokens, 0))
        raise
    load.wait(ends_s)
    row = Row(fault, at, recovered_s, bound_s, load.lost(), load.doubled())
    ROWS.append(row)
    assert load.failures == []
    assert (row.lost, row.doubled) == (0, 0), f"{row}, seen {load.seen}"


def markdown(rows: list[Row]) -> str:
    """The table."""
    lines = [HEADER, ["---"] * len(HEADER), *[row.cells for row in rows]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the table goes, and what chaos is made of."""
    parser.addoption("--fault-table", type=Path, help="write what the faults of this run cost, as markdown")
    parser.addoption("--chaos-seed", type=int, help="of the random faults; default: any; a row names it")
    parser.addoption("--chaos-rounds", type=int, default=20, help="of random faults")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of this run."""
    if not ROWS:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line(markdown(ROWS))
    if target := config.getoption("--fault-table"):
        target.write_text(markdown(ROWS))
