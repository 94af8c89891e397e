"""Composition root of the batches' keeper: each unfinished batch of the folder has a process that runs it.

The keeper decides nothing that must be remembered. It looks each second, starts a process for each batch that has none
(its lock is free), and waits a while before it starts one again that could not go on. Several keepers on one folder do
no harm: the lock lets one process through.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from packtrain.broker import lifeline, logs
from packtrain.broker.errors import PacktrainError
from packtrain.broker.settings import load_settings
from packtrain.client.gateway.batches_store import BatchStore

logger = logging.getLogger("packtrain.client.gateway.batches_main")

#: Batches that run at once; the others wait for their turn, the oldest first.
MOST_AT_ONCE: Final = 4
LOOK_S: Final = 1.0
#: Before a batch that could not go on is tried again, seconds.
AGAIN_S: Final = 10.0
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
                    self.not_before_s[batch_id] = now_s + AGAIN_S
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


def main() -> int:
    """Entry point; the exit code."""
    try:
        settings = load_settings()
        logs.configure(settings.log_level)
        url = settings.broker_url()
    except PacktrainError as error:
        sys.stderr.write(f"packtrain batches: {error}\n")
        return 1
    keeper = Keeper(BatchStore(settings.files_folder), env={"PACKTRAIN_URL": url})
    ended = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    lifeline.watch(ended.set)
    logger.info("Keeping batches in %s", settings.files_folder, extra={"event": "batches.ready"})
    while not ended.wait(LOOK_S):
        try:
            keeper.look(time.monotonic())
        except OSError as error:
            logger.warning("Cannot look after batches: %s", error, extra={"event": "batches.error"})
    keeper.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
