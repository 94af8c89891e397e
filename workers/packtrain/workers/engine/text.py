"""From token pieces to text a reader may see: whole characters only, and nothing of a stop string.

A token may end inside a character, and a stop string may begin in one piece and end in another. So the stream holds
back the bytes of an unfinished character and the longest tail that could still become a stop string:

    [0, shown)      given out, never taken back
    [shown, end)    held back: a stop string may begin here
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable


class TextStream:
    """The text of one sequence. Feeding the same pieces again gives the same text, which is how a resume rebuilds it.

    Args:
        stop: Strings that end the text and are not part of it.
    """

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped_by = ""  # the stop string that has come; empty: none

    @property
    def is_stopped(self) -> bool:
        """True when a stop string has ended the text."""
        return bool(self.stopped_by)

    def push(self, piece: bytes) -> str:
        """Add the bytes of one token; the text that may now be shown. Nothing comes after a stop string."""
        return self._show(self._decoder.decode(piece))

    def flush(self) -> str:
        """No more tokens: the rest of the text. An unfinished character becomes U+FFFD."""
        shown = self._show(self._decoder.decode(b"", final=True))
        if not self.is_stopped:
            shown += self._held
        self._held = ""
        return shown

    def _show(self, text: str) -> str:
        if self.is_stopped:
            return ""
        self._held += text
        # The stop string that is complete first wins, the longest of those: so the cut into pieces changes nothing.
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            _, end, self.stopped_by = min(found)
        else:
            end = len(self._held) - self._tail_that_may_stop()
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def _tail_that_may_stop(self) -> int:
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if stop.startswith(self._held[-size:]):
                    longest = size
                    break
        return longest
