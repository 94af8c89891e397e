"""Reading a job's events to its end: pure bookkeeping that the sync and the async client share.

A stream is read by its ids, so after a dropped connection reading goes on exactly behind the last event that arrived:
no token twice, none missing. A broker that is away is waited for, `patience_s` long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from packtrain.broker.chunks import Event
from packtrain.broker.errors import (
    AnswerBegunAnew,
    BrokerUnavailable,
    InvalidParameter,
    InvalidRequest,
    ResultTimeout,
    UnknownJob,
)
from packtrain.broker.ids import JobId, new_job_id
from packtrain.broker.outcome import JobStatus
from packtrain.client.result import AnswerDelta, Result, delta_of, finished, result_of

#: How long a reader waits for a broker that went away, seconds. A restart takes 2, a reboot of its host a minute.
PATIENCE_S = 120.0
RETRY_S = 0.5
#: One read of events waits at most so long; a record is looked at when nothing came.
BLOCK_S = 2.0
#: Texts that `embed` has submitted and not yet got back: four full batches of an instance of 16 slots.
EMBED_IN_FLIGHT = 64


def block_s_until(deadline: float | None, now: float) -> float:
    """How long the next read may wait; 0 or less: the deadline (None: there is none) has passed."""
    return BLOCK_S if deadline is None else min(BLOCK_S, deadline - now)


def is_over(deadline: float | None, now: float) -> bool:
    """True when the deadline has passed."""
    return deadline is not None and now >= deadline


class Cursors:
    """How far each job has been read."""

    def __init__(self, job_ids: Iterable[JobId] = ()) -> None:
        self.after: dict[JobId, str] = dict.fromkeys(job_ids, "0")

    def add(self, job_id: JobId) -> None:
        """Read this job, too, from its start."""
        self.after[job_id] = "0"

    def advance(self, event: Event) -> None:
        """An event has arrived. An ended job is read no more."""
        if event.end:
            self.after.pop(event.job_id, None)
        else:
            self.after[event.job_id] = event.id


class Reader:
    """What a reader of one answer has been given, to notice when the answer begins anew."""

    def __init__(self, job_id: JobId) -> None:
        self._job_id = job_id
        self._num_tokens = 0
        self.has_given = False

    def take(self, event: Event) -> AnswerDelta | None:
        """What an event adds to the answer; None: nothing.

        Raises:
            AnswerBegunAnew: It comes again from its beginning, and some of the old one has been given.
        """
        if event.index < self._num_tokens and self.has_given and not event.end:
            raise AnswerBegunAnew(job_id=self._job_id)
        if not event.end:
            self._num_tokens = event.index + len(event.tokens)
        delta = AnswerDelta(event.text, event.reasoning, event.calls, event.logprobs)
        if delta == AnswerDelta():
            return None
        self.has_given = True
        return delta


class Several:
    """The answers of several jobs, read together. Each is named by its place among them."""

    def __init__(self, job_ids: Sequence[JobId]) -> None:
        self.cursors = Cursors(job_ids)
        self._place = {job_id: place for place, job_id in enumerate(job_ids)}
        self._readers = {job_id: Reader(job_id) for job_id in job_ids}

    def take(self, event: Event) -> list[tuple[int, AnswerDelta | Result]]:
        """What an event adds to an answer. Errors as of `Reader.take`."""
        delta = self._readers[event.job_id].take(event)
        return [(self._place[event.job_id], delta)] if delta else []

    def ended(self, job_id: JobId, status: JobStatus) -> list[tuple[int, AnswerDelta | Result]]:
        """A job has ended with this record: its result, behind the whole answer where its stream has expired.

        Raises:
            PacktrainError: It did not succeed.
        """
        result = finished(status, None)
        whole = delta_of(result)
        is_unread = not self._readers[job_id].has_given and whole != AnswerDelta()
        return [(self._place[job_id], found) for found in ((whole, result) if is_unread else (result,))]


class Window:
    """The jobs of a `map` between their submission and the giving out of their results, in the order of the prompts.

    Args:
        in_flight: Most jobs in it.
        raises: A job's error is raised at its turn; else it stands in its result.
        options: Of every job.

    Raises:
        InvalidParameter
    """

    def __init__(self, in_flight: int, *, raises: bool, options: Mapping[str, object]) -> None:
        if in_flight < 1:
            raise InvalidParameter(f"in_flight is {in_flight}; allow at least 1 job at a time", field="in_flight")
        if "idempotency_key" in options:
            raise InvalidParameter("one idempotency_key cannot name many jobs; submit each with a key of its own")
        self.cursors = Cursors()
        self._in_flight = in_flight
        self._raises = raises
        self._order: deque[JobId] = deque()
        self._results: dict[JobId, Result] = {}

    @property
    def room(self) -> int:
        """How many more jobs may be submitted."""
        return self._in_flight - len(self._order)

    @property
    def is_empty(self) -> bool:
        """True when every result has been given out."""
        return not self._order

    def has_next(self) -> bool:
        """True when `take` has something to give."""
        return self._order[0] in self._results

    def add(self, job_id: JobId) -> None:
        """A job has been submitted."""
        self._order.append(job_id)
        self.cursors.add(job_id)

    def refuse(self, error: InvalidRequest) -> None:
        """A prompt never became a job; its place in the order still counts."""
        if self._raises:
            raise error
        place = new_job_id()
        self._order.append(place)
        self._results[place] = Result("", "", None, error=error)

    def saw(self, events: Iterable[Event]) -> list[JobId]:
        """These events came. The jobs that have ended, whose records it needs now."""
        ended = []
        for event in events:
            self.cursors.advance(event)
            if event.end:
                ended.append(event.job_id)
        return ended

    def ended(self, job_id: JobId, status: JobStatus | None) -> None:
        """A job has ended with this record."""
        if status is None or status.outcome is None:
            raise UnknownJob(job_id=job_id)
        self._results[job_id] = result_of(job_id, status.outcome, raise_error=False)

    def out_of_time(self, timeout_s: float | None) -> ResultTimeout:
        """The wait of `timeout_s` has ended before the next result was there."""
        return ResultTimeout(job_id=self._order[0], timeout_s=timeout_s or 0, state="unfinished")

    def take(self) -> Result:
        """The next result in order, or its error."""
        result = self._results.pop(self._order.popleft())
        if result.error and self._raises:
            raise result.error
        return result


class Patience:
    """How long a missing broker is put up with."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._away_since: float | None = None

    def is_back(self) -> None:
        """The broker answered."""
        self._away_since = None

    def is_away(self, error: BrokerUnavailable, now: float) -> None:
        """The broker did not answer at `now` (monotonic seconds).

        Raises:
            BrokerUnavailable: It has been away for too long.
        """
        if self._away_since is None:
            self._away_since = now
        if now - self._away_since > self._patience_s:
            raise error
