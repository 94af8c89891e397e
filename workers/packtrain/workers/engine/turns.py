"""Turns: which adapter set computes next. What llama.cpp adds to the weights holds for a whole step, so sequences with
other adapters wait for another one.

The sets stand in a row; the first one has its turn, with all of its sequences, and goes to the end. So with n sets each
waits for n - 1 turns, however many others come and go. Every sequence of a set that decodes gets a token in each of its
steps, so all of them advance alike, whether their set is large or small.

A set keeps its turn for some steps, because to change it llama.cpp lays out its graphs anew: 7 ms for 30 layers, where
a step of one sequence of SmolLM2 takes 17 and of eight 65. A step with prefill is long enough to end it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from packtrain.workers.adapters import AdapterSet
from packtrain.workers.engine.sequence import Sequence

#: Steps of decoding in one turn while other sets wait.
TURN_STEPS = 4


class Turns:
    """Whose turn it is. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._row: list[AdapterSet] = []  # of all sets that live, the one whose turn it is first
        self._num_steps = 0  # of this turn

    def next(self, live: Seq[Sequence]) -> list[Sequence]:
        """The sequences of the next step; all of them where they have the same adapters.

        Args:
            live: Sequences that may be computed.
        """
        sets = dict.fromkeys(s.request.adapters for s in live)
        if len(sets) <= 1:
            self._row, self._num_steps = list(sets), 0
            return list(live)
        first = self._row[0] if self._row else None
        self._row = [adapters for adapters in self._row if adapters in sets]
        self._row += [adapters for adapters in sets if adapters not in self._row]
        if self._row[0] != first:  # it has gone, so the next one's turn begins
            self._num_steps = 0
        elif self._num_steps >= TURN_STEPS:
            self._row.append(self._row.pop(0))
            self._num_steps = 0
        chosen = [s for s in live if s.request.adapters == self._row[0]]
        self._num_steps += TURN_STEPS if any(s.num_pending > 1 for s in chosen) else 1
        return chosen
