"""Files of answers: lines are added and never changed, so a process may be killed in the middle of one.

A line counts once it is whole. What was being written when the process died is cut off at the next start; whole lines
that the ledger has not heard of are read from the file, so no answer is computed twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

_COPY = 1024 * 1024


def line_of(fields: Mapping[str, Any]) -> bytes:
    """JSON on one line, with its newline."""
    try:
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair in a custom_id: written as it was in the input
        text = json.dumps(fields, separators=(",", ":")).encode()
    return text + b"\n"


class Journal:
    """A file that lines are appended to. It is made with the first of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self.size = path.stat().st_size if path.exists() else 0

    def append(self, line: bytes) -> int:
        """Add a line; its place. It is on disk after `sync`."""
        if self._file is None:
            self._file = open(self.path, "ab")  # noqa: SIM115  (closed by close)
        place = self.size
        self._file.write(line)
        self.size += len(line)
        return place

    def sync(self) -> None:
        """Blocks until all lines are on disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write what is left and close."""
        file, self._file = self._file, None
        if file is not None:
            with file:  # closed even where the disk is full
                file.flush()
                os.fsync(file.fileno())

    def clear(self) -> None:
        """Remove all lines."""
        self.close()
        if self.size:
            os.truncate(self.path, 0)
        self.size = 0

    def recover(self, known: int) -> Iterator[tuple[str, int, int]]:
        """The custom_id, place and size of each whole line behind the first `known` bytes; the rest is cut off.

        So is what follows a line without a custom_id, of a row that could not be read: nothing was computed for it.
        """
        if self.size <= known:
            return
        place = known
        with open(self.path, "rb") as file:
            file.seek(known)
            for line in file:
                if (custom_id := _custom_id(line)) is None:
                    break
                yield custom_id, place, len(line)
                place += len(line)
        os.truncate(self.path, place)
        self.size = place


def _custom_id(line: bytes) -> str | None:
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)["custom_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def assemble(source: Path, places: Iterable[tuple[int, int]], target: Path) -> None:
    """Write the lines at these places of `source` into `target`, which shows up whole or not at all.

    Where there are no lines, there is no file afterwards.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    written = 0
    try:
        with open(draft, "wb", buffering=_COPY) as file:
            lines = None
            try:
                for place, size in places:
                    lines = lines or open(source, "rb", buffering=0)  # noqa: SIM115
                    file.write(os.pread(lines.fileno(), size, place))
                    written += 1
            finally:
                if lines:
                    lines.close()
            file.flush()
            os.fsync(file.fileno())
        if written:
            draft.replace(target)
        else:
            target.unlink(missing_ok=True)
    finally:
        draft.unlink(missing_ok=True)
