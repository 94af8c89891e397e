"""Lifeline: a child process learns that its parent is gone, on any system, without polling.

The parent holds the write end of a pipe that is the child's stdin. However the parent ends, `kill -9` included, the
kernel closes that end and the child reads EOF. (Linux's PR_SET_PDEATHSIG would be shorter, but fires when the *thread*
that forked ends, and macOS has none.)

What the parent writes into it is for the child: one order a line.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

#: Set by the parent for children whose stdin is a lifeline.
VARIABLE = "PACKTRAIN_LIFELINE"


def watch(on_cut: Callable[[], None] | None = None, on_line: Callable[[str], None] | None = None) -> None:
    """Call `on_cut` once, from a daemon thread, when the parent is gone. Default: SIGTERM to this process.

    Does nothing in a process that was not started with a lifeline.

    Args:
        on_line: Called from that thread for each line the parent writes, without its end. Default: they are ignored.
    """
    if os.environ.get(VARIABLE) != "1":
        return

    def wait_for_eof() -> None:
        unfinished = b""
        while data := os.read(sys.stdin.fileno(), 4096):
            *lines, unfinished = (unfinished + data).split(b"\n")
            if on_line:
                for line in lines:
                    on_line(line.decode("utf-8", "replace"))
        (on_cut or _terminate)()

    threading.Thread(target=wait_for_eof, name="lifeline", daemon=True).start()


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
