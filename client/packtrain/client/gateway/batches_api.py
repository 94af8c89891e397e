"""OpenAI's batches: orders for the process that runs them (batches_run.py), and how far they are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import Response

from packtrain.client.gateway.access import Caller
from packtrain.client.gateway.batches_store import WINDOW_S, Batch, BatchStatus, BatchStore, batch_object
from packtrain.client.gateway.body import read_json
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import Refused, json_response
from packtrain.client.gateway.files_api import no_file, page
from packtrain.client.gateway.files_store import FileStore
from packtrain.client.gateway.schema import takes
from packtrain.client.openai.calls import checked
from packtrain.client.openai.faults import Fault

#: Batches of one key that have not ended.
MAX_OPEN: Final = 100


class BatchBody(BaseModel):
    """POST /v1/batches."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    input_file_id: str = Field(description="of an uploaded file with purpose batch")
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: (
        Annotated[
            dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None


def add_batches(app: FastAPI, door: Door, folder: Path) -> None:
    """Serve batches in a folder."""
    files, batches = FileStore(folder), BatchStore(folder)
    router = APIRouter(tags=["OpenAI"])

    def shown(batch: Batch) -> dict[str, Any]:
        # In this order: a batch may end in between, and then it was not cancelled.
        asked_at = batches.cancel_asked_at(batch.id)
        return batch_object(batch, batches.progress(batch.id), asked_at)

    async def get(request: Request, batch_id: str) -> Batch:
        caller = await door.access.caller(request)
        if found := await to_thread.run_sync(batches.get, batch_id, caller):
            return found
        message = f"there is no batch {batch_id[:80]!r}; GET /v1/batches lists them"
        raise Refused(Fault(404, "invalid_request_error", "batch_not_found", message, "batch_id"))

    def create_batch(body: BatchBody, caller: Caller) -> Batch:
        source = files.get(body.input_file_id, caller)
        if source is None:
            raise no_file(body.input_file_id, "input_file_id")
        open_ones = [batches.about(each, Batch) for each in batches.unfinished()]
        if sum(each.owner == caller.key_id for each in open_ones if each) >= MAX_OPEN:
            message = f"{MAX_OPEN} batches have not ended yet; wait for one of them, or cancel it"
            raise Refused(Fault(429, "rate_limit_error", "too_many_batches", message, retry_after_s=60))
        now = int(door.now())
        batch = Batch(
            id=batches.new_id(), owner=caller.key_id, created_at=now, expires_at=now + WINDOW_S,
            endpoint=body.endpoint, input_file_id=source.id, output_file_id=files.new_id(),
            error_file_id=files.new_id(), metadata=body.metadata, user=caller.user or "",
            models=None if caller.models is None else tuple(sorted(caller.models)),
        )  # fmt: skip
        try:
            batches.create(batch, files.content(source.id))
        except FileNotFoundError:  # it was deleted a moment ago
            raise no_file(body.input_file_id, "input_file_id") from None
        return batch

    @router.post("/batches", summary="Run a file of requests", openapi_extra=takes(BatchBody))
    async def create(request: Request) -> Response:
        caller = await door.access.caller(request)
        body = await read_json(request, door, partial(checked, BatchBody))
        batch = await to_thread.run_sync(create_batch, body, caller)
        return json_response(await to_thread.run_sync(shown, batch))

    @router.get("/batches", summary="Batches, the newest first")
    async def list_batches(
        request: Request,
        after: Annotated[str | None, Query(description="id of the last batch of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:
        caller = await door.access.caller(request)

        def is_wanted(batch: Batch) -> bool:
            return caller.is_admin or batch.owner == caller.key_id

        look = partial(batches.page, Batch, is_wanted, after=after, limit=limit, order="desc")
        found, has_more = await to_thread.run_sync(look)
        objects = [await to_thread.run_sync(shown, batch) for batch in found]
        return json_response(page(objects, has_more=has_more))

    @router.get("/batches/{batch_id}", summary="How far a batch is")
    async def batch(request: Request, batch_id: str) -> Response:
        return json_response(await to_thread.run_sync(shown, await get(request, batch_id)))

    @router.post("/batches/{batch_id}/cancel", summary="End a batch; what is done of it stays")
    async def cancel(request: Request, batch_id: str) -> Response:
        found = await get(request, batch_id)
        status = (await to_thread.run_sync(batches.progress, found.id)).status
        if status.is_over or status is BatchStatus.FINALIZING:
            message = f"batch {found.id} is {status} and cannot be cancelled any more"
            raise Refused(Fault(409, "invalid_request_error", "batch_over", message, "batch_id", should_retry=False))
        await to_thread.run_sync(batches.ask_cancel, found.id, int(door.now()))
        return json_response(await to_thread.run_sync(shown, found))

    app.include_router(router, prefix="/v1")
    app.include_router(router, include_in_schema=False)
