"""What an engine counts of its steps: how many sequences shared each, and how full the cache is."""

from __future__ import annotations

from collections.abc import Iterable

from packtrain.workers.engine.sequence import Sequence

#: Steps are counted by sequences: 1, up to 2, up to 4, ... up to 256, more.
NUM_SIZES = 10


class StepMeter:
    """Written by the engine's thread alone; each figure may be read from any thread and is right by itself."""

    def __init__(self) -> None:
        self._sizes = [0] * NUM_SIZES
        self.batched = 0  # sequences of all steps
        self.kv_tokens = 0

    def step(self, num_sequences: int) -> None:
        """A step was computed."""
        self._sizes[min((num_sequences - 1).bit_length(), NUM_SIZES - 1)] += 1
        self.batched += num_sequences

    def look_at(self, live: Iterable[Sequence]) -> None:
        """How much of the cache the sequences in slots take."""
        self.kv_tokens = sum(sequence.num_cached for sequence in live)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Steps by their size."""
        return tuple(self._sizes)
