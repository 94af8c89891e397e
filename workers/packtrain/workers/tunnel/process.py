"""One end of a tunnel as its agent holds it: spawned, asked where it listens, ended. It ends with its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque

from pydantic import ValidationError

from packtrain.broker import lifeline
from packtrain.broker.errors import ModelLoadFailed
from packtrain.broker.jobs import MAX_TAIL_LINES
from packtrain.workers.tunnel.messages import TunnelConfig, TunnelReady

#: Of our own environment: where Python finds its parts.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


class TunnelProcess:
    """One end. Blocks until it listens, some tenths of a second.

    Raises:
        ModelLoadFailed: It cannot.
    """

    def __init__(self, config: TunnelConfig) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "packtrain.workers.tunnel_main", config.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment, lifeline.VARIABLE: "1"},
            start_new_session=True,
        )
        self._tail: deque[str] = deque(maxlen=MAX_TAIL_LINES)
        self._reader = threading.Thread(target=self._read, name="tunnel", daemon=True)
        self._reader.start()
        assert self._process.stdout is not None
        try:
            self.port = TunnelReady.model_validate_json(self._process.stdout.readline()).port
        except ValidationError:
            self.close()
            raise ModelLoadFailed(f"a tunnel cannot be made: {self.said or 'its process ended'}") from None

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def said(self) -> str:
        """The last lines of its log."""
        return "\n".join(self._tail)

    def exit_code(self) -> int | None:
        """Negative: the signal that ended it. None while it lives."""
        return self._process.poll()

    def close(self) -> None:
        """End it, and all connections through it."""
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=2)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as pipe:
            for line in pipe:
                self._tail.append(line.decode("utf-8", "replace").rstrip())
