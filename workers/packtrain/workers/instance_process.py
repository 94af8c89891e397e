"""An instance process as its agent holds it: spawned, listened to, ended.

The child gets its configuration as one argument, a lifeline as stdin that also carries orders, and a pipe for its
reports. What it writes to stderr (llama.cpp's last words included) is passed on line by line and its tail kept, to say
why it died.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from packtrain.broker import lifeline
from packtrain.broker.ids import InstanceId
from packtrain.broker.jobs import MAX_TAIL_LINES
from packtrain.broker.outcome import Cause
from packtrain.workers.instance_messages import InstanceConfig, InstanceOrder, InstanceReport
from packtrain.workers.supervision import why_ended

logger = logging.getLogger(__name__)


class InstanceProcess:
    """One spawned process.

    Args:
        config: What it shall be; its `report_fd` is set here.
        on_line: Called for every line of its stderr, from a thread.
        on_report: Called after every report, from a thread.
        pid_file: Where its identity is noted, so that a restarted agent finds an orphan.
    """

    def __init__(
        self,
        config: InstanceConfig,
        *,
        on_line: Callable[[str], None],
        on_report: Callable[[], None],
        pid_file: Path,
    ) -> None:
        read_fd, write_fd = os.pipe()
        config = config.model_copy(update={"report_fd": write_fd})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "packtrain.workers.instance_main", config.model_dump_json()],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(write_fd,),
            env={**os.environ, lifeline.VARIABLE: "1"},
            start_new_session=True,  # a Ctrl-C at the terminal is the supervisor's to handle, not ours
        )
        os.close(write_fd)
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        # A frozen instance reads nothing; an order to it must not stop whoever gives it.
        os.set_blocking(self._stdin.fileno(), False)
        self.started_at = time.monotonic()
        self.last_report: InstanceReport | None = None
        self.last_report_at = self.started_at
        self._instance = InstanceId(config.instance)
        self._tail: deque[str] = deque(maxlen=MAX_TAIL_LINES)
        self._on_line = on_line
        self._on_report = on_report
        self._pid_file = pid_file
        self._readers = [
            threading.Thread(target=self._read_reports, args=(read_fd,), name="reports", daemon=True),
            threading.Thread(target=self._read_stderr, name="stderr", daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self._note_identity(config.instance)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_busy(self) -> bool:
        """Whether it last said that it has work."""
        return bool(self.last_report and self.last_report.is_busy)

    def set_threads(self, count: int) -> bool:
        """Have it compute with this many threads from its next step on; False when it could not be told. Never blocks.

        One that is loading hears it when it is loaded.
        """
        line = InstanceOrder(threads=count).model_dump_json().encode() + b"\n"
        try:
            return os.write(self._stdin.fileno(), line) == len(line)  # below PIPE_BUF: all of it or nothing
        except (OSError, ValueError):  # it reads no longer, or is gone and closed
            return False

    def exit_code(self) -> int | None:
        """Negative: the signal that ended it. None while it lives."""
        return self._process.poll()

    def drain(self) -> None:
        """Ask it to finish its jobs and end."""
        if self.exit_code() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it now."""
        if self.exit_code() is None:
            self._process.kill()

    def reap(self, kill_reason: str = "") -> Cause:
        """After its end: wait for its last words, forget its pid file, say why it ended.

        Args:
            kill_reason: Why its agent killed it, if it did.
        """
        code = self._process.wait()
        for reader in self._readers:
            reader.join(timeout=2)
        self._stdin.close()
        self._pid_file.unlink(missing_ok=True)
        said = self.last_report.reason if self.last_report else ""
        return why_ended(self._instance, code, said=said, kill_reason=kill_reason, tail=self._tail)

    def _read_reports(self, fd: int) -> None:
        with open(fd, "rb") as pipe:
            for line in pipe:
                try:
                    self.last_report = InstanceReport.model_validate_json(line)
                except ValidationError:
                    continue
                self.last_report_at = time.monotonic()
                self._on_report()

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as pipe:
            for raw in pipe:
                line = raw.decode("utf-8", "replace").rstrip()
                self._tail.append(line)
                self._on_line(line)

    def _note_identity(self, instance: str) -> None:
        try:
            created = psutil.Process(self.pid).create_time()
        except psutil.Error:
            return  # it is gone already, and will be reaped
        identity = {"pid": self.pid, "created": created, "instance": instance}
        try:
            self._pid_file.parent.mkdir(parents=True, exist_ok=True)
            self._pid_file.write_text(json.dumps(identity))
        except OSError as error:  # a full disk must not leave a running process that nobody knows of
            logger.warning("Could not note %s: %s", self._pid_file, error, extra={"event": "instance.unnoted"})


def end_orphans(folder: Path, *, grace_s: float = 5.0) -> list[str]:
    """End instances that an agent before us left behind; their ids.

    A lifeline ends them by itself within seconds, unless they hang. A pid counts only together with its start time: by
    now it may belong to somebody else.
    """
    orphans: list[tuple[str, psutil.Process | None, Path]] = []
    for path in sorted(folder.glob("*.json")):
        try:
            noted = json.loads(path.read_text())
            process: psutil.Process | None = psutil.Process(int(noted["pid"]))
            if process is not None and process.create_time() != noted["created"]:
                process = None
        except (OSError, ValueError, KeyError, psutil.Error):
            process = None
        orphans.append((path.stem, process, path))
    living = [process for _, process, _ in orphans if process]
    for process in living:
        with suppress(psutil.NoSuchProcess):  # its lifeline was faster
            process.terminate()
    _, stubborn = psutil.wait_procs(living, timeout=grace_s)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=grace_s)
    for _, _, path in orphans:
        path.unlink(missing_ok=True)
    return [instance for instance, _, _ in orphans]
