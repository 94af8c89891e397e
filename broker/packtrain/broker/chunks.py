"""Chunks: what an instance writes into the stream of a job, and the events that readers get of it.

A stream entry is a small hash: i (index of its first token), t (text), k (token ids); and where there are any r
(reasoning), c (pieces of tool calls, JSON), l (logprobs, JSON). The last entry has only `end`. The stream is what a job
goes on from after its instance died, so whatever the outcome shall hold of each token has to stand here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packtrain.broker.chat import CallDelta
from packtrain.broker.ids import JobId
from packtrain.broker.pieces import Logprob, Piece, TokenLogprob, piece_fields
from packtrain.broker.states import JobState


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens for the stream of a job. Text may lag behind tokens: held back for stop strings and split characters."""

    index: int  # of its first token in the answer
    text: str
    tokens: tuple[int, ...]
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # one for each token, where the job asks for them
    num_pieces: int = 0  # that it is made of, where the answer comes from a server that names no token ids

    @property
    def next_index(self) -> int:
        """Index of what follows it."""
        return self.index + (len(self.tokens) or self.num_pieces)


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a job's stream: tokens, or the end."""

    job_id: JobId
    id: str  # Redis stream id: give it back to resume after it
    text: str = ""
    index: int = 0
    tokens: tuple[int, ...] = ()
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    end: JobState | None = None


def to_entry(chunk: Chunk) -> tuple[int, str, str, str, str, str]:
    """A chunk as scripts take it: i, t, k, r, c, l; the last three are '' where it has none."""
    calls = json.dumps([(c.index, c.arguments, c.id, c.name) for c in chunk.calls]) if chunk.calls else ""
    tokens = ",".join(map(str, chunk.tokens))
    return chunk.index, chunk.text, tokens, chunk.reasoning, calls, _write_logprobs(chunk.logprobs)


def parse_event(job_id: JobId, entry_id: str, fields: Mapping[str, str]) -> Event:
    """A stream entry as an `Event`."""
    if "end" in fields:
        return Event(job_id, entry_id, end=JobState(fields["end"]))
    tokens = tuple(int(token) for token in fields["k"].split(",")) if fields["k"] else ()
    calls = tuple(CallDelta(*piece) for piece in json.loads(fields["c"])) if "c" in fields else ()
    logprobs = _read_logprobs(fields["l"]) if "l" in fields else ()
    return Event(job_id, entry_id, fields["t"], int(fields["i"]), tokens, fields.get("r", ""), calls, logprobs)


def _write_logprobs(logprobs: tuple[TokenLogprob, ...]) -> str:
    """[[token, text, logprob, and the same of each of the likeliest], ...]: 36 bytes a token, 706 with 20 of them.

    Where the bytes are no UTF-8, [their hex digits] stand for the text.
    """
    if not logprobs:
        return ""
    rows = [
        [part for one in (entry, *entry.top) for part in (one.token, _said(one), one.logprob)] for entry in logprobs
    ]
    return json.dumps(rows, separators=(",", ":"))


def _read_logprobs(text: str) -> tuple[TokenLogprob, ...]:
    found = []
    for row in json.loads(text):
        (token, piece, logprob), *top = zip(row[::3], row[1::3], row[2::3], strict=True)
        likeliest = tuple(Logprob(**_read_piece(t, p), logprob=lp) for t, p, lp in top)
        found.append(TokenLogprob(**_read_piece(token, piece), logprob=logprob, top=likeliest))
    return tuple(found)


def _said(piece: Piece) -> str | list[str]:
    return piece.text if piece.raw is None else [piece.raw]


def _read_piece(token: int, said: str | list[str]) -> dict[str, Any]:
    return {"token": token, "text": said} if isinstance(said, str) else piece_fields(token, bytes.fromhex(said[0]))
