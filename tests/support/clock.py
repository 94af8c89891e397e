"""A clock that tests move by hand."""

from __future__ import annotations


class FakeClock:
    """Milliseconds since some epoch."""

    def __init__(self, now_ms: int = 1_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, milliseconds: int) -> None:
        """Let time pass."""
        self.now_ms += milliseconds
