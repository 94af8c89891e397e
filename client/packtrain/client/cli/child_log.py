"""Child log: what one child process says, in a file of bounded size and, when asked, on the terminal.

The reader of a child's pipe must never stop: a full pipe blocks the child in the middle of its work. So a full disk or
a closed terminal costs lines of the log and nothing else.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.text import Text

#: A log grows to this and is then renamed to `<name>.log.1`, over the one before: at most twice this per child.
ROTATE_BYTES = 10 * 1024 * 1024
#: Longer lines are cut into pieces of this many bytes.
LINE_BYTES = 64 * 1024
TAIL_LINES = 20

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


class ChildLog:
    """The log of one child. Safe for several threads."""

    def __init__(
        self, path: Path, *, console: Console | None = None, style: str = "", rotate_bytes: int = ROTATE_BYTES
    ) -> None:
        self.path = path
        self._console = console
        self._prefix = Text(f"{path.stem:<12}", style=style)
        self._rotate_bytes = rotate_bytes
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None

    def read_all(self, pipe: BinaryIO) -> None:
        """Take every line of `pipe` until its end, then close it. Blocks; runs in a thread of its own."""
        with pipe:
            while line := pipe.readline(LINE_BYTES):
                self.write(line.decode(errors="replace").rstrip("\r\n"))

    def write(self, line: str) -> None:
        """Add one line; control characters, which could steer a terminal, become `?`."""
        line = _CONTROL.sub("?", line)
        with self._lock:
            self._tail.append(line)
            try:
                self._append(line.encode() + b"\n")
            except OSError:
                self._close_file()
            try:
                if self._console is not None:
                    self._console.print(self._prefix + Text(f" {line}"), soft_wrap=True)
            except OSError:
                self._console = None

    def tail(self) -> list[str]:
        """The last lines, at most 20."""
        with self._lock:
            return list(self._tail)

    def close(self) -> None:
        """Close the file. A later line opens it again."""
        with self._lock:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by _close_file
        if self._file.tell() + len(line) > self._rotate_bytes:
            self._close_file()
            self.path.replace(self.path.with_name(self.path.name + ".1"))
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self._file.write(line)
