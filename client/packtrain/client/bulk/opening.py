"""Rows on their way from the file into the fleet: read where the ledger says, understood, and opened for their jobs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from packtrain.broker.errors import PacktrainError, SetupError
from packtrain.broker.ids import JobId
from packtrain.client.bulk.ends import Ends
from packtrain.client.bulk.flights import Flight, Group
from packtrain.client.bulk.ledger import Ledger, Todo
from packtrain.client.bulk.rows import RowFault, parse_row
from packtrain.client.bulk.translate import Manner, ask, error_line
from packtrain.client.request import job_id_of

#: Rows read from the ledger at once.
_AHEAD: Final = 256


class Opener:
    """Opens the rows of one run.

    Args:
        ledger: Filled.
        rows: Descriptor of the file that the ledger's places are in.
        run_id: Names the run in idempotency keys.
        manner: How rows run.
        ends: Told of rows that end before they have jobs.
    """

    def __init__(self, ledger: Ledger, rows: int, run_id: str, manner: Manner, ends: Ends) -> None:
        self._ledger = ledger
        self._rows = rows
        self._run_id = run_id
        self._manner = manner
        self._ends = ends

    def open_next(self, group: Group) -> bool:
        """Take up the next row of a group; False: there is none."""
        if not group.read and not group.is_read:
            group.read.extend(self._ledger.todo(group.name, group.after, _AHEAD))
            group.is_read = len(group.read) < _AHEAD
        if not group.read:
            return False
        todo = group.read.popleft()
        group.after = (todo.prefix, todo.line)
        text = self._text(todo)
        try:
            asked = ask(text, todo.line, self._manner)
        except RowFault as fault:
            self._ends.failed(todo, group.name, error_line(text, fault.custom_id, fault))
            return True
        group.flights += 1
        group.size += todo.size
        group.open(Flight(todo, group, text, asked, todo.epoch, todo.tries))
        return True

    def id_of(self, flight: Flight, number: int) -> JobId:
        """The id of a job of a row: the same in every process of the run, until the row needs a new one."""
        key = f"bulk:{self._run_id}:{flight.todo.line}:{number}:{flight.epoch}"
        return job_id_of(flight.asked.specs[number], key)

    def refuse(self, groups: Iterable[Group]) -> None:
        """Lines that are no rows, which a run was told to go on without."""
        for group in groups:
            while not group.name and self.open_next(group):
                if self._ends.is_full:
                    self._ends.commit()

    def fail_rest(self, groups: Iterable[Group], error: PacktrainError) -> None:
        """Have this be the answer of all rows that are still to do; nothing may be in the fleet."""
        for group in groups:
            after = (b"", 0)
            while todos := self._ledger.todo(group.name, after, _AHEAD):
                for todo in todos:
                    text = self._text(todo)
                    try:
                        custom_id: str | None = parse_row(text, todo.line, self._manner.defaults).custom_id
                    except RowFault as fault:
                        custom_id = fault.custom_id
                    self._ends.failed(todo, group.name, error_line(text, custom_id, error))
                after = (todos[-1].prefix, todos[-1].line)
                self._ends.commit()

    def _text(self, todo: Todo) -> bytes:
        text = os.pread(self._rows, todo.size, todo.place)
        if len(text) != todo.size:
            raise SetupError(
                f"the input ends before line {todo.line}: it was changed while it is read; restore it, and run again"
            )
        return text
