"""One end of a tunnel as its agent holds it: spawned, asked where it listens, ended. It ends with its parent."""

from __future__ import annotations

import threading
import time

from pydantic import ValidationError

from packtrain.broker.errors import ModelLoadFailed
from packtrain.workers.bare_process import BareProcess
from packtrain.workers.tunnel.messages import TunnelConfig, TunnelReady

#: Imports, on a busy machine.
START_S = 60.0


class TunnelProcess(BareProcess):
    """One end. Blocks until it listens, some tenths of a second.

    Raises:
        ModelLoadFailed: It cannot.
    """

    def __init__(self, config: TunnelConfig) -> None:
        self.port = 0
        self._is_ready = threading.Event()
        super().__init__("packtrain.workers.tunnel_main", config.model_dump_json(), on_line=self._hear)
        deadline = time.monotonic() + START_S
        while not self._is_ready.wait(0.02):
            if self.exit_code() is not None or time.monotonic() > deadline:
                self.close()
                raise ModelLoadFailed(f"a tunnel cannot be made: {self.said or 'its process ended'}")

    def _hear(self, line: str) -> bool:
        if self._is_ready.is_set():
            return False
        try:
            self.port = TunnelReady.model_validate_json(line).port
        except ValidationError:
            return False
        self._is_ready.set()
        return True
