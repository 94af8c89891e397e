"""What this machine lets us have: its cores and memory, or what a container or service is limited to.

Neither the number of processors nor /proc/meminfo knows of a container's limits: with `--cpus 2 --memory 8g` on a host
of 64 cores an agent would deal 64 threads, of which the kernel lets two run, and load models until it is killed. The
limits are files of the control groups (Linux), and those of all groups above count as well:

    version 2   <mount>/<group>/cpu.max             "200000 100000": microseconds of each so many; "max": none
                <mount>/<group>/memory.max, memory.high
    version 1   <mount>/cpu/<group>/cpu.cfs_quota_us, cpu.cfs_period_us        -1: none
                <mount>/memory/<group>/memory.limit_in_bytes

/proc/self/cgroup names our group. Within a container the mount mostly begins at that group while the name is the
host's, so folders that are not there are passed over; the mount's own root always counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

#: Gives the text of a file, or None where there is none.
Read = Callable[[PurePosixPath], str | None]

MOUNT = PurePosixPath("/sys/fs/cgroup")
MEMBERSHIP = PurePosixPath("/proc/self/cgroup")
#: Version 1 says "none" by the largest multiple of a page; no machine has this much.
_NO_LIMIT = 2**60


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """Bytes."""

    total: int
    available: int  # what programs can get without anything being pushed out to a swap


def cores() -> int:
    """Cores that this process may keep busy, at least 1."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = psutil.cpu_count() or 1
    quota = cpu_quota(_read)
    # Rounded down: threads of llama.cpp wait for each other, so one that is held back holds up all.
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def memory() -> MachineMemory:
    """Of the machine, or of the control group that has less."""
    host = psutil.virtual_memory()
    total, available = int(host.total), int(host.available)
    for limit, used in memory_limits(_read):
        total, available = min(total, limit), min(available, max(0, limit - used))
    return MachineMemory(total, available)


def cpu_quota(read: Read) -> float | None:
    """Cores that the control groups allow, the least of them; None: as many as there are."""
    quotas = []
    for folder in _folders(read, "cpu"):
        if limit := read(folder / "cpu.max"):
            quota, _, period = limit.strip().partition(" ")
        else:
            quota, period = (read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        if (of := _number(period)) and (microseconds := _number(quota)):
            quotas.append(microseconds / of)
    return min(quotas, default=None)


def memory_limits(read: Read) -> list[tuple[int, int]]:
    """(limit, used) in bytes of each control group with a limit. Cached pages of files do not count as used."""
    limits = []
    for folder in _folders(read, "memory"):
        names = ("memory.max", "memory.high", "memory.limit_in_bytes")
        known = [limit for name in names if (limit := _number(read(folder / name) or "")) and limit < _NO_LIMIT]
        if known:
            used = _number(read(folder / "memory.current") or read(folder / "memory.usage_in_bytes") or "")
            limits.append((min(known), max(0, used - _file_bytes(read(folder / "memory.stat") or ""))))
    return limits


def _folders(read: Read, controller: str) -> Iterator[PurePosixPath]:
    """Folders that may hold limits of this controller, of our group and of all above it."""
    for line in (read(MEMBERSHIP) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            mount = MOUNT
        elif controller in controllers.split(","):
            mount = MOUNT / controller
        else:
            continue
        inner = PurePosixPath(group.lstrip("/"))
        if ".." in inner.parts:  # a group outside of this container
            inner = PurePosixPath()
        yield mount / inner
        yield from (mount / parent for parent in inner.parents if inner.parts)


def _file_bytes(stat: str) -> int:
    """Pages of files in a group's memory.stat; version 1 counts those of the groups below as `total_`."""
    found = {name: _number(value) for name, _, value in (line.partition(" ") for line in stat.splitlines())}
    prefix = "total_" if "total_active_file" in found else ""
    return found.get(f"{prefix}active_file", 0) + found.get(f"{prefix}inactive_file", 0)


def _number(text: str) -> int:
    """0 where it is none, such as "max" or -1."""
    return int(text) if text.strip().isdecimal() else 0


def _read(path: PurePosixPath) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None
