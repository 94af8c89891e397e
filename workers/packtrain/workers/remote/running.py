"""A job that a remote server answers: what is asked for, and what of its answer has come and been passed on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from packtrain.broker.ids import JobId
from packtrain.workers.chat.deltas import Delta
from packtrain.workers.engine.sequence import End, Ended, Tokens
from packtrain.workers.remote.answers import Answer, Piece
from packtrain.workers.remote.requests import RemoteRequest


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """What the engine needs to have a job answered. Callbacks are called from its thread and must not block."""

    job_id: JobId
    request: RemoteRequest
    trail: tuple[str, ...]  # fleets that it has come through, this one last
    streams: bool  # somebody reads the answer as it comes
    on_tokens: Callable[[Tokens], None]
    on_end: Callable[[Ended], None]
    deadline: float | None = None  # on the engine's clock, seconds


@dataclass(slots=True, eq=False)
class Running:
    job: RemoteJob
    task: asyncio.Task[None] | None = None
    end: End = End.RELEASED  # what it ends with when it is left
    has_begun: bool = False
    is_left: bool = False
    num_pieces: int = 0
    kept: list[Piece] = field(default_factory=list)  # of a job that nobody reads as it comes
    answer: Answer | None = None

    def leave(self) -> None:
        """Let it end soon. A task that is cancelled before its first step would never say that it has."""
        self.is_left = True
        if self.task and self.has_begun:
            self.task.cancel()

    def give(self, piece: Piece) -> None:
        """Pass on what has come."""
        self.num_pieces += 1
        if self.job.streams:
            self._pass_on(piece, self.num_pieces - 1)
        else:
            self.kept.append(piece)

    def flush(self) -> None:
        """Pass on what was kept."""
        kept, self.kept = self.kept, []
        if kept:
            delta = Delta()
            for piece in kept:
                delta = delta + piece.delta
            self._pass_on(Piece(delta, tuple(entry for piece in kept for entry in piece.logprobs)), 0)

    def _pass_on(self, piece: Piece, index: int) -> None:
        self.job.on_tokens(Tokens(index, "", (), piece.logprobs, piece.delta))
