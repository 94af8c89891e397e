"""The batches' keeper, a thread of each gateway: every unfinished batch of the folder has a process that runs it.

The keeper decides nothing that must be remembered. It looks twice a second, starts a process for each batch without one
(its lock is free), and waits a while before it starts one again that could not go on. Several keepers on one folder do
no harm: the lock lets one process through. When a gateway ends, however it does, its processes leave their batches
where they are, for the next one.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from packtrain.broker import lifeline
from packtrain.client.gateway.batches_store import AGAIN, BatchStore

logger = logging.getLogger(__name__)

#: Batches that run at once; the others wait for their turn, the oldest first.
MOST_AT_ONCE: Final = 4
LOOK_S: Final = 0.5
#: Before a batch that could not go on is tried again, and one whose process was killed, seconds.
AGAIN_S: Final = 10.0
KILLED_S: Final = 2.0
#: How long the processes may take to stop, seconds.
STOP_S: Final = 10.0


@dataclass(slots=True)
class Keeper:
    """Starts processes for batches.

    Args:
        command: That runs a batch, but for its id.
    """

    batches: BatchStore
    command: Sequence[str] = (sys.executable, "-m", "packtrain.client.gateway.batches_run")
    env: Mapping[str, str] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    not_before_s: dict[str, float] = field(default_factory=dict)

    def look(self, now_s: float) -> None:
        """One look: bury what has ended, start what is to run."""
        for batch_id, process in list(self.running.items()):
            if process.poll() is not None:
                del self.running[batch_id]
                _close(process)
                if process.returncode:
                    self.not_before_s[batch_id] = now_s + (AGAIN_S if process.returncode == AGAIN else KILLED_S)
        unfinished = self.batches.unfinished()
        self.not_before_s = {name: at_s for name, at_s in self.not_before_s.items() if name in unfinished}
        for batch_id in due(unfinished, self.running, self.not_before_s, now_s):
            if self.batches.is_locked(batch_id):
                continue
            logger.info("Running batch %s", batch_id, extra={"event": "batch.start"})
            self.running[batch_id] = subprocess.Popen(
                [*self.command, batch_id], env={**os.environ, **self.env, lifeline.VARIABLE: "1"}, stdin=subprocess.PIPE
            )

    def stop(self) -> None:
        """End the processes; their batches stay unfinished. Blocks until all are gone."""
        for process in self.running.values():
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in self.running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _close(process)


def due(
    unfinished: Sequence[str], running: Mapping[str, object], not_before_s: Mapping[str, float], now_s: float
) -> list[str]:
    """Batches to start now: the oldest first, as many as may run beside those that do."""
    free = MOST_AT_ONCE - len(running)
    ready = [each for each in unfinished if each not in running and not_before_s.get(each, 0) <= now_s]
    return ready[: max(0, free)]


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()


@contextmanager
def kept_batches(folder: Path, url: str) -> Iterator[None]:
    """Keep the batches in a folder running for the time of the block.

    Args:
        url: Of the broker.
    """
    keeper = Keeper(BatchStore(folder), env={"PACKTRAIN_URL": url, "PACKTRAIN_FILES": str(folder)})
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(LOOK_S):
            try:
                keeper.look(time.monotonic())
            except OSError as error:  # a disk that is full or gone for a while
                logger.warning("Cannot look after batches: %s", error, extra={"event": "batches.error"})

    thread = threading.Thread(target=keep, name="batches", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        keeper.stop()
