"""The ledger of a run: one SQLite file that knows of each row where it stands and how far it is.

It holds no row and no answer, only places in the files that do, so a million rows take some 100 MB on disk, and memory
for none of them. A row is TODO until its line stands, synced, in the file of answers or of errors; the ledger follows
that file and never runs ahead of it. What the ledger has not heard of when a process is killed is read from the file
(`output.Journal.recover`).

Rows of one route (model, numerics) and with the same beginning of the prompt come one after the other (`todo`): models
are swapped and beginnings computed as seldom as can be. The order is an index on disk that shrinks as rows end.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

#: KiB that SQLite may keep of the file in memory.
_CACHE_KIB = 8 * 1024
#: Rows between two commits while a file is read for the first time.
_BATCH = 5000

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE groups (id INTEGER PRIMARY KEY, route TEXT NOT NULL UNIQUE);
CREATE TABLE rows (
    line INTEGER PRIMARY KEY,       -- in the input, from 1
    place INTEGER NOT NULL,         -- of its first byte in the input
    size INTEGER NOT NULL,
    id_hash BLOB,                   -- of its custom_id; NULL: it has none
    route INTEGER NOT NULL,         -- groups.id
    prefix BLOB NOT NULL,           -- hashes of its prompt's beginning, the shortest first
    cost INTEGER NOT NULL,          -- tokens, as far as can be told beforehand
    state INTEGER NOT NULL DEFAULT 0,
    out_place INTEGER,              -- of its line in the file of answers, or of errors
    out_size INTEGER,
    epoch INTEGER NOT NULL DEFAULT 0,   -- grows whenever it needs new jobs
    tries INTEGER NOT NULL DEFAULT 0    -- that have failed
);
"""


class State(IntEnum):
    """Of a row."""

    TODO = 0
    DONE = 1
    FAILED = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """A row as it was found in the input."""

    line: int
    place: int
    size: int
    id_hash: bytes | None
    route: str  # empty: the line is no row that could run
    prefix: bytes
    cost: int


@dataclass(frozen=True, slots=True)
class Todo:
    """A row that has to run."""

    line: int
    place: int
    size: int
    prefix: bytes
    cost: int
    epoch: int
    tries: int


@dataclass(frozen=True, slots=True)
class End:
    """What became of a row, and where its line stands."""

    line: int
    state: State
    out_place: int
    out_size: int


@dataclass(frozen=True, slots=True)
class GroupCount:
    """Rows of a route, and what they cost together, by state."""

    rows: dict[State, int]
    cost: dict[State, int]

    @property
    def total(self) -> int:
        """All its rows."""
        return sum(self.rows.values())


