"""Counting jobs that outlive the request that brought them, for keys whose use is limited.

A request for an answer is over when its answer is. A job that is handed in by itself is over when it has ended, whoever
reads it, so the gateway looks at its record: before the next job of that key, which may be waiting for just this, and
every few seconds. If the gateway dies, what it counted lapses.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from packtrain.broker.errors import PacktrainError
from packtrain.broker.ids import JobId
from packtrain.broker.outcome import JobStatus
from packtrain.client.gateway.access import Admission
from packtrain.client.transport import Transport

LOOK_S = 2.0


class Tally:
    """Jobs under way that count, of one gateway."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._under_way: dict[JobId, tuple[str, Admission]] = {}
        self._looker: asyncio.Task[None] | None = None

    def add(self, job_id: JobId, key_id: str, admission: Admission) -> None:
        """A job of this key has been handed in."""
        self._under_way[job_id] = (key_id, admission)
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look())

    async def settle(self, key_id: str | None = None) -> None:
        """Count no more what has ended of this key's jobs; None: of all.

        Raises:
            BrokerUnavailable
        """
        mine = [job_id for job_id, (of, _) in self._under_way.items() if key_id in (None, of)]
        if not mine:
            return
        found = await asyncio.to_thread(self._transport.statuses, mine)
        for job_id, status in found.items():
            if (status is None or status.state.is_terminal) and job_id in self._under_way:
                _, admission = self._under_way.pop(job_id)
                await admission.end(tokens_of(status))

    async def _look(self) -> None:
        while self._under_way:
            await asyncio.sleep(LOOK_S)
            with suppress(PacktrainError):  # the next look sees as much
                await self.settle()


def tokens_of(status: JobStatus | None) -> int | None:
    """What an ended job has cost; None: not known."""
    if status is None or status.outcome is None:
        return None
    return status.outcome.usage.prompt_tokens + status.outcome.usage.completion_tokens
