"""What a shard may not do, tried for real by a process that has given up its rights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.contract, pytest.mark.skipif(sys.platform != "linux", reason="rights are Linux's")]


def test_a_confined_process_can_compute_and_answer_and_nothing_else(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.support.confined", str(cache), str(port), str(os.getpid())]

    told = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)

    found, held = told["found"], told["held"]
    assert [found.pop(wanted) for wanted in ("keep a tensor", "read a tensor", "listen at its port")] == ["done"] * 3
    assert found.pop("take more memory") == "ENOMEM"
    if not any(each.startswith("landlock") for each in held):  # an older kernel, told in the shard's log
        for file in ("read a file", "read its own secrets", "list a folder", "write a file", "listen at another port"):
            found.pop(file)
    elif int(held[2].split()[1]) < 4:
        found.pop("listen at another port")
    assert "seccomp" in held
    assert set(found.values()) <= {"EPERM", "EACCES"}, found
    assert len(found) >= 6
