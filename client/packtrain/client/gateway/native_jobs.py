"""Jobs over HTTP: submit, look, wait, cancel, explain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from packtrain.broker.errors import InvalidParameter, UnknownJob, UnknownModel
from packtrain.broker.ids import JobId, job_id_for_key, new_job_id
from packtrain.broker.job_spec import JobSpec, parse_spec
from packtrain.broker.jobs import Submitted
from packtrain.client.gateway.access import Admission, Caller
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import Refused
from packtrain.client.gateway.names import names_of, no_other_names
from packtrain.client.gateway.native_form import as_json, read_body, written
from packtrain.client.gateway.native_owners import Owners, sees
from packtrain.client.gateway.native_tally import Tally
from packtrain.client.gateway.schema import takes
from packtrain.client.gateway.streams import Gone, unless_gone
from packtrain.client.native_wire import SUBMITTED, Cancelled, Found, Jobs, Lookup, Submission, is_job_id
from packtrain.client.openai import Fault

B = TypeVar("B", bound=BaseModel)

#: Newest jobs among which those of one user are looked for.
LOOK_BACK = 1000


def add_jobs(router: APIRouter, door: Door, owners: Owners) -> None:
    """Serve jobs."""
    transport = door.fleet.transport.blocking
    tally = Tally(transport)

    async def owned(request: Request, job_id: str) -> JobId:
        caller = await door.access.caller(request)
        if not is_job_id(job_id):
            raise UnknownJob(job_id=job_id)
        await owners.check(caller, [JobId(job_id)])
        return JobId(job_id)

    async def hand_in(caller: Caller, job_id: JobId, spec: JobSpec) -> Submitted:
        if caller.key_id is None:
            return await asyncio.to_thread(transport.submit, job_id, spec)
        await tally.settle(caller.key_id)
        try:
            admission = await door.access.admit(caller, [spec])
        except Refused:
            if await asyncio.to_thread(transport.status, job_id) is None:
                raise
            admission = Admission()  # a job that is there already, sent again, takes no more than it has
        try:
            with no_other_names(caller):
                submitted = await asyncio.to_thread(transport.submit, job_id, spec)
        except BaseException:
            await admission.end(0)
            raise
        if not submitted.is_new:  # it has been counted when it came first
            await admission.end(0)
        elif admission.counts:
            tally.add(job_id, caller.key_id, admission)
        return submitted

    @router.post("/jobs", summary="Submit a job", openapi_extra=takes(Submission))
    async def submit(request: Request) -> Response:
        caller = await door.access.caller(request)
        body = await read_body(request, door, Submission)
        spec = permitted(parse_spec(body.spec), caller)
        job_id = job_id_of(body, spec, caller)
        return as_json(SUBMITTED.dump_json(await hand_in(caller, job_id, spec)))

    @router.get("/jobs", summary="The newest jobs")
    async def newest(request: Request, limit: Annotated[int, Query(ge=1, le=10_000)] = 20) -> Response:
        caller = await door.access.caller(request)
        found = await asyncio.to_thread(transport.recent, limit if caller.is_admin else LOOK_BACK)
        return written(Jobs(jobs=[status for status in found if sees(caller, status.user)][:limit]))

    @router.post("/jobs/lookup", summary="Records of many jobs", openapi_extra=takes(Lookup))
    async def lookup(request: Request) -> Response:
        caller = await door.access.caller(request)
        body = await read_body(request, door, Lookup)
        found = await asyncio.to_thread(transport.statuses, [JobId(job_id) for job_id in body.ids])
        shown = {job_id: status if status and sees(caller, status.user) else None for job_id, status in found.items()}
        return written(Found(jobs=shown))

    @router.get("/jobs/{job_id}", summary="A job's record")
    async def status(request: Request, job_id: str) -> Response:
        return written(await _existing(transport.status, await owned(request, job_id)))

    @router.get("/jobs/{job_id}/spec", summary="What a job asked for")
    async def spec(request: Request, job_id: str) -> Response:
        return written(await _existing(transport.spec, await owned(request, job_id)))

    @router.get("/jobs/{job_id}/result", summary="Wait for the outcome of a job")
    async def result(request: Request, job_id: str, wait_s: Annotated[float, Query(ge=0, le=3600)] = 60) -> Response:
        job = door.fleet.job(await owned(request, job_id))
        try:
            await unless_gone(request.receive, job.result(wait_s))
        except Gone:
            raise Refused(Fault(499, "invalid_request_error", "client_gone", "the client has left")) from None
        outcome = (await job.status()).outcome
        assert outcome, "it has a result"
        return written(outcome)

    @router.post("/jobs/{job_id}/cancel", summary="Cancel a job")
    async def cancel(
        request: Request,
        job_id: str,
        forget: Annotated[bool, Query(description="leave nothing of one that has not begun")] = False,
    ) -> Response:
        state = await door.fleet.job(await owned(request, job_id)).cancel(forget=forget)
        return written(Cancelled(id=job_id, state=state))

    @router.get("/jobs/{job_id}/explanation", summary="Why a job is where it is")
    async def explain(request: Request, job_id: str) -> Response:
        names = await names_of(door, await door.access.caller(request))
        return written(names.explanation(await _existing(transport.explain, await owned(request, job_id))))


def permitted(spec: JobSpec, caller: Caller) -> JobSpec:
    """A request as this caller may make it: for the user of their key.

    Raises:
        UnknownModel: The model is none for them.
    """
    if not caller.may_use(spec.model):
        raise UnknownModel(model=spec.model, known=sorted(caller.models or ()))
    return spec if caller.user is None else spec.model_copy(update={"user": caller.user})


def job_id_of(body: Submission, spec: JobSpec, caller: Caller) -> JobId:
    """The id of a new job. Two users who think of the same id or key get two jobs.

    Who has an API key chooses no id, only what one is made from: ids follow from users' idempotency keys, so else one
    could be taken that a key of another user will name.

    Args:
        spec: As it is permitted.

    Raises:
        InvalidParameter: Both are given.
    """
    if body.id and body.idempotency_key:
        raise InvalidParameter("id and idempotency_key both name the job; give one of them", field="idempotency_key")
    if body.idempotency_key:
        return job_id_for_key(spec.user, body.idempotency_key)
    if body.id is None:
        return new_job_id()
    return JobId(body.id) if caller.user is None else job_id_for_key(spec.user, body.id)


async def _existing(look: Callable[[JobId], B | None], job_id: JobId) -> B:
    found = await asyncio.to_thread(partial(look, job_id))
    if found is None:
        raise UnknownJob(job_id=job_id)
    return found
