"""Quarantine: a node on which different models keep failing is at fault itself, and gets nothing new for a while.

A full disk, a broken driver, memory that another program takes: each fails whatever is loaded. A model that is broken
fails wherever it is loaded, and a job that crashes instances crashes them everywhere; neither says anything of the
node, and both are dealt with elsewhere. So of the ends of instances these do not count:

    1. it could not be loaded and said why, while another model runs here well
    2. it was serving, and died of what a job may cause: a failed check, an address that is not its own, a hang

Two models that failed twice each within ten minutes put the node into quarantine. A model that has been READY for ten
seconds has shown that it runs here: its failures are forgotten. What is loaded goes on serving. The quarantine ends by
`packtrain nodes resume`, or after half an hour, to try again, or, where models that could not be loaded are behind it,
when other model files come; then what was counted is forgotten.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from packtrain.broker.outcome import Cause
from packtrain.workers.supervision import EXIT_LOAD_FAILED

WINDOW_MS = 10 * 60 * 1000
LASTS_MS = 30 * 60 * 1000
#: READY for so long, an instance has shown that its model runs here.
SETTLED_S = 10.0
MODELS, TIMES = 2, 2
#: No job ends an instance by these: memory ran out, its file cannot be read, its code does not fit the CPU.
_OF_THE_MACHINE = ("SIGKILL", "SIGBUS", "SIGILL")


@dataclass(frozen=True, slots=True)
class Failure:
    """An instance that failed to load, or died."""

    at_ms: int
    model: str
    reason: str
    is_refusal: bool = False  # it could not be loaded, and said why


def is_refusal(cause: Cause) -> bool:
    """Whether the instance itself said that it cannot load its model."""
    return cause.exit_code == EXIT_LOAD_FAILED


def may_be_the_node(cause: Cause, *, was_serving: bool, kill_reason: str, others_run: bool) -> bool:
    """Whether the end of an instance counts, see above.

    Args:
        was_serving: It was READY.
        kill_reason: Why its agent killed it, if it did.
        others_run: Another model is READY here.
    """
    if is_refusal(cause):
        return not others_run
    if was_serving:
        return not kill_reason and cause.signal in _OF_THE_MACHINE
    return True


class Quarantine:
    """Of one node. Times are milliseconds of the broker's clock.

    >>> quarantine = Quarantine()
    >>> for at, model in enumerate(["a", "b", "a", "b"]):
    ...     quarantine.failed(Failure(at, model, "was killed by SIGBUS"))
    >>> quarantine.reason(now_ms=4)
    '4 failures of 2 models (a, b) within 10 min, the last of b: was killed by SIGBUS'
    """

    def __init__(self) -> None:
        self._failures: list[Failure] = []
        self._began_ms = 0
        self._reason = ""

    def failed(self, failure: Failure) -> None:
        """An instance failed, and the node may be at fault."""
        self._failures = [f for f in self._failures if f.at_ms > failure.at_ms - WINDOW_MS] + [failure]
        counts = Counter(f.model for f in self._failures)
        if not self._reason and sum(count >= TIMES for count in counts.values()) >= MODELS:
            self._began_ms = failure.at_ms
            self._reason = (
                f"{counts.total()} failures of {len(counts)} models ({', '.join(sorted(counts))}) within "
                f"{WINDOW_MS // 60_000} min, the last of {failure.model}: {failure.reason}"
            )

    def other_files(self) -> None:
        """Model files have come, gone or changed: what could not be loaded before may be loaded now."""
        if any(failure.is_refusal for failure in self._failures):
            self._reason, self._failures = "", [f for f in self._failures if not f.is_refusal]

    def settled(self, model: str) -> None:
        """An instance of this model has been READY for `SETTLED_S`."""
        self._failures = [failure for failure in self._failures if failure.model != model]

    def resume(self, before_ms: int) -> None:
        """An operator ended quarantines that began before this moment, and forgave the failures until then."""
        self._failures = [failure for failure in self._failures if failure.at_ms >= before_ms]
        if self._reason and self._began_ms < before_ms:
            self._reason = ""

    def reason(self, now_ms: int) -> str:
        """Why nothing is loaded here now; empty: it is."""
        if self._reason and now_ms >= self._began_ms + LASTS_MS:
            self._reason, self._failures = "", []
        return self._reason
