"""Pulls that clients ask this node for: a process for each, whose words are passed on to the broker.

What came stays as a part file when a pull or the agent ends, so the same pull again goes on.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from pydantic import ValidationError
from redis.exceptions import RedisError

from packtrain.broker.errors import ModelFetchFailed, PacktrainError
from packtrain.broker.pulls import PullRequest, PullStatus

logger = logging.getLogger(__name__)

MAX_PULLS = 4
#: The record of a pull that has nothing new to say is renewed this often, seconds.
RENEW_S = 2.0


class Pulls:
    """Safe to share between threads.

    Args:
        node: This one.
        put: Writes the record of a pull; may raise `RedisError`.
        program: Called with a `PullRequest` as JSON; prints `PullStatus` lines.
    """

    def __init__(
        self,
        node: str,
        put: Callable[[str, PullStatus], None],
        program: tuple[str, ...] = (sys.executable, "-m", "packtrain.workers.files.pull_main"),
    ) -> None:
        self._node = node
        self._put = put
        self._program = program
        self._lock = threading.Lock()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._is_closed = False

    def start(self, request: PullRequest) -> None:
        """Begin a pull; one that runs already goes on."""
        with self._lock:
            if self._is_closed or request.id in self._running:
                return
            if len(self._running) >= MAX_PULLS:
                error = ModelFetchFailed(f"{self._node} pulls {MAX_PULLS} files already; wait until one is there")
                self._tell(request.id, PullStatus(state="failed", error=error.to_wire()))
                return
            process = subprocess.Popen(
                [*self._program, request.model_dump_json()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            self._running[request.id] = process
        logger.info("Pulling %s/%s", request.repo, request.file, extra={"event": "pull.start"})
        threading.Thread(target=self._follow, args=(request, process), name="pull", daemon=True).start()

    def close(self) -> None:
        """End them all."""
        with self._lock:
            self._is_closed = True
            running = list(self._running.values())
        for process in running:
            process.kill()
            process.wait()

    def _follow(self, request: PullRequest, process: subprocess.Popen[bytes]) -> None:
        status = PullStatus()
        for said in _lines(process):
            try:
                status = PullStatus.model_validate_json(said) if said else status
            except ValidationError as error:
                logger.warning("A pull says odd things: %s", error, extra={"event": "pull.odd"})
            if status.state == "running":
                self._tell(request.id, status)
        code = process.wait()
        if status.state == "running":
            gone = ModelFetchFailed(
                f"its process on {self._node} ended with code {code}; pull again, what came is kept"
            )
            status = PullStatus(state="failed", error=gone.to_wire())
        if status.error:
            reason = PacktrainError.from_wire(status.error)
            logger.warning(
                "Could not pull %s/%s: %s", request.repo, request.file, reason, extra={"event": "pull.failed"}
            )
        elif status.model:
            logger.info("Pulled %s/%s as %s", request.repo, request.file, status.model, extra={"event": "pull.done"})
        with self._lock:
            del self._running[request.id]
        self._tell(request.id, status)

    def _tell(self, pull_id: str, status: PullStatus) -> None:
        try:
            self._put(pull_id, status.model_copy(update={"node": self._node}))
        except RedisError as error:
            logger.warning("Broker is away; a pull goes on: %s", error, extra={"event": "pull.untold"})


def _lines(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What the process prints, line by line, and an empty one whenever it says nothing for a while."""
    assert process.stdout is not None
    with process.stdout as stdout:
        rest = b""
        while True:
            if not select.select([stdout], [], [], RENEW_S)[0]:
                yield b""
                continue
            piece = os.read(stdout.fileno(), 65536)
            if not piece:
                return
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line for line in lines if line)
