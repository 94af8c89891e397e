"""An agent whose consumer hangs on SIGUSR2: its main thread, Celery's loop, waits for ever; the rest goes on."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

from packtrain.workers import agent_main


def _hang(_number: int, _frame: FrameType | None) -> None:
    threading.Event().wait()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, _hang)
    sys.exit(agent_main.main())
