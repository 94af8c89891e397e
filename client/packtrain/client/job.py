"""`Job` and `TextStream`: one job as its client sees it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Self

from packtrain.broker.errors import BrokerUnavailable, UnknownJob
from packtrain.broker.explain import Explanation
from packtrain.broker.ids import JobId
from packtrain.broker.outcome import JobStatus
from packtrain.broker.states import JobState
from packtrain.client.reading import Cursors, Reader, is_over
from packtrain.client.result import AnswerDelta, Result, delta_of, finished
from packtrain.client.transport import Transport
from packtrain.client.waiting import read_events


class Job:
    """A submitted job. Cheap to make and to throw away: the job itself lives in the fleet."""

    def __init__(self, transport: Transport, job_id: JobId, *, is_new: bool = False) -> None:
        self.id = job_id
        self.is_new = is_new  # the submit that gave this made the job; else it was there already, or was looked up
        self._transport = transport

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def status(self) -> JobStatus:
        """The job's record now.

        Raises:
            UnknownJob
        """
        status = self._transport.status(self.id)
        if status is None:
            raise UnknownJob(job_id=self.id)
        return status

    def explain(self) -> Explanation:
        """Why it is where it is; while it waits, its place and when it may begin.

        Raises:
            UnknownJob
        """
        found = self._transport.explain(self.id)
        if found is None:
            raise UnknownJob(job_id=self.id)
        return found

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end.

        Args:
            timeout: Seconds; None waits as long as it takes.

        Raises:
            ResultTimeout: It goes on; only this wait has ended.
            PacktrainError: How it ended without a result, such as `PromptTooLong`, `JobCancelled`, `JobDead`.
        """
        status = self.status()
        if not status.state.is_terminal:
            deadline = None if timeout is None else time.monotonic() + timeout
            try:
                for _ in read_events(self._transport, Cursors([self.id]), deadline):
                    pass
                status = self.status()
            except BrokerUnavailable:
                if not is_over(deadline, time.monotonic()):
                    raise  # else the wait has ended before the broker was back
        return finished(status, timeout)

    def stream(self) -> Iterator[str]:
        """The text as it comes, from the beginning, whenever this is called; survives a dropped connection.

        Raises:
            PacktrainError: How the job ended, when it did not succeed; after all its text.
            AnswerBegunAnew: The answer comes again from its beginning: read it anew. Only of deterministic jobs.
        """
        return (delta.text for delta in self.deltas() if delta.text)

    def deltas(self) -> Iterator[AnswerDelta]:
        """As `stream`, with reasoning, tool calls and logprobs: each item has a bit more of one or several of them."""
        reader = Reader(self.id)
        status = self.status()
        if status.state.is_terminal and not self._transport.events({self.id: "0"}, block_s=0):
            yield delta_of(self.result())  # its stream has expired, an hour after the end; its record lives for a day
            return
        for event in read_events(self._transport, Cursors([self.id]), None):
            if delta := reader.take(event):
                yield delta
            if event.end and event.end is not JobState.SUCCEEDED:
                self.result()

    def cancel(self, *, forget: bool = False) -> JobState:
        """Cancel it; the state afterwards. A running job ends within a second, an ended one stays as it is.

        Args:
            forget: Leave nothing of one that has not begun, so that its idempotency key may be used again.

        Raises:
            UnknownJob
        """
        state = self._transport.cancel(self.id, forget=forget)
        if state is None:
            raise UnknownJob(job_id=self.id)
        return state


class TextStream:
    """The text of one job as it comes. Leaving it early (`break`, `close`, an exception) cancels the job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        # Not a method: a generator that holds its stream would be a cycle, and outlive a `break` until the next GC.
        self._texts = _read_or_cancel(job)
        next(self._texts)

    def __iter__(self) -> Iterator[str]:
        return self._texts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading; the job is cancelled unless it has ended."""
        self._texts.close()


def _read_or_cancel(job: Job) -> Generator[str]:
    has_ended = False
    try:
        yield ""  # taken at once: only a generator that has begun runs its `finally` when it is closed
        yield from job.stream()
        has_ended = True
    finally:
        if not has_ended:
            job.cancel()
