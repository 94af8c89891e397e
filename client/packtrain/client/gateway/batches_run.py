"""One batch from its order to its files: the bulk engine with OpenAI's states around it. A process of its own.

    validating ──▶ in_progress ──▶ finalizing ──▶ completed
        └─▶ failed      ├─ (24 h are over) ──────▶ expired       what is left fails with `batch_expired`
                        └─ cancelling ───────────▶ cancelled     what is left has no line

Any of these steps may be repeated: by the next process, after this one was killed.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Final

from packtrain.broker import lifeline, logs
from packtrain.broker.errors import JobExpired, ModelError, PacktrainError, TryLater
from packtrain.broker.settings import load_settings
from packtrain.client.bulk import BulkOptions, BulkRun, Defaults, FileInvalid, Snapshot, Summary
from packtrain.client.gateway.batches_store import AGAIN, Batch, BatchStatus, BatchStore, Progress
from packtrain.client.gateway.files_store import FileStore
from packtrain.client.opening import open_transport
from packtrain.client.transport import Transport

logger = logging.getLogger("packtrain.client.gateway.batches_run")

#: Rows of one batch.
MAX_ROWS: Final = 50_000
#: How far it is is written so often, seconds.
SAVE_S: Final = 1.0
EXPIRED = JobExpired("the batch was not through within its 24 h; send what is left again")


class BatchRun:
    """A batch that this process runs. The caller holds its lock.

    Args:
        now: Seconds since 1970.
    """

    def __init__(
        self, batch: Batch, batches: BatchStore, files: FileStore, transport: Transport,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._batch = batch
        self._batches = batches
        self._files = files
        self._transport = transport
        self._now = now
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
            ModelError, TryLater, SetupError: It cannot go on now.
        """
        batch = self._batch
        if self._progress.status.is_over:
            return True
        options = BulkOptions(
            source=str(self._batches.path(batch.id, "input.jsonl")), out=self._batches.path(batch.id, "output.jsonl"),
            errors=self._batches.path(batch.id, "errors.jsonl"), user=batch.user, created=batch.created_at,
            defaults=Defaults(endpoint=batch.endpoint, plain=False), limit=MAX_ROWS, skip_refused=True,
            models=None if batch.models is None else frozenset(batch.models),
        )  # fmt: skip
        with BulkRun(self._transport, options) as self._bulk:
            if self._is_stopped:
                self._bulk.stop()
            try:
                self._bulk.prepare()
            except FileInvalid as error:
                self._step(BatchStatus.FAILED, total=0, faults=tuple(error.data["faults"]))
                self._batches.tidy(batch.id)
                return True
            self._step(BatchStatus.IN_PROGRESS, total=self._bulk.total)
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
        self._finish(expired=bool(summary.left) and not self._is_cancelled)
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
            counts = {"completed": now.completed, "failed": now.failed}
            self._save(self._progress.model_copy(update=counts))

    def _look(self) -> None:
        if self._bulk and (self._is_cancelled or self._is_expired):
            self._bulk.cancel()

    def _count(self, summary: Summary) -> None:
        counts = {"completed": summary.completed, "failed": summary.failed}
        self._progress = self._progress.model_copy(update=counts)

    def _finish(self, *, expired: bool) -> None:
        """Make files of what came, under ids that the batch has had from its beginning."""
        self._step(BatchStatus.FINALIZING)
        batch = self._batch
        has = {
            "has_output": self._keep("output.jsonl", batch.output_file_id),
            "has_errors": self._keep("errors.jsonl", batch.error_file_id),
        }
        if expired:
            self._step(BatchStatus.EXPIRED, **has)
        elif self._is_cancelled and self._progress.completed + self._progress.failed < self._progress.total:
            self._step(BatchStatus.CANCELLED, **has)
        else:
            self._step(BatchStatus.COMPLETED, **has)

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


def main() -> int:
    """Run the batch that the only argument names; 0: it has ended, or somebody else runs it; 75: not yet."""
    (batch_id,) = sys.argv[1:]
    settings = load_settings()
    logs.configure(settings.log_level)
    batches, files = BatchStore(settings.files_folder), FileStore(settings.files_folder)
    batch = batches.about(batch_id, Batch)
    if batch is None:
        return 0
    with batches.locked(batch_id) as is_mine:
        if not is_mine:
            return 0
        try:
            with closing(open_transport(settings.broker_url())) as transport:
                running = BatchRun(batch, batches, files, transport)

                def stop(_number: int, _frame: FrameType | None) -> None:
                    running.stop()

                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, stop)
                lifeline.watch()
                return 0 if running.run() else AGAIN
        except (ModelError, PacktrainError) as error:
            logger.warning("Batch %s waits: %s", batch_id, error, extra={"event": "batch.waits"})
            return AGAIN


if __name__ == "__main__":
    sys.exit(main())
