"""Limits of control groups, as they are found on hosts, in containers and in services."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from packtrain.workers import machine
from packtrain.workers.machine import cpu_quota, memory_limits

pytestmark = pytest.mark.unit

GIB = 2**30
V1 = "11:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"


def reader(membership: str | None, files: dict[str, str]) -> machine.Read:
    found = {f"/sys/fs/cgroup/{name}": text for name, text in files.items()}
    if membership is not None:
        found["/proc/self/cgroup"] = membership

    def read(path: PurePosixPath) -> str | None:
        return found.get(str(path))

    return read


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        (None, {}, None),
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a.slice/b.service\n", {"a.slice/b.service/cpu.max": "max 100000", "a.slice/cpu.max": "150000 50000"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "800000 100000\n"}, 4),
        ("0::/../../outside\n", {"cpu.max": "200000 100000\n", "outside/cpu.max": "100000 100000\n"}, 2),
        ("0::/not/mounted\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "-1\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"}, None),
        (V1, {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "250000\n", "cpu/docker/abc/cpu.cfs_period_us": "0\n"}, None),
    ],
    ids=[
        "not linux", "host", "unlimited", "container", "half", "slice", "least", "outside", "host's name", "odd",
        "v1 unlimited", "v1 container", "v1 no period",
    ],
)  # fmt: skip
def test_the_quota_is_the_least_of_our_group_and_all_above(
    membership: str | None, files: dict[str, str], expected: float | None
) -> None:
    assert cpu_quota(reader(membership, files)) == expected


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {}, []),
        ("0::/\n", {"memory.max": "max\n", "memory.high": "max\n", "memory.current": "5\n"}, []),
        (
            "0::/\n",
            {
                "memory.max": f"{8 * GIB}\n",
                "memory.current": f"{3 * GIB}\n",
                "memory.stat": f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB}\nshmem 0\n",
            },
            [(8 * GIB, GIB)],
        ),
        (
            "0::/a/b\n",
            {"a/b/memory.high": f"{2 * GIB}\n", "a/b/memory.max": f"{3 * GIB}\n", "a/memory.max": f"{4 * GIB}\n"},
            [(2 * GIB, 0), (4 * GIB, 0)],
        ),
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, []),
        (
            V1,
            {
                "memory/memory.limit_in_bytes": f"{GIB}\n",
                "memory/memory.usage_in_bytes": f"{GIB // 2}\n",
                "memory/memory.stat": f"inactive_file 0\nactive_file 0\ntotal_inactive_file {GIB // 4}\n"
                "total_active_file 0\n",
            },
            [(GIB, GIB // 4)],
        ),
    ],
    ids=["host", "unlimited", "container", "service", "v1 unlimited", "v1 container"],
)
def test_memory_is_limited_by_each_group_that_says_so(
    membership: str, files: dict[str, str], expected: list[tuple[int, int]]
) -> None:
    assert memory_limits(reader(membership, files)) == expected


def test_cores_are_the_least_of_those_allowed_and_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)

    def cores(limit: str) -> int:
        monkeypatch.setattr(machine, "_read", reader("0::/\n", {"cpu.max": limit}))
        return machine.cores()

    found = {limit: cores(limit) for limit in ("max 100000", "250000 100000", "20000 100000", "900000 100000")}
    assert found == {"max 100000": 4, "250000 100000": 2, "20000 100000": 1, "900000 100000": 4}


def test_free_memory_is_the_least_of_machine_and_group(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = machine.memory()
    files = {"memory.max": "1000000\n", "memory.current": "400000\n"}
    monkeypatch.setattr(machine, "_read", reader("0::/\n", files))

    assert machine.memory() == machine.MachineMemory(total=1_000_000, available=600_000)
    assert whole.available <= whole.total
