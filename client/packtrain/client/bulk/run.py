"""A bulk run from its files to its files: opened, taken up where it was left, run, put together.

Beside the output `out.jsonl` stands a folder `out.jsonl.packtrain` with all that a run knows:

    lock            held (flock) while a process works on the run; the kernel lets go of it however that ends
    ledger.sqlite   each row and how far it is
    input.jsonl     a copy of an input that cannot be read again at any place: stdin, .gz, a table
    answers.jsonl   of an ordered run, until all are there; others are added to `out.jsonl` as they come
    errors.jsonl    the same of rows that failed

To go on with a run is to start it again: same input, same output, same options.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Self

from packtrain.broker.errors import PacktrainError, SetupError
from packtrain.client.bulk.checks import check_free, check_paths, check_same, stamp_of, written
from packtrain.client.bulk.feeder import Feeder
from packtrain.client.bulk.gate import Gate
from packtrain.client.bulk.intake import MOST_FAULTS, Faults, FileInvalid, Intake, take_in
from packtrain.client.bulk.ledger import End, Ledger, State
from packtrain.client.bulk.options import BulkOptions, Summary
from packtrain.client.bulk.output import Journal, assemble
from packtrain.client.bulk.progress import Forecast, Snapshot, Tally, forecast
from packtrain.client.bulk.rows import id_hash
from packtrain.client.bulk.sources import is_plain
from packtrain.client.bulk.translate import Manner
from packtrain.client.transport import Transport

#: Of what the ledger's facts mean.
_VERSION = 1

Report = Callable[[Snapshot], None]


class BulkRun:
    """A run, opened by one process. For one thread; `stop` and `cancel` may be called by signal handlers.

    Args:
        transport: To the fleet.
        options: What to run.
        gate: Asked before each job; None: nobody has to be.

    Raises:
        InvalidParameter: The output is of something else, or the input has changed.
        SetupError: Another process works on this run, or the folder cannot be written.
    """

    def __init__(self, transport: Transport, options: BulkOptions, gate: Gate | None = None) -> None:
        self._transport = transport
        self._gate = gate
        self._options = options
        self._feeder: Feeder | None = None
        self._wants = ""
        self._meta: dict[str, Any] = {}
        self._stack = ExitStack()
        try:
            check_paths(options.source, options.out, options.errors_file)
            self._lock()
            if options.restart:
                self._clear()
            self._ledger = Ledger(options.folder / "ledger.sqlite")
            self._stack.callback(self._ledger.close)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the run."""
        self._stack.close()

    @property
    def total(self) -> int:
        """All rows, after `prepare`."""
        return int(self._meta["rows"])

    def prepare(self, report: Callable[[int], None] = lambda _: None) -> Forecast:
        """Read the input, or take up the run where it was left. Nothing has run afterwards.

        Args:
            report: Told how many rows were read.

        Raises:
            FileInvalid: Rows are wrong; all is as before.
            InvalidParameter: The input or options are others than those that the run began with.
        """
        may = self._options.models
        meta = self._ledger.meta
        if meta.get("version") != _VERSION:
            try:
                offered = self._transport.models()
                models = {info.id: info.alias_of or info.id for info in offered if may is None or info.id in may}
                with written(self._options.out):
                    meta = self._begin(models, report)
            except BaseException:  # nothing was begun, and nothing is left; removed while it is still ours
                shutil.rmtree(self._options.folder, ignore_errors=True)
                self.close()
                raise
        else:
            check_same(self._options, meta)
            self._recover()
        if self._options.retry_failed and self._ledger.retry_failed():
            self._journal(State.FAILED).clear()
        self._meta = meta
        return forecast(self._ledger.counts(), self._transport.instances())

    def run(self, report: Report = lambda _: None) -> Summary:
        """Run what is to do, after `prepare`; returns when all rows are through, or `stop` or `cancel` was called.

        Args:
            report: Told twice a second how far it is.
        """
        options = self._options
        answers, errors = self._journal(State.DONE), self._journal(State.FAILED)
        tally = Tally.of(self._ledger.counts())
        with written(options.out), self._input() as rows, closing(answers), closing(errors):
            self._feeder = self._feed(rows, answers, errors, tally, report)
            self._pass_on()
            blocked = self._feeder.run()
        left = tally.total - tally.completed - tally.failed
        if options.ordered and (not left or self._wants == "cancel"):
            with written(options.out):
                assemble(answers.path, self._ledger.places(State.DONE), options.out)
                assemble(errors.path, self._ledger.places(State.FAILED), options.errors_file)
        return Summary(tally.total, tally.completed, tally.failed, left, tally.in_flight, tuple(blocked))

    def stop(self) -> None:
        """Have `run` return soon; jobs in the fleet go on."""
        self._wants = self._wants or "stop"
        self._pass_on()

    def cancel(self) -> None:
        """Have `run` cancel what is in the fleet and return."""
        self._wants = "cancel"
        self._pass_on()

    def fail_rest(self, error: PacktrainError) -> None:
        """Have this be the answer of all rows that are still to do. After `run`."""
        errors = self._journal(State.FAILED)
        with written(self._options.out), self._input() as rows, closing(errors):
            self._feed(rows, self._journal(State.DONE), errors, Tally.of(self._ledger.counts())).fail_rest(error)

    def _pass_on(self) -> None:
        if self._feeder and self._wants:
            (self._feeder.cancel if self._wants == "cancel" else self._feeder.stop)()

    def _feed(
        self, rows: int, answers: Journal, errors: Journal, tally: Tally, report: Report = lambda _: None
    ) -> Feeder:
        return Feeder(
            self._transport, self._ledger, rows, answers, errors, run_id=self._meta["run_id"],
            manner=self._manner(self._meta["created"]), tally=tally, report=report, gate=self._gate,
        )  # fmt: skip

    # --- files

    @contextmanager
    def _input(self) -> Iterator[int]:
        """Descriptor of the file that the ledger's places are in."""
        rows = os.open(self._options.source if self._is_plain else self._copy, os.O_RDONLY)
        try:
            yield rows
        finally:
            os.close(rows)

    @property
    def _is_plain(self) -> bool:
        return is_plain(self._options.source)

    @property
    def _copy(self) -> Path:
        return self._options.folder / "input.jsonl"

    def _journal(self, state: State) -> Journal:
        options = self._options
        done = state is State.DONE
        if options.ordered:
            return Journal(options.folder / ("answers.jsonl" if done else "errors.jsonl"))
        return Journal(options.out if done else options.errors_file)

    def _manner(self, created: int) -> Manner:
        options = self._options
        return Manner(options.defaults, options.user, max_run=options.max_run, created=created, ordered=options.ordered)

    def _lock(self) -> None:
        folder = self._options.folder
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SetupError(
                f"cannot write {folder} ({error.strerror}); choose another output, in a folder that exists"
            ) from error
        self._stack.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(
                f"another process runs {self._options.out} already; wait for it, or choose another output"
            ) from None

    def _clear(self) -> None:
        """Forget all of the run but its lock."""
        for path in self._options.folder.iterdir():
            if path.name != "lock":
                path.unlink()
        self._options.out.unlink(missing_ok=True)
        self._options.errors_file.unlink(missing_ok=True)

    def _begin(self, models: Mapping[str, str], report: Callable[[int], None]) -> dict[str, Any]:
        options = self._options
        check_free(options.out, options.errors_file)
        found = take_in(
            options.source, self._ledger, self._manner(0), models, copy_to=None if self._is_plain else self._copy,
            template=options.template, limit=options.limit, report=report,
        )  # fmt: skip
        if (faults := _fatal(found, options)).count:
            raise FileInvalid(faults)
        for state in (State.DONE, State.FAILED):
            self._journal(state).clear()
        created = options.created if options.created is not None else 0 if options.ordered else int(time.time())
        meta = {
            "run_id": secrets.token_hex(16), "created": created, "sha256": found.sha256, "rows": found.rows,
            "source": options.source, "stamp": stamp_of(options.source), "options": options.fixed(),
            "version": _VERSION,
        }  # fmt: skip
        self._ledger.set_meta(meta)
        return meta

    def _recover(self) -> None:
        """Bring the ledger up to date with the files that answers are in."""
        for state in (State.DONE, State.FAILED):
            journal = self._journal(state)
            known = self._ledger.end_of(state)
            if journal.size < known:
                self._ledger.forget_beyond(state, journal.size)
            ends = []
            for custom_id, place, size in journal.recover(self._ledger.end_of(state)):
                line = self._ledger.line_of(id_hash(custom_id))
                if line is not None:
                    ends.append(End(line, state, place, size))
            self._ledger.record(ends)
            journal.close()


def _fatal(found: Intake, options: BulkOptions) -> Faults:
    """Faults that keep a file from being run, by line."""
    parts = [found.fatal]
    if not options.skip_invalid:
        parts += [found.bad] if options.skip_refused else [found.bad, found.refused]
    kept = sorted((fault for part in parts for fault in part.kept), key=lambda fault: fault.line)
    return Faults(sum(part.count for part in parts), kept[:MOST_FAULTS])
