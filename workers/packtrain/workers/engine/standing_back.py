"""Standing back: bulk sequences leave a step to an interactive prompt, and break theirs off for it.

A step takes as long as its rows: with 15 bulk sequences that decode, the step of a short prompt takes half as long
again on two cores. So they are left out of it, and the prompt is computed as on an instance that has nothing else to
do. At most every second step, however many prompts come: bulk work gets on at half its pace at least.

A step of bulk sequences alone, 60 ms with 16 of them and seconds with long prompts, is broken off when an interactive
request comes, and computed again later. Not twice without one between that was whole.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from packtrain.workers.engine.sequence import Sequence


class StandingBack:
    """Who takes part in a step, and whether it may be broken off. Belongs to the engine's thread.

    Args:
        can_break_off: Whether sequences lose no more than the step that is broken off.
    """

    def __init__(self, *, can_break_off: bool) -> None:
        self._can_break_off = can_break_off
        self._stood_back = False  # in the last step
        self._broke_off = False  # the last step of bulk sequences alone

    def next(self, live: Seq[Sequence]) -> list[Sequence]:
        """The sequences of the next step.

        Args:
            live: Sequences that may be computed.
        """
        hurried = any(not s.request.is_bulk and s.num_cached < s.num_prompt for s in live)
        self._stood_back = hurried and not self._stood_back and any(s.request.is_bulk for s in live)
        return [s for s in live if not s.request.is_bulk] if self._stood_back else list(live)

    def gives_way(self, step: Seq[Sequence]) -> bool:
        """Whether a step of these is to be broken off for an interactive request that comes."""
        return self._can_break_off and not self._broke_off and all(s.request.is_bulk for s in step)

    def computed(self, step: Seq[Sequence], *, whole: bool) -> None:
        """A step of these was computed, or broken off."""
        if all(s.request.is_bulk for s in step):
            self._broke_off = not whole
