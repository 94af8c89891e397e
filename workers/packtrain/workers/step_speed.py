"""How fast this node reads weights: what a forecast for a model that never ran here is made from. Pure.

A step reads all weights once, whatever it computes, so one job alone shows the pace: its tokens a second times the
bytes that a step reads. Only times in which each step made one token count; a pause in them makes a time slower and
never faster, so the fastest is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Times of this length are looked at, seconds, if they have so many tokens.
SPAN_S, MIN_TOKENS = 2.0, 8


@dataclass(frozen=True, slots=True)
class _Seen:
    at_s: float
    steps: int
    tokens: int


class StepSpeed:
    """Of one node."""

    def __init__(self) -> None:
        self.bytes_per_s = 0.0
        self._seen: dict[str, _Seen] = {}

    def note(self, instance: str, now_s: float, *, steps: int, tokens: int, step_bytes: int) -> None:
        """Take over what an instance has done so far.

        Args:
            step_bytes: Weights that a step of its model reads.
        """
        before = self._seen.get(instance)
        if before and now_s - before.at_s < SPAN_S:
            return
        self._seen[instance] = _Seen(now_s, steps, tokens)
        if before and tokens - before.tokens == steps - before.steps >= MIN_TOKENS:
            self.bytes_per_s = max(self.bytes_per_s, step_bytes * (tokens - before.tokens) / (now_s - before.at_s))

    def forget(self, instance: str) -> None:
        """It is gone."""
        self._seen.pop(instance, None)
