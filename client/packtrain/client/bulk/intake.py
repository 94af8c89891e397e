"""The first reading of a file: every row is checked, and noted in the ledger, before any runs.

One pass, in constant memory. All faults are counted, the first `MOST_FAULTS` are kept. What cannot be read again at any
place (stdin, .gz, tables) is copied into a plain file on the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from packtrain.broker.errors import InvalidRequest
from packtrain.client.bulk.ledger import Entry, Ledger
from packtrain.client.bulk.rows import MAX_LINE_BYTES, Fault, RowFault, id_hash
from packtrain.client.bulk.sources import open_lines
from packtrain.client.bulk.translate import Manner, ask

MOST_FAULTS: Final = 1000
#: Rows between two reports.
_REPORT_ROWS = 5000


class FileInvalid(InvalidRequest):
    """Lines of a bulk file are no rows that can run. All faults are in `faults`, as far as they are kept."""

    code = "bulk_file_invalid"

    def __init__(self, faults: Faults) -> None:
        first = faults.kept[0] if faults.kept else Fault("empty_file", "the file has no rows", 0)
        where = f"line {first.line}: " if first.line else ""
        more = f", and {faults.count - 1} more faults" if faults.count > 1 else ""
        super().__init__(
            f"{where}{first.message} ({first.code}){more}; nothing was run, correct the file",
            count=faults.count,
            faults=[fault.to_json() for fault in faults.kept],
        )
        self.faults = faults


@dataclass(slots=True)
class Faults:
    """What is wrong with a file."""

    count: int = 0
    kept: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        """One more."""
        self.count += 1
        if len(self.kept) < MOST_FAULTS:
            self.kept.append(fault)


@dataclass(frozen=True, slots=True)
class Intake:
    """What the first reading found."""

    sha256: str  # of all lines, uncompressed
    rows: int
    bad: Faults  # lines that are no rows, or name no model
    refused: Faults  # rows whose bodies ask for something that cannot be
    fatal: Faults  # of the file as a whole: double ids, no rows


def take_in(
    source: str,
    ledger: Ledger,
    manner: Manner,
    models: Mapping[str, str],
    *,
    copy_to: Path | None = None,
    template: str | None = None,
    limit: int | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> Intake:
    """Read a file for the first time.

    Args:
        source: Path, or `-`.
        models: What the fleet offers: ids and aliases, each with its id.
        copy_to: Where its lines go, if they cannot be read again from the source.
        template: Of a table.
        limit: Rows that a file may have; None: any number.
        report: Told how many rows were read.

    Raises:
        InvalidParameter, SetupError: The source cannot be read.
    """
    digest, bad, refused, fatal = hashlib.sha256(), Faults(), Faults(), Faults()
    rows = 0

    def entries() -> Iterator[Entry]:
        nonlocal rows
        with ExitStack() as stack:
            lines = stack.enter_context(open_lines(source, template))
            copy = stack.enter_context(open(copy_to, "wb")) if copy_to else None
            place = 0
            for number, text in enumerate(lines, 1):
                if len(text) > MAX_LINE_BYTES:  # where the next one begins is not known without reading it all
                    message = f"the line is longer than {MAX_LINE_BYTES} bytes; split it. Nothing behind it was read"
                    fatal.add(Fault("invalid_json_line", message, number))
                    return
                digest.update(text)
                if copy:
                    copy.write(text)
                if text.strip():
                    rows += 1
                    yield _entry(text, number, place, manner, models, bad, refused)
                    if rows % _REPORT_ROWS == 0:
                        report(rows)
                place += len(text)

    ledger.fill(entries())
    report(rows)
    for line, first in ledger.duplicates():
        message = f"the custom_id stands on line {first}, too; each row needs its own"
        fatal.add(Fault("duplicate_custom_id", message, line, "custom_id"))
    if not rows:
        fatal.add(Fault("empty_file", "the file has no rows; write one JSON object on each line", 1))
    if limit is not None and rows > limit:
        fatal.add(Fault("too_many_rows", f"the file has {rows} rows, at most {limit} are allowed; split it", limit + 1))
    return Intake(digest.hexdigest(), rows, bad, refused, fatal)


def _entry(
    text: bytes, line: int, place: int, manner: Manner, models: Mapping[str, str], bad: Faults, refused: Faults
) -> Entry:
    try:
        asked = ask(text, line, manner)
    except RowFault as fault:
        (refused if fault.is_request else bad).add(fault.fault)
        return Entry(line, place, len(text), id_hash(fault.custom_id) if fault.custom_id else None, "", b"", 0)
    if (model := asked.specs[0].model) not in models:
        bad.add(_no_model(model, models, line))
    return Entry(line, place, len(text), id_hash(asked.row.custom_id), asked.route(models), asked.prefix, asked.cost)


def _no_model(model: str, models: Mapping[str, str], line: int) -> Fault:
    offered = ", ".join(sorted(models)[:12]) or "none yet"
    return Fault("model_not_found", f"no node offers the model {model!r}; offered: {offered}", line, "body.model")
