"""A child process that gets no more than it needs: a bare environment, one argument, a lifeline; what it says is kept.

For children that face what may be hostile. Nothing of our environment reaches them but where Python finds its parts: no
broker, no password, no key.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable

from packtrain.broker import lifeline
from packtrain.broker.jobs import MAX_TAIL_LINES

#: Where Python and libraries find their parts, and how the clock is read.
_VARIABLES = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


def bare_environment() -> dict[str, str]:
    """Of our own, what a child may have."""
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


class BareProcess:
    """One child. It ends with us.

    Args:
        module: That it runs.
        argument: All that it is told; everybody on the machine can read it.
        on_line: Called from a thread for each line that it writes, without its end; True: it need not be kept.
        more: Further variables.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, module: str, argument: str, *, on_line: Callable[[str], bool], **more: str) -> None:
        self._on_line = on_line
        self._tail: deque[str] = deque(maxlen=MAX_TAIL_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**bare_environment(), lifeline.VARIABLE: "1", **more},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="words of a child", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def said(self) -> str:
        """The last lines of what it wrote."""
        return "\n".join(self._tail)

    def exit_code(self) -> int | None:
        """Negative: the signal that ended it. None while it lives."""
        return self._process.poll()

    def last_words(self) -> str:
        """Of one that has ended: all that it still wrote."""
        self._reader.join(timeout=2)
        return self.said

    def close(self) -> None:
        """End it and wait until it is gone; its memory is free then."""
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=2)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for raw in pipe:
                line = raw.decode("utf-8", "replace").rstrip()
                if not self._on_line(line):
                    self._tail.append(line)
