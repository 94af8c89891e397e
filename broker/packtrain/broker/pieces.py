"""Tokens in words: the text or bytes of each, and what the model thought of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from packtrain.broker.fields import Report

#: Tokens that one `count` job lists: some 4 MB in its record, and five seconds for the slowest vocabularies.
MAX_LISTED_TOKENS = 131_072
#: Logprobs of one prompt, the likeliest beside each token included: some 4 MB in the job's record.
MAX_PROMPT_LOGPROBS = 65_536


class Piece(Report):
    """A token and what it stands for. A character may be split between tokens, so the pieces of a text are bytes."""

    token: int
    text: str = Field("", description="with U+FFFD in it where the bytes are no UTF-8")
    raw: str | None = Field(
        None, exclude_if=lambda raw: raw is None, description="the bytes, as hex digits, where they are no UTF-8"
    )

    @property
    def data(self) -> bytes:
        """The bytes. Those of neighbours make up the text."""
        return self.text.encode() if self.raw is None else bytes.fromhex(self.raw)


def piece_fields(token: int, data: bytes) -> dict[str, Any]:
    """The fields of a `Piece` of these bytes."""
    try:
        return {"token": token, "text": data.decode()}
    except UnicodeDecodeError:
        return {"token": token, "text": data.decode("utf-8", "replace"), "raw": data.hex()}


def text_of(pieces: Iterable[Piece]) -> str:
    """The text that pieces make up; U+FFFD for what is no UTF-8 even together."""
    return b"".join(piece.data for piece in pieces).decode("utf-8", "replace")


class Logprob(Piece):
    """What the model thought of a token: a natural logarithm, before temperature and all other samplers."""

    logprob: float


class TokenLogprob(Logprob):
    """The same of an output token, with the likeliest ones beside it."""

    top: tuple[Logprob, ...] = Field((), description="likeliest first")


class PromptLogprob(Piece):
    """The same of a prompt token, given those before it."""

    logprob: float | None = Field(None, description="null: the first one, which follows nothing")
    top: tuple[Logprob, ...] = Field((), description="likeliest first")
