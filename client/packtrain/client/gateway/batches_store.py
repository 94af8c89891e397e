"""Batches in a folder, shared by gateways, which take orders, and by the process that runs a batch.

    batches/<id>/about.json      what was asked for; never changes
                 input.jsonl     the input, still there when its file has been deleted
                 progress.json   how far it is; written by who holds the lock
                 cancel          somebody wants it to end
                 lock            held (flock) while a process runs the batch
                 output.jsonl, errors.jsonl, output.jsonl.packtrain/   of the bulk run

Once a batch has ended only the first and third are left, for its answers are files then (files_store.py).

Whatever is killed, what stands here is enough to go on: a batch whose lock is free and that has not ended is taken up
again by the next process that looks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from packtrain.broker.fields import Report
from packtrain.broker.private_files import write_private
from packtrain.client.gateway.access import Caller
from packtrain.client.gateway.files_store import Owned, Shelf, is_visible

#: How long a batch may take, seconds: OpenAI's only completion window.
WINDOW_S: Final = 24 * 3600

#: Exit code of a process that could not go on with its batch now: the next one may.
AGAIN: Final = 75


class BatchStatus(StrEnum):
    """OpenAI's states of a batch."""

    VALIDATING = "validating"
    FAILED = "failed"  # its file was refused
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """True when nothing changes any more."""
        return self in (BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)


class Batch(Owned):
    """What was asked for."""

    endpoint: str
    input_file_id: str
    output_file_id: str  # that its answers will have
    error_file_id: str
    metadata: dict[str, str] | None = None
    expires_at: int = 0
    user: str = Field("", description="whose jobs its rows are; empty: whom each row names")
    models: tuple[str, ...] | None = Field(None, description="that its rows may name; null: all")


class Progress(Report):
    """How far a batch is. Times in seconds since 1970."""

    status: BatchStatus = BatchStatus.VALIDATING
    total: int = 0
    completed: int = 0
    failed: int = 0
    has_output: bool = False
    has_errors: bool = False
    faults: tuple[dict[str, Any], ...] = ()
    waits_for: str = Field("", description="why it does not go on now")
    defects: int = Field(0, description="tries that ended for reasons that nobody foresaw")
    late: int = Field(0, description="tries that began after it had expired")
    times: dict[str, int] = Field(default_factory=dict, description="of `in_progress_at` and the like")

    def now_is(self, status: BatchStatus, now: int, **changes: Any) -> Progress:
        """The same in another state since now."""
        times = {**self.times, f"{status}_at": self.times.get(f"{status}_at", now)}
        return self.model_copy(update={"status": status, "times": times, **changes})


class BatchStore(Shelf):
    """The batches of a folder."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "batches", "batch_")
        self._over: set[str] = set()  # what has ended never begins again
        self._tidied: set[str] = set()

    def create(self, batch: Batch, content: Path) -> None:
        """Keep a batch with its input."""
        draft = self.draft()
        try:
            os.link(content, draft / "input.jsonl")
        except FileNotFoundError:
            shutil.rmtree(draft)
            raise
        except OSError:  # a file system without links
            shutil.copyfile(content, draft / "input.jsonl")
        write_private(draft / "progress.json", Progress().model_dump_json())
        self.place(draft, batch)

    def get(self, batch_id: str, caller: Caller) -> Batch | None:
        """A batch that a caller may see."""
        found = self.about(batch_id, Batch)
        return found if found and is_visible(found, caller) else None

    def progress(self, batch_id: str) -> Progress:
        """How far a batch is."""
        try:
            return Progress.model_validate_json((self._of(batch_id) / "progress.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return Progress()

    def save(self, batch_id: str, progress: Progress) -> None:
        """Keep how far it is. For who holds the lock."""
        write_private(self._of(batch_id) / "progress.json", progress.model_dump_json())

    def ask_cancel(self, batch_id: str, now: int) -> None:
        """Have a batch end."""
        if not self.cancel_asked_at(batch_id):
            write_private(self._of(batch_id) / "cancel", str(now))

    def cancel_asked_at(self, batch_id: str) -> int | None:
        """When somebody wanted it to end, seconds; None: nobody did."""
        try:
            return int((self._of(batch_id) / "cancel").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def unfinished(self) -> list[str]:
        """Batches that have not ended, the oldest first."""
        found = [batch_id for batch_id in self.ids() if batch_id not in self._over]
        over = {batch_id for batch_id in found if self.progress(batch_id).status.is_over}
        self._over |= over
        return [batch_id for batch_id in found if batch_id not in over]

    @contextmanager
    def locked(self, batch_id: str) -> Iterator[bool]:
        """Hold the lock of a batch; False: somebody else does."""
        fd = os.open(self._of(batch_id) / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def is_locked(self, batch_id: str) -> bool:
        """Whether somebody runs it now."""
        with self.locked(batch_id) as is_mine:
            return not is_mine

    def tidy(self, batch_id: str) -> None:
        """Remove what an ended batch needs no more: a file that is deleted shall leave the disk."""
        for name in ("input.jsonl", "output.jsonl", "errors.jsonl"):
            self.path(batch_id, name).unlink(missing_ok=True)
        shutil.rmtree(self.path(batch_id, "output.jsonl.packtrain"), ignore_errors=True)

    def sweep(self) -> None:
        """Tidy up after batches whose process was killed between their end and `tidy`. After `unfinished`."""
        for batch_id in self._over - self._tidied:
            with suppress(FileNotFoundError), self.locked(batch_id) as is_mine:
                if not is_mine:  # its process is about to
                    continue
                self.tidy(batch_id)
            self._tidied.add(batch_id)

    def path(self, batch_id: str, name: str) -> Path:
        """A file of a batch."""
        return self._of(batch_id) / name

    def _of(self, batch_id: str) -> Path:
        folder = self.folder(batch_id)
        assert folder, batch_id
        return folder


def batch_object(batch: Batch, progress: Progress, cancel_asked_at: int | None) -> dict[str, Any]:
    """A batch as OpenAI's API shows it."""
    status = progress.status
    times = dict(progress.times)
    waits_for = "" if status.is_over else progress.waits_for
    if cancel_asked_at:
        times.setdefault("cancelling_at", cancel_asked_at)
        status = status if status.is_over else BatchStatus.CANCELLING
    names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": list(progress.faults)} if progress.faults else None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": str(status),
        "output_file_id": batch.output_file_id if progress.has_output else None,
        "error_file_id": batch.error_file_id if progress.has_errors else None,
        "created_at": batch.created_at,
        "expires_at": batch.expires_at,
        **{f"{name}_at": times.get(f"{name}_at") for name in names},
        "request_counts": {"total": progress.total, "completed": progress.completed, "failed": progress.failed},
        "metadata": batch.metadata,
        **({"packtrain": {"waits_for": waits_for}} if waits_for else {}),
    }
