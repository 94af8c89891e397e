"""`packtrain logs`: what the processes of this machine's fleet say, from the files in `<home>/logs`.

Each file is one process; what an instance says stands in its agent's, behind its name. Lines bear the time of day only,
so to put files together the day is counted backwards from the end: where a clock jumps ahead, midnight was between.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from packtrain.broker.errors import InvalidParameter, SetupError
from packtrain.broker.settings import load_settings
from packtrain.client.cli.options import HOME, JSON

#: Files are looked at this often, seconds.
POLL_S = 0.25
#: Of a file's end that is read; what is before is in the file for whoever needs it.
MAX_BYTES = 4 * 1024 * 1024
_DAY_S = 24 * 3600
_TIME = re.compile(r"^(?:\d+:\w \d+ \w+ \d{4} )?(\d\d):(\d\d):(\d\d)")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log."""

    process: str
    text: str
    at_s: int = 0  # of the last day; negative: of days before


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(logs)


def logs(
    who: Annotated[
        str | None,
        typer.Argument(help="A process (agent, broker, coordinator, gateway, ...), or an instance; default: all."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    number: Annotated[int, typer.Option("--number", "-n", min=0, max=100_000, help="Latest lines.")] = 100,
    home: HOME = None,
    as_json: JSON = False,
) -> None:
    """Show what the fleet's processes here say.

    Other machines keep their own logs: run it there. With --json: one line of JSON for each line.
    """
    folder = load_settings(**({"home": home} if home else {})).home / "logs"
    files = {path.stem: path for path in sorted(folder.glob("*.log"))}
    if not files:
        raise SetupError(f"there are no logs in {folder}; `packtrain up` writes them, `packtrain node` to its terminal")
    names, needle = chosen(who, list(files))
    tails = [_Tail(name, files[name]) for name in names]
    found = in_order(tail.begin() for tail in tails)
    if needle:
        found = [line for line in found if needle in line.text]
        if not found and not follow:
            raise InvalidParameter(
                f"{who!r} is no process that logs here ({', '.join(files)}), and the agent's log does not name it",
                field="who",
            )
    show = _as_json if as_json else _as_text
    for line in found[len(found) - number if number < len(found) else 0 :]:
        show(line)
    while follow:
        sys.stdout.flush()
        time.sleep(POLL_S)
        for tail in tails:
            for line in tail.more():
                if not needle or needle in line.text:
                    show(line)


def chosen(who: str | None, processes: Sequence[str]) -> tuple[Sequence[str], str]:
    """Which logs to read, and what their lines have to contain; empty: anything.

    >>> chosen(None, ["agent", "broker"]), chosen("broker", ["agent", "broker"]), chosen("tiny-1", ["agent"])
    ((['agent', 'broker'], ''), (['broker'], ''), (['agent'], 'tiny-1'))
    """
    if who is None:
        return processes, ""
    if who in processes:
        return [who], ""
    return [name for name in processes if name == "agent"], who


def in_order(logs: Iterable[Iterable[Line]]) -> list[Line]:
    """Lines of several logs by their times, each log in its own order."""
    return sorted((line for log in logs for line in dated(list(log))), key=lambda line: line.at_s)


def dated(log: Sequence[Line]) -> list[Line]:
    """The lines of one log with their times. One without a time has that of the line before."""
    times: list[int | None] = []
    for line in log:
        found = _TIME.match(line.text)
        times.append(_seconds(*found.groups()) if found else None)
    day, after, placed = 0, None, list(times)
    for number in range(len(times) - 1, -1, -1):
        at = times[number]
        if at is None:
            continue
        if after is not None and at > after + _DAY_S // 2:
            day -= 1
        after, placed[number] = at, at + day * _DAY_S
    last, found_lines = min((at for at in placed if at is not None), default=0), []
    for line, at in zip(log, placed, strict=True):
        last = max(last, at) if at is not None else last
        found_lines.append(Line(line.process, line.text, last))
    return found_lines


def _seconds(hours: str, minutes: str, seconds: str) -> int:
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds)


class _Tail:
    """A file that grows, and is replaced when it is large."""

    def __init__(self, process: str, path: Path) -> None:
        self._process = process
        self._path = path
        self._file = path.open("rb")
        self._rest = b""

    def begin(self) -> Iterator[Line]:
        """The lines there are, as far as they lie in the last `MAX_BYTES`."""
        size = self._path.stat().st_size
        if size > MAX_BYTES:
            self._file.seek(size - MAX_BYTES)
            self._file.readline()
        yield from self._read()

    def more(self) -> Iterator[Line]:
        """Lines that came since."""
        yield from self._read()
        try:
            is_other = self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:  # between the two steps of a replacement
            return
        if is_other:
            self._file.close()
            self._file, self._rest = self._path.open("rb"), b""
            yield from self._read()

    def _read(self) -> Iterator[Line]:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            yield Line(self._process, line.decode(errors="replace"))


def _as_text(line: Line) -> None:
    sys.stdout.write(f"{line.process:<12} {line.text}\n")


def _as_json(line: Line) -> None:
    sys.stdout.write(json.dumps({"process": line.process, "text": line.text}) + "\n")