class Ledger:
    """The ledger in a file, made when absent. For one thread."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        for pragma in (
            "journal_mode = WAL", "synchronous = NORMAL", f"cache_size = -{_CACHE_KIB}", "temp_store = FILE",
            "mmap_size = 0",
        ):  # fmt: skip
            self._db.execute(f"PRAGMA {pragma}")
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'meta'"):
            self._db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        self._groups = {str(route): int(number) for number, route in self._rows("SELECT id, route FROM groups")}

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @property
    def meta(self) -> dict[str, Any]:
        """Facts of the run by name."""
        return {name: json.loads(value) for name, value in self._rows("SELECT name, value FROM meta")}

    def set_meta(self, facts: Mapping[str, Any]) -> None:
        """Keep these facts, all or none."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            rows = [(name, json.dumps(value)) for name, value in facts.items()]
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def fill(self, entries: Iterable[Entry]) -> None:
        """Take the rows of an input, in place of all that there were."""
        self._db.executescript(
            "BEGIN; DROP INDEX IF EXISTS by_id; DROP INDEX IF EXISTS todo; DELETE FROM rows; DELETE FROM groups;"
            "DELETE FROM meta; COMMIT;"
        )
        self._groups.clear()
        batch: list[tuple[Any, ...]] = []
        for entry in entries:
            number = self._groups.setdefault(entry.route, len(self._groups) + 1)
            batch.append((entry.line, entry.place, entry.size, entry.id_hash, number, entry.prefix, entry.cost))
            if len(batch) >= _BATCH:
                self._add(batch)
        self._add(batch)
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT INTO groups VALUES (?, ?)", [(n, route) for route, n in self._groups.items()])
            self._db.execute("CREATE INDEX by_id ON rows (id_hash, line) WHERE id_hash IS NOT NULL")
            self._db.execute(f"CREATE INDEX todo ON rows (route, prefix, line) WHERE state = {int(State.TODO)}")

    def _add(self, batch: list[tuple[Any, ...]]) -> None:
        names = "line, place, size, id_hash, route, prefix, cost"
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany(f"INSERT INTO rows ({names}) VALUES (?, ?, ?, ?, ?, ?, ?)", batch)  # noqa: S608
        batch.clear()

    def duplicates(self) -> Iterator[tuple[int, int]]:
        """Lines whose custom_id stood on an earlier line, each with the first of these."""
        first: tuple[bytes, int] | None = None
        with closing(self._db.execute("SELECT id_hash, line FROM rows INDEXED BY by_id WHERE id_hash IS NOT NULL "
                                      "ORDER BY id_hash, line")) as found:  # fmt: skip
            for id_hash, line in found:
                if first and first[0] == id_hash:
                    yield line, first[1]
                else:
                    first = (id_hash, line)

    def line_of(self, id_hash: bytes) -> int | None:
        """The line with this custom_id."""
        found = self._rows("SELECT line FROM rows WHERE id_hash = ? LIMIT 1", id_hash)
        return int(found[0][0]) if found else None

    def counts(self) -> dict[str, GroupCount]:
        """How far each route is, in the order in which they first stand in the input."""
        counts = {route: GroupCount({}, {}) for route in self._groups}
        by_number = {number: counts[route] for route, number in self._groups.items()}
        sums = "SELECT route, state, COUNT(*), SUM(cost) FROM rows GROUP BY route, state"
        for number, state, rows, cost in self._rows(sums):
            by_number[number].rows[State(state)] = rows
            by_number[number].cost[State(state)] = cost
        return counts

    def todo(self, route: str, after: tuple[bytes, int], limit: int) -> list[Todo]:
        """Rows of a route that have to run, in the order to run them, behind this prefix and line."""
        found = self._rows(
            "SELECT line, place, size, prefix, cost, epoch, tries FROM rows INDEXED BY todo "
            "WHERE state = 0 AND route = ? AND (prefix, line) > (?, ?) ORDER BY prefix, line LIMIT ?",
            self._groups[route], *after, limit,
        )  # fmt: skip
        return [Todo(*fields) for fields in found]

    def record(self, ends: Iterable[End], again: Iterable[tuple[int, int, int]] = ()) -> None:
        """Keep what became of rows, all or none.

        Args:
            again: Line, epoch and tries of rows that are to run once more.
        """
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("UPDATE rows SET epoch = ?, tries = ? WHERE line = ?",
                                 [(epoch, tries, line) for line, epoch, tries in again])  # fmt: skip
            self._db.executemany("UPDATE rows SET state = ?, out_place = ?, out_size = ? WHERE line = ?",
                                 [(int(e.state), e.out_place, e.out_size, e.line) for e in ends])  # fmt: skip

    def end_of(self, state: State) -> int:
        """Bytes of the file of answers, or of errors, that the ledger knows of."""
        return int(
            self._rows("SELECT COALESCE(MAX(out_place + out_size), 0) FROM rows WHERE state = ?", int(state))[0][0]
        )

    def forget_beyond(self, state: State, size: int) -> int:
        """Rows whose lines have been cut off the file, which has `size` bytes now, are to run again; how many."""
        with self._db:
            return self._db.execute(
                "UPDATE rows SET state = 0, out_place = NULL, out_size = NULL "
                "WHERE state = ? AND out_place + out_size > ?", (int(state), size),
            ).rowcount  # fmt: skip

    def retry_failed(self) -> int:
        """Failed rows are to run again, with new jobs; how many."""
        with self._db:
            return self._db.execute(
                "UPDATE rows SET state = 0, epoch = epoch + 1, tries = 0, out_place = NULL, out_size = NULL "
                "WHERE state = ?", (int(State.FAILED),),
            ).rowcount  # fmt: skip

    def places(self, state: State) -> Iterator[tuple[int, int]]:
        """Place and size of all lines in the file of answers, or of errors, in the order of the input."""
        sql = "SELECT out_place, out_size FROM rows WHERE state = ? ORDER BY line"
        with closing(self._db.execute(sql, (int(state),))) as found:
            yield from found

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(self._db.execute(sql, values)) as found:
            return found.fetchall()
