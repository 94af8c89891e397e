"""One batch from its order to its files: the bulk engine with OpenAI's states around it.

    validating ──▶ in_progress ──▶ finalizing ──▶ completed
        └─▶ failed      ├─ (24 h are over) ──────▶ expired       what is left fails with `batch_expired`
                        └─ cancelling ───────────▶ cancelled     what is left has no line

Any of these steps may be repeated: by the next process, after this one was killed. What keeps it from going on, and
what that means, is in batches_faults.py. A batch that can never go on is `failed` with what came of it, at any step.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from packtrain.broker.errors import JobExpired, TryLater
from packtrain.client.bulk import BulkOptions, BulkRun, Defaults, FileInvalid, Snapshot, Summary
from packtrain.client.bulk.gate import Gate
from packtrain.client.bulk.output import Journal
from packtrain.client.gateway.batches_faults import MOST_DEFECTS, Meaning, fault, meaning_of, said_of
from packtrain.client.gateway.batches_store import Batch, BatchStatus, BatchStore, Progress
from packtrain.client.gateway.files_store import FileStore
from packtrain.client.transport import Transport

logger = logging.getLogger(__name__)

#: Rows of one batch.
MAX_ROWS: Final = 50_000
#: How far it is is written so often, seconds.
SAVE_S: Final = 1.0
#: Tries to end an expired batch in order, with a line for each row that is left. Afterwards it ends as it is.
MOST_LATE: Final = 3
EXPIRED = JobExpired("the batch was not through within its 24 h; send what is left again")


class BatchRun:
    """A batch that this process runs. The caller holds its lock.

    Args:
        now: Seconds since 1970.
        gate: Of who ordered it; None: nobody in particular did.
    """

    def __init__(
        self, batch: Batch, batches: BatchStore, files: FileStore, transport: Transport,
        now: Callable[[], float] = time.time, gate: Gate | None = None,
    ) -> None:  # fmt: skip
        self._batch = batch
        self._batches = batches
        self._files = files
        self._transport = transport
        self._now = now
        self._gate = gate
        self._progress = batches.progress(batch.id)
        self._saved_at = 0.0
        self._bulk: BulkRun | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Return soon; the batch stays unfinished."""
        self._is_stopped = True
        if self._bulk:
            self._bulk.stop()

    def run(self) -> bool:
        """Run it; whether it has ended.

        Raises:
            Exception: It cannot go on now, and may later; `Progress.waits_for` says why where that could be kept.
        """
        if self._progress.status.is_over:
            self._batches.tidy(self._batch.id)
            return True
        if self._is_expired and self._progress.late >= MOST_LATE:  # its processes were killed, however often
            self._end_as_it_is(BatchStatus.EXPIRED, self._progress.waits_for or "its processes ended without a word")
            return True
        try:
            if self._is_expired:
                self._save(self._progress.model_copy(update={"late": self._progress.late + 1}))
            return self._run()
        except Exception as error:
            if self._is_over_with(error):
                return True
            raise

    def _is_over_with(self, error: Exception) -> bool:
        """Whether this failure ends the batch; else it is noted."""
        meaning, said = meaning_of(error), said_of(error)
        defects = self._progress.defects + (meaning is Meaning.DEFECT)
        if self._is_expired and self._progress.late >= MOST_LATE:
            self._end_as_it_is(BatchStatus.EXPIRED, said)
        elif meaning is Meaning.BROKEN or defects >= MOST_DEFECTS:
            self._end_as_it_is(BatchStatus.FAILED, said)
        else:
            with suppress(OSError):  # of a full disk
                self._save(self._progress.model_copy(update={"waits_for": said, "defects": defects}))
            return False
        return True

    def _end_as_it_is(self, status: BatchStatus, said: str) -> None:
        """End it without the engine, which cannot go on: the answers that came are kept."""
        logger.error("Batch %s ends: %s", self._batch.id, said, extra={"event": "batch.broken"})
        counts = {}
        for name, count in (("output.jsonl", "completed"), ("errors.jsonl", "failed")):
            whole = Journal(self._batches.path(self._batch.id, name)).recover(0)  # cuts off half a line
            counts[count] = sum(1 for _ in whole)
        self._progress = self._progress.model_copy(update=counts)
        self._finish(status, faults=(fault(f"batch_{status}", said),))
        self._batches.tidy(self._batch.id)

    def _run(self) -> bool:
        batch = self._batch
        options = BulkOptions(
            source=str(self._batches.path(batch.id, "input.jsonl")), out=self._batches.path(batch.id, "output.jsonl"),
            errors=self._batches.path(batch.id, "errors.jsonl"), user=batch.user, created=batch.created_at,
            defaults=Defaults(endpoint=batch.endpoint, plain=False), limit=MAX_ROWS, skip_refused=True,
            models=None if batch.models is None else frozenset(batch.models),
        )  # fmt: skip
        with BulkRun(self._transport, options, self._gate) as self._bulk:
            if self._is_stopped:
                self._bulk.stop()
            try:
                self._bulk.prepare()
            except FileInvalid as error:
                self._step(BatchStatus.FAILED, total=0, faults=tuple(error.data["faults"]))
                self._batches.tidy(batch.id)
                return True
            self._step(BatchStatus.IN_PROGRESS, total=self._bulk.total, waits_for="")
            self._look()
            summary = self._bulk.run(self._report)  # at once, if `stop` was called meanwhile
            if self._is_stopped:
                return False
            self._count(summary)
            if summary.left and not self._is_cancelled and self._is_expired:
                self._bulk.fail_rest(EXPIRED)
                self._progress = self._progress.model_copy(update={"failed": summary.failed + summary.left})
            elif summary.left and not self._is_cancelled:
                raise summary.blocked[0] if summary.blocked else TryLater("the batch stopped before its end")
        self._finish(BatchStatus.EXPIRED if summary.left and not self._is_cancelled else None)
        self._batches.tidy(batch.id)
        return True

    @property
    def _is_cancelled(self) -> bool:
        return self._batches.cancel_asked_at(self._batch.id) is not None

    @property
    def _is_expired(self) -> bool:
        return self._now() >= self._batch.expires_at

    def _report(self, now: Snapshot) -> None:
        self._look()
        if time.monotonic() - self._saved_at >= SAVE_S:
            facts = {"completed": now.completed, "failed": now.failed, "waits_for": now.waits_for}
            self._save(self._progress.model_copy(update=facts))

    def _look(self) -> None:
        if self._bulk and (self._is_cancelled or self._is_expired):
            self._bulk.cancel()

    def _count(self, summary: Summary) -> None:
        counts = {"completed": summary.completed, "failed": summary.failed}
        self._progress = self._progress.model_copy(update=counts)

    def _finish(self, status: BatchStatus | None, **changes: object) -> None:
        """Make files of what came, under ids that the batch has had from its beginning.

        Args:
            status: How it ends; None: as what came of it says.
        """
        self._step(BatchStatus.FINALIZING)
        batch, now = self._batch, self._progress
        has = {
            "has_output": self._keep("output.jsonl", batch.output_file_id),
            "has_errors": self._keep("errors.jsonl", batch.error_file_id),
        }
        if status is None:
            is_whole = now.completed + now.failed >= now.total
            status = BatchStatus.COMPLETED if is_whole or not self._is_cancelled else BatchStatus.CANCELLED
        self._step(status, waits_for="", **has, **changes)

    def _keep(self, name: str, file_id: str) -> bool:
        source = self._batches.path(self._batch.id, name)
        if not source.exists() or not source.stat().st_size:
            return False
        draft = self._files.draft()
        _link(source, draft / "content")
        called = f"{self._batch.id}_{name}"
        self._files.add(draft, called, self._batch.owner, purpose="batch_output", now=int(self._now()), file_id=file_id)
        return True

    def _step(self, status: BatchStatus, **changes: object) -> None:
        self._save(self._progress.now_is(status, int(self._now()), **changes))
        logger.info("Batch %s is %s", self._batch.id, status, extra={"event": f"batch.{status}"})

    def _save(self, progress: Progress) -> None:
        self._progress = progress
        self._saved_at = time.monotonic()
        self._batches.save(self._batch.id, progress)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
