"""Special tokens that users write into a chat stay text.

A rendered prompt is tokenised with its special tokens parsed, for the template writes them. So a user who types
`<|im_end|>` could end his own turn and speak as somebody else. Here each such text is replaced by a placeholder before
the template sees it, and comes back as a part of its own that is tokenised as plain text. Chats without one, which is
nearly all, are not touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: Around the number of a placeholder: private-use characters, masked themselves where a user writes them.
_BEGIN, _END = "\ue0f0", "\ue0f1"
_PLACEHOLDER = re.compile(f"{_BEGIN}([0-9]+){_END}")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a prompt."""

    text: str
    is_users: bool = False  # special tokens in it are plain text
    media: str = ""  # not empty: an image or sound stands here, and this is its hash


class SpecialTexts:
    """The texts of a vocabulary's special tokens. Building it takes as long as reading them; use it for all chats."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(text for text in texts if len(text) > 1) | {_BEGIN, _END}
        # A vocabulary may have thousands. They share few first characters and lengths, so each place is looked up.
        self._sizes = sorted({len(text) for text in self._texts}, reverse=True)
        self._first = re.compile("[" + re.escape("".join(sorted({text[0] for text in self._texts}))) + "]")

    def mask(self, text: str, found: list[Part]) -> str:
        """The text with a placeholder for each special token; what they stand for is added to `found`."""
        pieces, at = [], 0
        for candidate in self._first.finditer(text):
            start = candidate.start()
            if start < at:
                continue
            special = next((s for size in self._sizes if (s := text[start : start + size]) in self._texts), None)
            if special is not None:
                pieces += [text[at:start], placeholder(Part(special, is_users=True), found)]
                at = start + len(special)
        return "".join([*pieces, text[at:]]) if pieces else text


def placeholder(part: Part, found: list[Part]) -> str:
    """What stands for a part while a template runs; the part is added to `found`."""
    found.append(part)
    return f"{_BEGIN}{len(found) - 1}{_END}"


def unmask(text: str, found: list[Part]) -> tuple[Part, ...]:
    """A rendered prompt in its parts, placeholders replaced by what they stand for."""
    pieces = _PLACEHOLDER.split(text) if found else [text]
    parts = [found[int(p)] if i % 2 else Part(p) for i, p in enumerate(pieces)]
    return tuple(part for part in parts if part.text or part.media)
