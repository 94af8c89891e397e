"""How threads wait for jobs: for the events of some, for the results of many (aio_waiting.py: tasks)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Protocol

from packtrain.broker.chunks import Event
from packtrain.broker.errors import BrokerUnavailable, InvalidRequest, TryLater, UnknownJob
from packtrain.broker.ids import JobId
from packtrain.client.reading import RETRY_S, Cursors, Patience, Window, block_s_until
from packtrain.client.result import Result
from packtrain.client.transport import Transport


class Submitted(Protocol):
    """A job of either client."""

    @property
    def id(self) -> JobId: ...


def read_events(transport: Transport, cursors: Cursors, deadline: float | None) -> Iterator[Event]:
    """Events as they come, until every job of `cursors` has ended or `deadline` (monotonic seconds) has passed."""
    for events in read_batches(transport, cursors, deadline):
        for event in events:
            cursors.advance(event)
            yield event


def read_batches(transport: Transport, cursors: Cursors, deadline: float | None) -> Iterator[list[Event]]:
    """The same by what came at once. Who reads moves the cursors on: what they have not passed comes again."""
    patience = Patience()
    while cursors.after:
        block_s = block_s_until(deadline, time.monotonic())
        if block_s <= 0:
            return
        try:
            events = transport.events(cursors.after, block_s=block_s) or unsaid_ends(transport, cursors)
            patience.is_back()
        except BrokerUnavailable as error:
            patience.is_away(error, time.monotonic())
            time.sleep(RETRY_S)
            continue
        yield events


def unsaid_ends(transport: Transport, cursors: Cursors) -> list[Event]:
    """Ends of jobs whose streams fell silent: a record that has ended although its stream (has expired and) says not.

    Raises:
        UnknownJob: A record is gone: nothing will come any more.
    """
    ends = []
    for job_id, status in transport.statuses(cursors.after).items():
        if status is None:
            raise UnknownJob(job_id=job_id)
        after = cursors.after[job_id]
        if status.state.is_terminal and not transport.events({job_id: after}, block_s=0):
            ends.append(Event(job_id, after, end=status.state))
    return ends


def run_in_order(
    transport: Transport, submits: Iterator[Callable[[], Submitted]], window: Window, timeout: float | None = None
) -> Iterator[Result]:
    """Results in the order of `submits`, each called once the window has room for its job.

    Args:
        timeout: Seconds for all of them; None waits as long as it takes.

    Leaving the iteration early cancels what is in flight.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        while True:
            for submit in islice(submits, window.room):
                try:
                    window.add(submit().id)
                except InvalidRequest as error:
                    window.refuse(error)
            if window.is_empty:
                return
            if not window.has_next():
                for events in read_batches(transport, window.cursors, deadline):
                    if ended := window.saw(events):
                        for job_id, status in transport.statuses(ended).items():
                            window.ended(job_id, status)
                    if window.has_next():
                        break
                else:
                    raise window.out_of_time(timeout)
            yield window.take()
    finally:
        cancel_all(transport, window.cursors.after)


def cancel_all(transport: Transport, job_ids: Iterable[JobId]) -> None:
    """Cancel what nobody will read."""
    for job_id in job_ids:
        with suppress(TryLater):  # it is not worth hiding the cause for
            transport.cancel(job_id)
