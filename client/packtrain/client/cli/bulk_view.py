"""How a bulk run looks: a bar at a terminal, a plain line every few seconds elsewhere, lines of JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from packtrain.client.bulk import Fault, Forecast, Snapshot
from packtrain.client.cli.views import seconds

#: Between two plain lines, and between two lines of JSON.
LINE_S = 5.0
JSON_S = 1.0
#: Faults that people are shown.
SHOWN_FAULTS = 20


class BulkView:
    """Tells how a run goes. Everything for people goes to stderr.

    Args:
        as_json: One object a line on stdout instead, each with its `event`.
        quiet: Nothing but errors.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._as_json = as_json
        self._quiet = quiet or as_json
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
            self._bar = Progress(TextColumn("bulk"), *columns, console=self._console)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def reading(self, rows: int) -> None:
        """So many rows were read and checked."""
        if self._is_due(JSON_S if self._as_json else LINE_S):
            self.event("reading", {"rows": rows})
            self.say(f"{rows:,} rows are checked so far")

    def forecast(self, found: Forecast, *, total: int) -> None:
        """What is ahead."""
        self.event("forecast", {**asdict(found), "total": total})
        models = ", ".join(f"{route} {rows:,}" for route, rows in found.rows_by_model.items())
        done = f" of {total:,}" if total != found.rows else ""
        lasts = "" if found.seconds is None else f", about {seconds(found.seconds * 1000)} as the models are served now"
        self.say(f"{found.rows:,} rows{done} to run ({models or 'none'}), about {found.tokens:,} tokens{lasts}")

    def progress(self, now: Snapshot) -> None:
        """How far it is."""
        if self._bar:
            if self._task is None:
                self._task = self._bar.add_task("", total=now.total)
            self._bar.update(self._task, completed=now.ended, total=now.total, description=described(now))
        elif self._is_due(JSON_S if self._as_json else LINE_S):
            self.event("progress", asdict(now))
            self.say(f"{now.ended:,} of {now.total:,} rows, {described(now)}")

    def faults(self, faults: list[dict[str, Any]], count: int) -> None:
        """What is wrong with a file."""
        self.event("faults", {"count": count, "faults": faults})
        if self._as_json:
            return
        for row in faults[:SHOWN_FAULTS]:
            fault = Fault(**row)
            param = f" [{fault.param}]" if fault.param else ""
            self._console.print(f"line {fault.line}: {fault.code}{param}: {fault.message}", markup=False)
        if count > SHOWN_FAULTS:
            self._console.print(f"and {count - SHOWN_FAULTS:,} more")

    def say(self, text: str) -> None:
        """A line for people."""
        if not self._quiet:
            self._console.print(text, markup=False)

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        """A line for programs."""
        if self._as_json:
            sys.stdout.write(json.dumps({"event": name, **facts}) + "\n")
            sys.stdout.flush()

    def _is_due(self, every_s: float) -> bool:
        now_s = time.monotonic()
        if now_s - self._last_s < every_s:
            return False
        self._last_s = now_s
        return True


def described(now: Snapshot) -> str:
    """Everything but the count of rows, on one line."""
    parts = [f"{now.failed:,} failed"] if now.failed else []
    parts += [f"{now.rows_per_s:,.1f} rows/s", f"{now.tokens_per_s:,.0f} tokens/s"]
    parts.append("time left not known" if now.eta_s is None else f"{seconds(now.eta_s * 1000)} left")
    parts += [_shares(by) for by in (now.by_model, now.by_node) if len(by) > 1]
    if now.waits_for:
        parts.append(f"waits for {now.waits_for}")
    return ", ".join(parts)


def _shares(by: Mapping[str, int]) -> str:
    most = sorted(by.items(), key=lambda entry: -entry[1])[:6]
    return " + ".join(f"{name or 'invalid'} {rows:,}" for name, rows in most)
