"""The home folder of a running fleet: who holds it, and where its clients find it.

`<home>/up.lock` is held (flock) for as long as a fleet runs from this home. The kernel lets go of it however the holder
ends, so it is the truth; the process id written inside only says whom to signal, and counts only while the lock is
held. The file is never removed: two processes could then hold locks on two files of one name.

`<home>/fleet.json` tells clients on this machine where the fleet is. It holds the broker's password: mode 0600.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from packtrain.broker.errors import SetupError
from packtrain.broker.private_files import write_private


def lock_file(home: Path) -> Path:
    """The lock of `home`."""
    return home / "up.lock"


def fleet_file(home: Path) -> Path:
    """Where clients find the fleet; the same as `Settings.fleet_file`."""
    return home / "fleet.json"


@contextmanager
def held_home(home: Path) -> Iterator[None]:
    """Hold `home`, which is made when absent, for the time of the block.

    Raises:
        SetupError: Another process holds it, or it cannot be made or written.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(lock_file(home), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(f"cannot use {home} as home ({error.strerror}); choose another with `--home`") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(
                f"a fleet already runs from {home} (process {_pid_in(fd) or 'unknown'}); "
                "stop it with `packtrain down`, or start another with another `--home`"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def is_held(home: Path) -> bool:
    """True while a fleet runs from `home`."""
    try:
        fd = os.open(lock_file(home), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def holder_pid(home: Path) -> int | None:
    """The process that holds `home`; None when nobody does, or it has not said yet who it is."""
    try:
        fd = os.open(lock_file(home), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        pid = _pid_in(fd)
        # Read before and after asking for the lock: what a killed holder left behind, seen while the next one is
        # about to write its own, is nobody to signal.
        return pid if is_held(home) and pid == _pid_in(fd) else None
    finally:
        os.close(fd)


def announce_fleet(home: Path, fleet: Mapping[str, object]) -> None:
    """Let clients on this machine find `fleet`. Replaces what an earlier, killed run may have left."""
    write_private(fleet_file(home), json.dumps(dict(fleet), indent=2) + "\n")


def withdraw_fleet(home: Path) -> None:
    """Take it back; fine when nothing was announced."""
    fleet_file(home).unlink(missing_ok=True)


def _pid_in(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None
