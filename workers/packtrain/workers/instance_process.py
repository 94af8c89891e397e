"""An instance process as its agent holds it: spawned, listened to, ended.

The child gets its configuration as one argument, a lifeline as stdin, and a pipe for its reports. What it writes to
stderr (llama.cpp's last words included) is passed on line by line and its tail kept, to say why it died.
"""

from __future__ import annotations

import json
import logging
import os
import signal
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
from packtrain.workers.instance_messages import InstanceConfig, InstanceReport

logger = logging.getLogger(__name__)

#: Lines of stderr that are kept to explain a death.
TAIL_LINES = 12


class InstanceProcess:
    """One spawned process.

    Args:
        config: What it shall be; its `report_fd` is set here.
        on_line: Called for every line of its stderr, from a thread.
        pid_file: Where its identity is noted, so that a restarted agent finds an orphan.
    """

    def __init__(self, config: InstanceConfig, *, on_line: Callable[[str], None], pid_file: Path) -> None:
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
        self.started_at = time.monotonic()
        self.last_report: InstanceReport | None = None
        self.last_report_at = self.started_at
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._on_line = on_line
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

    def reap(self) -> str:
        """After its end: wait for its last words, forget its pid file, say why it ended."""
        code = self._process.wait()
        for reader in self._readers:
            reader.join(timeout=2)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._pid_file.unlink(missing_ok=True)
        if self.last_report and self.last_report.reason:
            return self.last_report.reason
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        last = next((line for line in reversed(self._tail) if line.strip()), "")
        return f"{how}; last words: {last[:300]}" if last else how

    def _read_reports(self, fd: int) -> None:
        with open(fd, "rb") as pipe:
            for line in pipe:
                try:
                    self.last_report = InstanceReport.model_validate_json(line)
                except ValidationError:
                    continue
                self.last_report_at = time.monotonic()

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
