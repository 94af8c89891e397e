"""A part file: one model file as far as it is here, beside the place where it will stand.

    <models>/smollm2.gguf.part-2c8b5b2e9d3f4a10      for smollm2.gguf with a hash that begins so

It is locked while somebody writes it, hashed on the way, and renamed only when it is whole and right, so the catalog
never sees half a model. The hash in its name tells a later fetch, of this agent or the next, whether it may go on with
it. A hash cannot be taken up in the middle: what is here already is read once more.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from glob import escape
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from packtrain.broker.errors import ModelFetchFailed
from packtrain.workers.files.progress import mib
from packtrain.workers.receipts import READ_BYTES

MARK = ".part-"
#: A part file that nobody has written to for so long is not coming back, seconds.
ABANDONED_S = 7 * 24 * 3600.0


class Held(Exception):
    """Somebody else is writing this part file."""


class PartFile:
    """Open and locked from construction to `close`.

    Args:
        final: Where the file will stand.
        size: Bytes of the whole file.
        sha256: Of the whole file.

    Raises:
        Held: Another thread or process writes it.
        OSError: It cannot be made.
    """

    def __init__(self, final: Path, size: int, sha256: str) -> None:
        self.final = final
        self.size = size
        self.sha256 = sha256
        self.path = final.with_name(f"{final.name}{MARK}{sha256[:16]}")
        self._file = _open_locked(self.path)
        self._digest = hashlib.sha256()
        self.done = 0  # bytes that are here, and hashed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def take_up(self, on_bytes: Callable[[int], None]) -> None:
        """Read what an earlier fetch has left."""
        if os.fstat(self._file.fileno()).st_size > self.size:
            self.begin_anew()
        while chunk := self._file.read(READ_BYTES):
            self._digest.update(chunk)
            self.done += len(chunk)
            on_bytes(len(chunk))

    def write(self, piece: bytes) -> None:
        """Add bytes.

        Raises:
            ModelFetchFailed: The disk is full. What was here is removed: it is not ours to fill the disk.
        """
        try:
            rest = memoryview(piece)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.discard()
            raise ModelFetchFailed(
                f"the disk of {self.path.parent} is full ({error.strerror}) after {mib(self.done)} of "
                f"{mib(self.size)}; make room"
            ) from error
        self._digest.update(piece)
        self.done += len(piece)

    def begin_anew(self) -> None:
        """Forget what is here."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.done = 0

    def check(self) -> None:
        """See that the whole file is here and right, and on the disk.

        Raises:
            ModelFetchFailed: It is not; then it is removed, for nobody knows which byte is wrong.
        """
        found = self._digest.hexdigest()
        if found != self.sha256:
            self.discard()
            raise ModelFetchFailed(
                f"what came as {self.final.name} has the hash {found[:16]}..., not {self.sha256[:16]}...; it was "
                "removed, see that neither disk nor network damages files"
            )
        os.fsync(self._file.fileno())

    def put_into_place(self) -> None:
        """Let the catalog see it. Only after `check`."""
        self.path.replace(self.final)

    def discard(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Unlock. What is here stays for later."""
        if not self.done:
            self.discard()
        self._file.close()


def remove_others(final: Path, keep: str = "") -> None:
    """Remove part files for `final` of other content, which nobody will go on with, unless somebody writes them.

    Args:
        keep: Hash of the content that is wanted.
    """
    for path in final.parent.glob(f"{escape(final.name)}{MARK}*"):
        if keep and path.name.endswith(keep[:16]):
            continue
        _remove_if_free(path)


def remove_abandoned(folder: Path, now_s: float | None = None) -> None:
    """Remove part files that nobody has written to for a week."""
    now_s = time.time() if now_s is None else now_s
    for path in folder.glob(f"*{MARK}*"):
        try:
            if path.stat().st_mtime < now_s - ABANDONED_S:
                _remove_if_free(path)
        except OSError:
            continue


def _remove_if_free(path: Path) -> None:
    try:
        _open_locked(path).close()
    except (Held, OSError):
        return
    path.unlink(missing_ok=True)


def _open_locked(path: Path) -> FileIO:
    while True:
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and lock its last writer may have renamed it into place: then this is no part file any more.
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except BlockingIOError:
            file.close()
            raise Held(f"{path.name} is being fetched by somebody else") from None
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()
