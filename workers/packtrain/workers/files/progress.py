"""Progress of a fetch: its rate, whether it stands still, and how it is told. Pure; time comes in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

#: The rate is that of the last so many seconds.
WINDOW_S = 5.0
MIB = 1024 * 1024


@dataclass(slots=True)
class Progress:
    """What a fetch has brought, as somebody sees who looks now and then."""

    at: float  # seconds, when it began
    total: int = 0  # bytes; 0: not known yet
    done: int = 0
    _signs: int = 0
    _sign_at: float = field(init=False)
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._sign_at = self.at
        self._seen.append((self.at, 0))

    def note(self, done: int, total: int, signs: int, now: float) -> None:
        """What there is now.

        Args:
            done: Bytes that are here.
            signs: A number that grows whenever the source shows life: with bytes, or while it hashes its file.
        """
        if not self.total and total:  # what an earlier fetch had brought was not brought in this time
            self._seen.clear()
            self._seen.append((now, done))
        self.done, self.total = done, total
        if signs != self._signs:
            self._signs, self._sign_at = signs, now
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Bytes per second, lately."""
        (since, before), (now, done) = self._seen[0], self._seen[-1]
        return max(0, done - before) / (now - since) if now > since else 0.0

    def forgive(self, seconds: float) -> None:
        """Take this time for none."""
        self._sign_at += seconds

    def silent_s(self, now: float) -> float:
        """Seconds without a sign of life."""
        return now - self._sign_at

    def said(self, source: str, trouble: str) -> str:
        """For people.

        >>> progress = Progress(at=0, total=98 * MIB, done=0)
        >>> progress.note(44 * MIB, 98 * MIB, signs=1, now=2)
        >>> progress.said("n1", "")
        'fetching 45 % of 98 MiB from n1, 22 MiB/s'
        """
        share = f" {self.done / self.total:.0%}".replace("%", " %") if self.total else ""
        size = f" of {mib(self.total)}" if self.total else " its file"
        tail = trouble or (f"{mib(self.rate)}/s" if self.total else "")
        return f"fetching{share}{size} from {source}" + (f", {tail}" if tail else "")


def mib(num_bytes: float) -> str:
    """Bytes for people.

    >>> mib(300_000), mib(98 * MIB), mib(20_480 * MIB)
    ('0.3 MiB', '98 MiB', '20.0 GiB')
    """
    size = num_bytes / MIB
    if size >= 10 * 1024:
        return f"{size / 1024:.1f} GiB"
    return f"{size:.0f} MiB" if size >= 10 or not size else f"{size:.1f} MiB"
