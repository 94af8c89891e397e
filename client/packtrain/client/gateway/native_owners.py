"""Whose job is whose: a job of somebody else is answered as one that does not exist."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

from starlette.requests import Request

from packtrain.broker.errors import UnknownJob
from packtrain.broker.ids import JobId
from packtrain.broker.outcome import JobStatus
from packtrain.client.gateway.access import Caller
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import Refused
from packtrain.client.openai.faults import Fault
from packtrain.client.transport import Transport

#: A job's owner never changes, so it need not be asked for at every read of its events.
MAX_KNOWN = 20_000


def sees(caller: Caller, owner: str) -> bool:
    """True when jobs of this user are for this caller to see and to touch."""
    return caller.is_admin or caller.user == owner


def visible(caller: Caller, status: JobStatus | None, job_id: str) -> JobStatus:
    """The record, if there is one for this caller.

    Raises:
        UnknownJob
    """
    if status is None or not sees(caller, status.user):
        raise UnknownJob(job_id=job_id)
    return status


async def administrator(door: Door, request: Request) -> Caller:
    """Who calls a route that is for administrators.

    Raises:
        Refused: They are none, or may do nothing here at all.
    """
    caller = await door.access.caller(request)
    if caller.is_admin:
        return caller
    message = "this API key may not administrate the fleet; use one that may"
    raise Refused(Fault(403, "invalid_request_error", "not_permitted", message, should_retry=False))


class Owners:
    """Remembers whose jobs are whose."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._known: OrderedDict[JobId, str] = OrderedDict()

    async def check(self, caller: Caller, job_ids: Collection[JobId]) -> None:
        """Refuse a caller who may not see all of these jobs.

        Raises:
            UnknownJob: One of them is none, or is somebody else's.
        """
        if caller.is_admin:
            return
        if new := [job_id for job_id in job_ids if job_id not in self._known]:
            found: dict[JobId, Any] = await asyncio.to_thread(self._transport.statuses, new)
            self._known.update((job_id, status.user) for job_id, status in found.items() if status)
        for job_id in job_ids:
            if not sees(caller, self._known.get(job_id, "")):
                raise UnknownJob(job_id=job_id)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
