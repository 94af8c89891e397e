"""A fetch: the files of one model, brought from another node by a thread of their own.

Whatever goes wrong on the way (the source dies, the link is cut, its address changes) is tried again and goes on behind
the last byte; what is no use ends the fetch with the cause. How long trying goes on without a sign of life is for
whoever looks at it. Nothing that the source says becomes a path: the files are named by the id of the model.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from packtrain.broker.errors import ModelFetchFailed
from packtrain.broker.ids import ModelId, slug
from packtrain.broker.pulls import with_headroom
from packtrain.workers.files.part_file import Held, PartFile, remove_others
from packtrain.workers.files.progress import mib
from packtrain.workers.files.source import FileChanged, NodeSource, RemotePart, SourceAway
from packtrain.workers.model_files import parts_of
from packtrain.workers.receipts import file_sha256, note_sha256

logger = logging.getLogger(__name__)

PIECE_BYTES = 256 * 1024
#: Waits between two tries, seconds.
RETRY_S = (0.2, 0.5, 1.0, 2.0)


class Space(Protocol):
    """Bytes that a fetch may still take in this folder, those that other fetches will take left out."""

    def __call__(self, folder: Path, fetch: Fetch) -> int: ...


class Cancelled(Exception):
    """Nobody wants the file any more."""


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    file: PartFile
    remote: RemotePart


class Fetch:
    """One model on its way. Begins at once; its attributes may be read by any thread.

    Args:
        model: What to bring.
        folder: Where its files shall stand.
        suffix: Of their names.
        hashes: JSON file with known hashes.
        space: What may be taken.
    """

    def __init__(
        self, model: ModelId, source: NodeSource, folder: Path, *, suffix: str, hashes: Path, space: Space
    ) -> None:
        self.model = model
        self.source = source
        self.done = 0  # bytes that are here
        self.total = 0  # bytes in all; 0: not known yet
        self.signs = 0  # grows with every sign of life of the source
        self.trouble = ""  # why it does not go on right now
        self.failure = ""  # why it has ended without the files
        self._folder = folder
        self._suffix = suffix
        self._hashes = hashes
        self._space = space
        self._hashed = 0
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"fetch-{model}", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """It has ended: the files are there, or `failure` says why not."""
        return not self._thread.is_alive()

    @property
    def remaining(self) -> int:
        """Bytes that it will still take from the disk."""
        return 0 if self.is_over else max(0, self.total - self.done)

    def cancel(self) -> None:
        """End it soon; what is here stays for later. Never blocks."""
        self._cancelled.set()

    def join(self, timeout_s: float) -> None:
        """Wait until it has ended."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._check_name()
            self._try_and_try()
        except Cancelled:
            self.failure = "cancelled"
        except ModelFetchFailed as error:
            self.failure = str(error)
        except OSError as error:
            self.failure = f"cannot write {error.filename or self._folder} ({error.strerror or error}); mend that"
        except Exception as error:
            logger.exception("Fetching %s failed", self.model, extra={"event": "fetch.failed"})
            self.failure = f"{type(error).__name__}: {error}; this is a defect of Packtrain, please report it"

    def _check_name(self) -> None:
        """The catalog must give the file the id that it is fetched for."""
        stem = self._names(1)[0].removesuffix(self._suffix)
        if slug(stem) != self.model or len(parts_of(self._folder / f"{stem}.gguf")) > 1:
            raise ModelFetchFailed(f"no file can be named for the id {self.model!r}; copy it by hand")

    def _try_and_try(self) -> None:
        with ExitStack() as stack:
            todo: list[_Part] | None = None  # open from the first try on: what is here is read and hashed once
            tries = 0
            while True:
                before = self.signs
                try:
                    if todo is None:
                        todo = self._look(stack)
                    self._bring(todo)
                    return
                except SourceAway as away:
                    self.trouble = str(away)
                    if away.hashed != self._hashed:
                        self._hashed, self.signs = away.hashed, self.signs + 1
                except FileChanged:
                    self.trouble = f"{self.source.name} has another file now, beginning anew"
                    todo = None
                except Held as held:
                    self.trouble = str(held)
                    self.signs += 1  # its own fetch has its own limit
                if todo is None:
                    stack.close()
                tries = 0 if self.signs != before else tries + 1
                if self._cancelled.wait(RETRY_S[min(tries, len(RETRY_S) - 1)]):
                    raise Cancelled

    def _look(self, stack: ExitStack) -> list[_Part]:
        """Ask for all parts, and open those that are not here; `stack` closes them."""
        first = self.source.look(self.model, 0)
        num_files = first.num_parts + first.has_projector
        parts = [first, *(self.source.look(self.model, number) for number in range(1, num_files))]
        self._folder.mkdir(parents=True, exist_ok=True)
        todo = []
        names = self._names(first.num_parts)
        if first.has_projector:  # the catalog finds it by this name
            names.append(f"{self.model}-mmproj{self._suffix}")
        for number, (name, part) in enumerate(zip(names, parts, strict=True)):
            if not self._is_there(self._folder / name, part):
                file = stack.enter_context(PartFile(self._folder / name, part.size, part.sha256))
                todo.append(_Part(number, file, part))
        for each in todo:
            remove_others(each.file.final, keep=each.file.sha256)
            each.file.take_up(self._sign)
        need = sum(each.file.size - each.file.done for each in todo)
        total = sum(part.size for part in parts)
        self.done, self.total = total - need, total  # in this order: who sees the total sees what is done of it
        need_space(need, self._space(self._folder, self), what=self.model, folder=self._folder)
        return todo

    def _bring(self, todo: Sequence[_Part]) -> None:
        for each in todo:
            self._bring_part(each.number, each.file, each.remote)
        for each in todo:
            each.file.check()
        # The first part last: with it the catalog sees a model.
        for each in reversed(todo):
            each.file.put_into_place()
            note_sha256(each.file.final, self._hashes, each.file.sha256)
        _sync(self._folder)

    def _bring_part(self, number: int, file: PartFile, part: RemotePart) -> None:
        if file.done == part.size:
            return
        with self.source.read(self.model, number, file.done, part) as reply:
            self.trouble = ""
            while file.done < part.size:
                # What has come, not a full piece: of a slow source that would look like silence.
                piece = reply.read1(min(PIECE_BYTES, part.size - file.done))
                if not piece:
                    raise SourceAway(f"{self.source.name} has cut the transfer off")
                file.write(piece)
                self.done += len(piece)
                self._sign()

    def _sign(self, _: int = 0) -> None:
        self.signs += 1
        if self._cancelled.is_set():
            raise Cancelled

    def _is_there(self, final: Path, part: RemotePart) -> bool:
        """It may be: of a fetch that was killed while it put parts into place, or of another one just now."""
        if not final.exists():
            return False
        if final.stat().st_size == part.size and file_sha256(final, self._hashes, self._sign) == part.sha256:
            return True
        raise ModelFetchFailed(f"{final} is there and is another file than that of {self.source.name}; remove one")

    def _names(self, num_parts: int) -> list[str]:
        if num_parts == 1:
            return [self.model + self._suffix]
        return [f"{self.model}-{n:05d}-of-{num_parts:05d}{self._suffix}" for n in range(1, num_parts + 1)]


def need_space(need: int, free: int, *, what: str, folder: Path) -> None:
    """See that bytes may come.

    Raises:
        ModelFetchFailed: Too little would stay free.
    """
    if need and with_headroom(need) > free:
        raise ModelFetchFailed(
            f"{mib(need)} of {what!r} are to come and {mib(with_headroom(need) - need)} to stay free, but the disk of "
            f"{folder} has {mib(free)}; make room"
        )


def disk_free(folder: Path) -> int:
    """Bytes that we may write where this folder is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _sync(folder: Path) -> None:
    """Have the new names survive a power cut, too."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
