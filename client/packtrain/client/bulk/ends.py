"""Ends of rows on their way to disk: a line in a file first, synced, and then a mark in the ledger, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from packtrain.client.bulk.flights import Flight
from packtrain.client.bulk.ledger import End, Ledger, State, Todo
from packtrain.client.bulk.output import Journal
from packtrain.client.bulk.progress import Tally
from packtrain.client.bulk.translate import Manner, answer_line
from packtrain.client.result import Result

#: Lines are synced and the ledger told after so many of them at the latest.
MOST_ROWS: Final = 500


class Ends:
    """What became of rows, and has to be kept.

    Args:
        answers, errors: Where lines go.
        tally: Told of all that ends.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        answers: Journal,
        errors: Journal,
        manner: Manner,
        tally: Tally,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._answers = answers
        self._errors = errors
        self._manner = manner
        self._tally = tally
        self._clock = clock
        self._ends: list[End] = []
        self._again: list[tuple[int, int, int]] = []

    @property
    def is_full(self) -> bool:
        """True when so much is there that it should be kept now."""
        return len(self._ends) >= MOST_ROWS

    def answered(self, flight: Flight, results: Sequence[Result]) -> None:
        """A row has its answer."""
        line = answer_line(flight.asked, results, self._manner)
        self._ends.append(End(flight.todo.line, State.DONE, self._answers.append(line), len(line)))
        self._tally.ended(flight.group.name, flight.todo.cost, results, self._clock(), failed=False)

    def failed(self, todo: Todo, route: str, line: bytes) -> None:
        """A row has none, and this is its line."""
        self._ends.append(End(todo.line, State.FAILED, self._errors.append(line), len(line)))
        self._tally.ended(route, todo.cost, (), self._clock(), failed=True)

    def renew(self, todo: Todo, epoch: int, tries: int) -> None:
        """A row needs new jobs, now or in a later run."""
        self._again.append((todo.line, epoch, tries))

    def commit(self) -> None:
        """Keep all. Blocks until it is on disk."""
        if not self._ends and not self._again:
            return
        self._answers.sync()
        self._errors.sync()
        self._ledger.record(self._ends, self._again)
        self._ends.clear()
        self._again.clear()
