"""Guard: stands before a program that knows nothing of lifelines, and ends it when its own lifeline is cut.

    python -m packtrain.broker.guard LINGER_S PROGRAM ARG...

The broker is such a program. The guard passes SIGTERM on and ends with the program's exit code. When the supervisor
is gone, the program lives LINGER_S seconds longer: the other children drain meanwhile, and they drain through it.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from packtrain.broker import lifeline


def main(argv: Sequence[str]) -> int:
    """Run `argv[1:]` until it ends, or until SIGTERM, or until `argv[0]` seconds after the lifeline is cut."""
    linger_s = float(argv[0])
    # A SimpleQueue and not an Event: its put() may interrupt itself, so two signals in a row cannot deadlock.
    asked: queue.SimpleQueue[None] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.put(None))

    def on_cut() -> None:
        time.sleep(linger_s)
        asked.put(None)

    lifeline.watch(on_cut)
    env = {name: value for name, value in os.environ.items() if name != lifeline.VARIABLE}
    program = subprocess.Popen(argv[1:], stdin=subprocess.DEVNULL, env=env)

    def pass_on() -> None:
        asked.get()
        program.terminate()

    threading.Thread(target=pass_on, name="pass-on", daemon=True).start()
    code = program.wait()
    return code if code >= 0 else 128 - code  # as a shell tells a death by signal


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
