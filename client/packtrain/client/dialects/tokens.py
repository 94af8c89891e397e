"""Tokens of a text, and the text of tokens, in the words of llama-server and of vLLM.

llama-server sends `content` and takes special tokens for such; vLLM sends `prompt` or `messages`, and has the model's
own tokens put around a prompt. An answer has the fields of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.pieces import Piece, text_of
from packtrain.client.dialects.translating import extras_in
from packtrain.client.openai import Call, parse_call
from packtrain.client.openai.bodies import Body, Off


class TokenizeBody(Body):
    """POST /tokenize."""

    content: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: Off = False
    return_token_strs: Off = False

    @property
    def text(self) -> str | None:
        """What is to be taken apart, as it stands."""
        return self.prompt if self.content is None else self.content

    @property
    def adds_special(self) -> bool:
        """Whether the model's own tokens are put around a text."""
        said = self.add_special_tokens if self.add_special is None else self.add_special
        return self.content is None if said is None else said


class DetokenizeBody(Body):
    """POST /detokenize."""

    tokens: list[int]


def tokenize_call(body: TokenizeBody, *, user: str | None = None) -> Call | None:
    """A job that lists tokens; None: there are none, and nobody needs to be asked.

    Raises:
        InvalidParameter, PromptEmpty, UnknownModel
    """
    if (body.text is None) == (body.messages is None):
        raise InvalidParameter(
            "give a text as content (or prompt), or the messages of a chat; one of them", field="content"
        )
    if body.text is None:
        asked = extras_in(body) | {"messages": body.messages, "tools": body.tools}
        return _listing(parse_call("/v1/chat/completions", asked, user=user))
    if not (body.text or body.adds_special):
        return None
    call = parse_call("/v1/completions", extras_in(body) | {"prompt": body.text}, user=user)
    return _listing(call, add_special=body.adds_special, parse_special=body.parse_special is not False)


def detokenize_call(body: DetokenizeBody, *, user: str | None = None) -> Call | None:
    """A job that gives the texts of tokens; None: there are none.

    Raises:
        InvalidParameter, UnknownModel
    """
    if not body.tokens:
        return None
    return _listing(parse_call("/v1/completions", extras_in(body) | {"prompt": body.tokens}, user=user))


def _listing(call: Call, **fields: bool) -> Call:
    update = {"kind": "count", "list_tokens": True, **fields}
    return replace(call, specs=tuple(spec.model_copy(update=update) for spec in call.specs))


def listed(body: TokenizeBody, pieces: Sequence[Piece]) -> dict[str, Any]:
    """The answer of /tokenize."""
    tokens = [_piece(piece) if body.with_pieces else piece.token for piece in pieces]
    texts = {"token_strs": [piece.text for piece in pieces]} if body.return_token_strs else {}
    return {"tokens": tokens, "count": len(tokens), **texts}


def joined(pieces: Sequence[Piece]) -> dict[str, Any]:
    """The answer of /detokenize."""
    text = text_of(pieces)
    return {"content": text, "prompt": text}


def _piece(piece: Piece) -> Mapping[str, Any]:
    """With its text, or with its bytes where they are no text."""
    return {"id": piece.token, "piece": piece.text if piece.raw is None else list(piece.data)}
