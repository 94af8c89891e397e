"""The batches' keeper, a thread of each gateway: every unfinished batch of the folder has a process that runs it.

The keeper decides nothing that must be remembered. It looks twice a second, starts a process for each batch without one
(its lock is free), and waits before it starts one again that could not go on: longer each time, and the reason is
logged when it is another than before. Several keepers on one folder do no harm: the lock lets one process through. When
a gateway ends, however it does, its processes leave their batches where they are, for the next one.
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
#: Before a batch that could not go on is tried again, and one whose process died, seconds; twice as long each time, up
#: to the second number.
AGAIN_S: Final = (10.0, 60.0)
DIED_S: Final = (2.0, 300.0)
#: A process that has run for so long died for another reason than the one before it, seconds.
CALM_S: Final = 120.0
#: Characters of what a process says of its end.
MAX_SAID: Final = 8000
#: How long the processes may take to stop, seconds.
STOP_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Running:
    """A process that runs a batch."""

    process: subprocess.Popen[bytes]
    since_s: float


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a batch did not go on, and when it is tried again."""

    said: str
    tries: int  # one after the other that ended so
    not_before_s: float


@dataclass(slots=True)
class Keeper:
    """Starts processes for batches.

    Args:
        command: That runs a batch, but for its id.
    """

    batches: BatchStore
    command: Sequence[str] = (sys.executable, "-m", "packtrain.client.gateway.batches_main")
    env: Mapping[str, str] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    troubles: dict[str, Trouble] = field(default_factory=dict)

    def look(self, now_s: float) -> None:
        """One look: bury what has ended, start what is to run."""
        for batch_id, running in list(self.running.items()):
            if running.process.poll() is not None:
                del self.running[batch_id]
                self._bury(batch_id, running, now_s)
        unfinished = self.batches.unfinished()
        self.batches.sweep()
        self.troubles = {name: trouble for name, trouble in self.troubles.items() if name in unfinished}
        for batch_id in due(unfinished, self.running, self.troubles, now_s):
            if self.batches.is_locked(batch_id):
                continue
            if batch_id not in self.troubles:
                logger.info("Running batch %s", batch_id, extra={"event": "batch.start"})
            process = subprocess.Popen(
                [*self.command, batch_id], env={**os.environ, **self.env, lifeline.VARIABLE: "1"},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            self.running[batch_id] = Running(process, now_s)

    def _bury(self, batch_id: str, running: Running, now_s: float) -> None:
        process = running.process
        assert process.stdout
        said = process.stdout.read(MAX_SAID).decode("utf-8", "replace").strip()
        _close(process)
        if not process.returncode:
            return
        before = self.troubles.get(batch_id)
        self.troubles[batch_id] = now = trouble(before, process.returncode, said, now_s - running.since_s, now_s)
        if before is None or _first_line(before) != _first_line(now):
            logger.warning(
                "Batch %s waits, and is tried again: %s", batch_id, now.said,
                extra={"event": "batch.waits", "again_s": now.not_before_s - now_s},
            )  # fmt: skip

    def stop(self) -> None:
        """End the processes; their batches stay unfinished. Blocks until all are gone."""
        for running in self.running.values():
            running.process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in (running.process for running in self.running.values()):
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _close(process)


def due(
    unfinished: Sequence[str], running: Mapping[str, object], troubles: Mapping[str, Trouble], now_s: float
) -> list[str]:
    """Batches to start now: the oldest first, as many as may run beside those that do."""
    free = MOST_AT_ONCE - len(running)
    waiting = {batch_id for batch_id, each in troubles.items() if each.not_before_s > now_s}
    ready = [each for each in unfinished if each not in running and each not in waiting]
    return ready[: max(0, free)]


def trouble(before: Trouble | None, code: int, said: str, ran_s: float, now_s: float) -> Trouble:
    """What comes of a process that ended before its batch.

    Args:
        before: What came of the one before it.
        code: Its exit code; below 0: of the signal that killed it.
        said: Its last words.
        ran_s: How long it ran.
    """
    tries = 1 if before is None or ran_s >= CALM_S else before.tries + 1
    first_s, most_s = AGAIN_S if code == AGAIN else DIED_S
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    wait_s = min(most_s, first_s * 2 ** min(tries - 1, 10))
    return Trouble(said or f"its process ended with {how}", tries, now_s + wait_s)


def _first_line(trouble: Trouble) -> str:
    return trouble.said.partition("\n")[0]


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


@contextmanager
def kept_batches(folder: Path, url: str) -> Iterator[None]:
    """Keep the batches in a folder running for the time of the block.

    Args:
        url: Of the broker.
    """
    keeper = Keeper(BatchStore(folder), env={"PACKTRAIN_URL": url, "PACKTRAIN_FILES": str(folder)})
    ended = threading.Event()

    def keep() -> None:
        said = ""
        while not ended.wait(LOOK_S):
            try:
                keeper.look(time.monotonic())
            except Exception as error:  # a disk that is full or gone for a while: the next look may see it
                if str(error) != said:
                    logger.warning("Cannot look after batches: %r", error, extra={"event": "batches.error"})
                said = str(error)
            else:
                said = ""

    thread = threading.Thread(target=keep, name="batches", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        keeper.stop()
