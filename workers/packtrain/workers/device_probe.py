"""A short-lived process that lists this machine's devices, and what llama.cpp uses of its CPU, so that the agent never
loads llama.cpp; and who asks it.

The agent asks once at its start, and then each minute while there is a GPU: what is free on it changes, and its driver
alone knows.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError

from packtrain.workers.devices import GPU, FoundDevice

logger = logging.getLogger(__name__)

#: The process ends itself after this long, whatever becomes of the agent, seconds.
TIMEOUT_S = 60
AGAIN_S = 60.0
#: Measurements of how fast weights are read, of which the best counts: at its start a machine is seldom quiet.
NUM_RATES = 3
RATES = "--rates"
_COMMAND = (sys.executable, "-m", "packtrain.workers.device_probe")


class Found(BaseModel):
    """What a probe says."""

    devices: tuple[FoundDevice, ...] = ()
    features: str = ""  # of CPU and build; who has the same computes the same bits
    #: Bytes a second of weights of each type, as a step of one job reads them; empty: not asked.
    rates: dict[str, float] = {}


class DeviceWatch:
    """The devices of a node as last seen. Belongs to one thread, never blocks.

    Args:
        command: The probe's argument list.
        rates_with: Threads to measure with how fast weights are read, the first three times; 0: that is not asked.
    """

    def __init__(self, command: Sequence[str] = _COMMAND, *, rates_with: int = 0) -> None:
        self.found: tuple[FoundDevice, ...] = ()
        self.features = ""
        self.rates: dict[str, float] = {}
        self._command = command
        self._rates_with = rates_with
        self._rates_left = NUM_RATES if rates_with else 0
        self._process: subprocess.Popen[bytes] | None = None
        self._next: float | None = 0.0  # None: never again

    @property
    def is_asking(self) -> bool:
        """True while a probe runs."""
        return self._process is not None

    def poll(self, now_s: float) -> bool:
        """Collect an answer, and ask again when it is time. True when there is news. Monotonic seconds."""
        if self._process is None:
            if self._next is not None and now_s >= self._next:
                self._ask()
            return False
        if self._process.poll() is None:
            return False
        output, _ = self._process.communicate()  # some hundred bytes: they never filled the pipe
        self._process = None
        try:
            said = Found.model_validate_json(output)
        except ValidationError as error:
            logger.warning(
                "Cannot see this machine's devices: %s", error.errors()[0]["msg"], extra={"event": "devices.unseen"}
            )
            self._next = None  # whatever it is, it is not better in a minute
            return False
        self._rates_left -= bool(said.rates)
        changes = self._rates_left or any(device.type == GPU for device in said.devices)
        self._next = now_s + AGAIN_S if changes else None
        is_news = (said.devices, said.features) != (self.found, self.features) or bool(said.rates)
        best = {kind: max(rate, self.rates.get(kind, 0.0)) for kind, rate in said.rates.items()}
        self.found, self.features, self.rates = said.devices, said.features, best or self.rates
        return is_news

    def close(self) -> None:
        """End a probe that runs."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self) -> None:
        self._next = None
        more = [RATES, str(self._rates_with)] if self._rates_left else []
        try:
            self._process = subprocess.Popen(
                [*self._command, *more],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:  # no memory for another process, or no more processes
            logger.warning("Cannot see this machine's devices: %s", error, extra={"event": "devices.unseen"})


def main() -> int:
    """Entry point."""
    signal.alarm(TIMEOUT_S)
    os.nice(10)
    from packtrain.workers.backends.llama_cpp_devices import found_devices
    from packtrain.workers.backends.llama_cpp_library import features

    found = Found(devices=tuple(found_devices()), features=features())
    if RATES in sys.argv:
        from packtrain.workers.backends.llama_cpp_rates import read_rates

        found = found.model_copy(update={"rates": read_rates(int(sys.argv[sys.argv.index(RATES) + 1]))})
    sys.stdout.write(found.model_dump_json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
