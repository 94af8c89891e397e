"""Quarantine: a node on which different models keep failing is at fault itself, and gets nothing new for a while.

A full disk, a broken driver, memory that another program takes: each fails whatever is loaded. A model that is broken
fails wherever it is loaded, and says nothing of the node. So failures count by model, at most two of each:

    3 models failed, or 2 models failed twice, within 10 min    → quarantine

and a model that has been READY for a minute has shown that it runs here: its failures are forgotten. What is loaded
goes on serving. The quarantine ends by `packtrain nodes resume`, or after half an hour, to try again; then all that
was counted is forgotten.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

WINDOW_MS = 10 * 60 * 1000
LASTS_MS = 30 * 60 * 1000
#: READY for so long, an instance has shown that its model runs here.
SETTLED_S = 60.0
#: Enough different models, or enough failures of different models when each counts `PER_MODEL` times at most.
MODELS, FAILURES, PER_MODEL = 3, 4, 2


@dataclass(frozen=True, slots=True)
class Failure:
    """An instance that failed to load, or died."""

    at_ms: int
    model: str
    reason: str


class Quarantine:
    """Of one node. Times are milliseconds of the broker's clock.

    >>> quarantine = Quarantine()
    >>> for at, model in enumerate(["a", "b", "c"]):
    ...     quarantine.failed(Failure(at, model, "was killed by SIGBUS"))
    >>> quarantine.reason(now_ms=3)
    '3 failures of 3 models (a, b, c) within 10 min, the last of c: was killed by SIGBUS'
    """

    def __init__(self) -> None:
        self._failures: list[Failure] = []
        self._began_ms = 0
        self._reason = ""

    def failed(self, failure: Failure) -> None:
        """An instance failed."""
        self._failures = [f for f in self._failures if f.at_ms > failure.at_ms - WINDOW_MS] + [failure]
        counts = Counter(f.model for f in self._failures)
        if not self._reason and (
            len(counts) >= MODELS or sum(min(count, PER_MODEL) for count in counts.values()) >= FAILURES
        ):
            self._began_ms = failure.at_ms
            self._reason = (
                f"{counts.total()} failures of {len(counts)} models ({', '.join(sorted(counts))}) within "
                f"{WINDOW_MS // 60_000} min, the last of {failure.model}: {failure.reason}"
            )

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
