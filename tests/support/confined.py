"""A process that gives up its rights as a shard does and then tries what it should not: what came of each, as JSON.

python -m tests.support.confined CACHE PORT PARENT
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from packtrain.workers.shards.sandbox import confine

LIMIT = 300 * 2**20


def attempts(cache: Path, port: int, parent: int) -> dict[str, Callable[[], object]]:
    """By what they are."""
    libc = ctypes.CDLL(None, use_errno=True)

    def tcp() -> socket.socket:
        """As C makes one; Python's would be closed at exec, which is another argument."""
        if (number := libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0)) < 0:
            raise OSError(ctypes.get_errno(), "socket")
        return socket.socket(fileno=number)

    def listen(at: int) -> None:
        with tcp() as server:
            server.bind(("127.0.0.1", at))

    def connect() -> None:
        with tcp() as client:
            client.settimeout(2)
            client.connect(("127.0.0.1", port))

    def trace() -> None:
        if libc.ptrace(16, parent, 0, 0) != 0:  # PTRACE_ATTACH
            raise OSError(ctypes.get_errno(), "ptrace")

    return {
        "read a file": Path("/etc/hostname").read_text,
        "read its own secrets": Path("/proc/self/environ").read_bytes,
        "list a folder": lambda: os.listdir("/"),
        "write a file": lambda: (cache.parent / "other").write_text("x"),
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "connect": connect,
        "listen at another port": lambda: listen(0),
        "send a datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "reach a socket of the system": lambda: socket.socket(socket.AF_UNIX),
        "signal another process": lambda: os.kill(parent, 0),
        "look into another process": trace,
        "take more memory": lambda: mmap.mmap(-1, 2 * LIMIT, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
        "keep a tensor": lambda: (cache / "tensor").write_bytes(b"x"),
        "read a tensor": (cache / "tensor").read_bytes,
        "listen at its port": lambda: listen(port),
    }


def main(argv: list[str]) -> None:
    """The process."""
    cache, port, parent = Path(argv[1]), int(argv[2]), int(argv[3])
    tries = attempts(cache, port, parent)
    held = confine(cache=cache, port=port, data_bytes=LIMIT)
    found: dict[str, str] = {}
    for name, attempt in tries.items():
        try:
            attempt()
            found[name] = "done"
        except OSError as error:
            found[name] = errno.errorcode.get(error.errno or 0, "?")
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps({"held": held, "found": found}) + "\n")


if __name__ == "__main__":
    main(sys.argv)
