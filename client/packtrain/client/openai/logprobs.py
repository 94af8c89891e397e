"""Log probabilities in the two shapes of OpenAI's API: of chats, and of plain completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packtrain.broker.pieces import Logprob, Piece, PromptLogprob, TokenLogprob


def chat_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`{"content": [{token, logprob, bytes, top_logprobs}, ...]}`."""
    content = [{**_one(entry), "top_logprobs": [_one(other) for other in entry.top]} for entry in entries]
    return {"content": content, "refusal": None}


def completion_logprobs(entries: Sequence[TokenLogprob | PromptLogprob], offset: int = 0) -> dict[str, Any]:
    """Four lists, an entry each token. The first token of a prompt follows nothing, so it has none.

    Args:
        offset: Characters of the text before them.
    """
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += width(entry)
    return {
        "tokens": [entry.text for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [
            None if entry.logprob is None else {other.text: other.logprob for other in entry.top} for entry in entries
        ],
        "text_offset": offsets,
    }


def width(entry: Piece) -> int:
    """Characters that begin in a token: a character that is split between tokens counts where its first byte is."""
    return sum(byte & 0xC0 != 0x80 for byte in entry.data)


def _one(entry: Logprob) -> dict[str, Any]:
    return {"token": entry.text, "logprob": entry.logprob, "bytes": list(entry.data)}
