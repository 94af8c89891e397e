"""Tokens of texts that may be too long, without spending minutes to find that out.

SentencePiece's vocabularies take time with the square of a run of characters that they do not know: 0.27 s for 64 KiB
of one letter with a vocabulary of bytes, 1.2 s for 128, and so some twenty minutes for the 4 MiB that a prompt may
have. So a text of that kind is first looked at in pieces, whose time is linear. Where they have more than twice the
tokens that fit, it is refused; else the whole has not many more tokens than that, and takes as long as its slot is
large.

A text that is only counted may have any length. A long one is counted in pieces, which can be off by a token at each
border.
"""

from __future__ import annotations

from packtrain.broker.errors import PromptTooLong
from packtrain.workers.backends.base import Backend

#: Characters of a text that is never looked at in pieces.
SHORT = 64 * 1024
PIECE = 16 * 1024


def tokens_of(
    text: str,
    backend: Backend,
    *,
    model: str,
    limit: int | None,
    add_special: bool = True,
    parse_special: bool = False,
    embeds: bool = False,
) -> list[int]:
    """As `Backend.tokenize` gives them.

    Args:
        limit: Most tokens that are of use; None: the text is only counted.
        embeds: For the message.

    Raises:
        PromptTooLong: It has more than twice as many. Fewer, but too many, are whoever asks to refuse.
    """
    if len(text) <= SHORT or (limit is not None and len(text) <= 2 * limit):
        return backend.tokenize(text, add_special=add_special, parse_special=parse_special)
    pieces: list[int] = []
    for begin in range(0, len(text), PIECE):
        piece, is_first = text[begin : begin + PIECE], begin == 0
        pieces += backend.tokenize(piece, add_special=add_special and is_first, parse_special=parse_special)
        if limit is not None and len(pieces) > 2 * limit:
            about = len(pieces) * len(text) // min(begin + PIECE, len(text))
            raise PromptTooLong(model=model, num_tokens=about, limit=limit, embeds=embeds, is_rough=True)
    if limit is None:
        return pieces
    return backend.tokenize(text, add_special=add_special, parse_special=parse_special)
