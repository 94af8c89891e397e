"""Supervisor: runs a few child processes, starts again what dies, and leaves nothing behind.

One thread per child, its keeper, lives through the child's story from top to bottom: start it, wait for its end, sweep
what is left of its process group, ask the policy, wait, start it again. Nothing else ever starts a process, so there is
one place where "are we stopping?" is asked, under the lock that `stop` takes.

However this process ends, the children follow:
1. `stop`: SIGTERM in reverse order of start, each child gone before the next is asked, so the first (the broker)
   outlives all that need it. Past the deadline: SIGKILL to the whole process group.
2. A second interrupt: SIGKILL to all groups at once.
3. `kill -9` of this process: the kernel closes the pipes that are the children's stdin (see `broker/lifeline.py`).
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from packtrain.broker import lifeline
from packtrain.broker.errors import SetupError
from packtrain.broker.private_files import private_folder
from packtrain.client.cli.child_log import ChildLog
from packtrain.client.cli.restarts import RestartPolicy

READY_POLL_S = 0.05
#: However late the others were, each child gets this long (or the whole grace, if that is less) to end by itself.
LEAST_GRACE_S = 5.0
#: After SIGKILL a process is gone within milliseconds, unless a device holds it in the kernel.
KILLED_S = 10.0

#: For every child. Safe path: `python -m` must not import what happens to lie in the folder we were started from.
_OURS = {lifeline.VARIABLE: "1", "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
_STYLES = ("cyan", "magenta", "green", "yellow", "blue")


class StopAsked(Exception):
    """Somebody asked to stop while we waited for readiness. No error."""


@dataclass(frozen=True, slots=True)
class Child:
    """A program to keep running."""

    name: str  # also of its log file
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)  # added to our own environment
    ready: Callable[[], bool] | None = None  # quick, asked again and again; None: ready once started


@dataclass(slots=True)
class _Kept:
    child: Child
    log: ChildLog
    policy: RestartPolicy
    keeper: threading.Thread | None = None
    process: subprocess.Popen[bytes] | None = None  # set while it lives
    is_ready: bool = False
    exit_code: int | None = None


class Supervisor:
    """Keeps children running until `stop`. One owner thread calls it; `interrupt` may come from a signal handler.

    Args:
        logs: Folder of `<name>.log`; made with mode 0700.
        console: Where the children's lines go too; None: only to the files.
        policy: Makes the restart policy of each child.
    """

    def __init__(
        self, logs: Path, *, console: Console | None = None, policy: Callable[[], RestartPolicy] = RestartPolicy
    ) -> None:
        self.logs = logs
        self.failure: SetupError | None = None
        self._console = console
        self._policy = policy
        self._kept: list[_Kept] = []
        self._lock = threading.Lock()
        self._ending = threading.Event()
        # SimpleQueue: its put() may interrupt its own get(), which a signal handler needs; an Event could deadlock.
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_stop_asked = False

    def start(self, child: Child) -> None:
        """Keep `child` running from now on. Returns at once."""
        private_folder(self.logs)
        style = _STYLES[len(self._kept) % len(_STYLES)]
        log = ChildLog(self.logs / f"{child.name}.log", console=self._console, style=style)
        kept = _Kept(child, log, self._policy())
        kept.keeper = threading.Thread(target=self._keep, args=(kept,), name=f"keeper-{child.name}", daemon=True)
        self._kept.append(kept)
        kept.keeper.start()

    def wait_ready(self, timeout_s: float) -> None:
        """Block until every child started so far has been ready once.

        Raises:
            SetupError: A child was given up, or is not ready in time.
            StopAsked: `interrupt` came first.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if self._is_stop_asked:
                raise StopAsked
            if self.failure:
                raise self.failure
            for kept in self._kept:
                kept.is_ready = kept.is_ready or kept.child.ready is None or kept.child.ready()
            missing = [kept for kept in self._kept if not kept.is_ready]
            if not missing:
                return
            if time.monotonic() >= deadline:
                raise _late(missing[0], timeout_s)
            time.sleep(READY_POLL_S)

    def wait(self) -> None:
        """Block until `interrupt`.

        Raises:
            SetupError: A child was given up.
        """
        while not self._is_stop_asked and self.failure is None:
            self._news.get()
        if self.failure and not self._is_stop_asked:
            raise self.failure

    def interrupt(self, *_: object) -> None:
        """Ask to stop; asked a second time, kill at once. Fits `signal.signal`."""
        if self._is_stop_asked:
            self.kill()
        self._is_stop_asked = True
        self._news.put(None)

    def stop(self, grace_s: float) -> None:
        """End every child, the last started first. Blocks until all are gone; asked again, does nothing.

        Args:
            grace_s: Time for all of them together to end by themselves.
        """
        with self._lock:
            self._ending.set()
        deadline = time.monotonic() + grace_s
        for kept in reversed(self._kept):
            _signal(kept.process, signal.SIGTERM)
            assert kept.keeper is not None
            kept.keeper.join(max(deadline - time.monotonic(), min(grace_s, LEAST_GRACE_S)))
            if kept.process is not None:
                kept.log.write(f"[packtrain] {kept.child.name} did not end in time: killed")
                _kill_group(kept.process)
            kept.keeper.join(KILLED_S)
            kept.log.close()

    def kill(self) -> None:
        """SIGKILL to every process group, at once. Takes no lock: it may run in a signal handler."""
        for kept in self._kept:
            _kill_group(kept.process)

    def pids(self) -> dict[str, int]:
        """Process ids of the children that run now, by name."""
        running = ((kept.child.name, kept.process) for kept in self._kept)
        return {name: process.pid for name, process in running if process is not None}

    def _keep(self, kept: _Kept) -> None:
        name, log = kept.child.name, kept.log
        while True:
            started_s = time.monotonic()
            if not self._live_once(kept):
                return
            delay_s = kept.policy.died(started_s=started_s, now_s=time.monotonic())
            if self._ending.is_set():
                return
            if delay_s is None:
                self.failure = _given_up(kept)
                self._news.put(None)
                return
            log.write(f"[packtrain] {name} ended ({_cause(kept.exit_code)}); starts again in {delay_s:g} s")
            if self._ending.wait(delay_s):
                return

    def _live_once(self, kept: _Kept) -> bool:
        """Start the child and wait for its end. False when we are stopping and it was not started."""
        with self._lock:
            if self._ending.is_set():
                return False
            try:
                process = _spawn(kept.child)
            except OSError as error:
                kept.exit_code = 127
                kept.log.write(f"[packtrain] cannot start {kept.child.argv[0]}: {error.strerror}")
                return True
            kept.process = process
        assert process.stdout is not None
        assert process.stdin is not None
        reader = threading.Thread(target=kept.log.read_all, args=(process.stdout,), daemon=True)
        reader.start()
        kept.exit_code = process.wait()
        _kill_group(process)
        kept.process = None  # its id may belong to somebody else from here on
        process.stdin.close()
        # A grandchild in a group of its own may hold the pipe; its reader stays with it, and we go on.
        reader.join(1.0)
        return True


def _spawn(child: Child) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(child.argv),
        env={**os.environ, **child.env, **_OURS},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _signal(process: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
    if process is not None:
        process.send_signal(number)  # does nothing once the process was waited for


def _kill_group(process: subprocess.Popen[bytes] | None) -> None:
    # The group may outlive its leader, so this is right after the leader's end too, and only then finds nobody.
    if process is not None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            return


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def _given_up(kept: _Kept) -> SetupError:
    return SetupError(
        f"{kept.child.name} ended {kept.policy.num_fast} times right after its start "
        f"({_cause(kept.exit_code)}); {_last_words(kept)}",
        child=kept.child.name,
        exit_code=kept.exit_code,
        tail=kept.log.tail(),
    )


def _late(kept: _Kept, timeout_s: float) -> SetupError:
    return SetupError(
        f"{kept.child.name} was not ready after {timeout_s:g} s; {_last_words(kept)}",
        child=kept.child.name,
        exit_code=kept.exit_code,
        tail=kept.log.tail(),
    )


def _last_words(kept: _Kept) -> str:
    lines = "".join(f"\n    {line}" for line in kept.log.tail()) or "\n    (nothing)"
    return f"it said last:{lines}\ncorrect what it names; the whole log is {kept.log.path}"
