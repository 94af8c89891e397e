"""OpenAI's files: what batches read and write."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Query
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from packtrain.broker.errors import InvalidParameter
from packtrain.client.gateway.access import Caller
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import Refused, json_response
from packtrain.client.gateway.files_store import FileStore, Order, StoredFile, file_object
from packtrain.client.gateway.files_upload import receive
from packtrain.client.openai.faults import Fault

#: Left free on the disk of uploads.
SPARE_BYTES: Final = 1024 * 1024 * 1024
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                    },
                }
            }
        },
    }
}


def add_files(app: FastAPI, door: Door, folder: Path) -> None:
    """Serve files in a folder."""
    store = FileStore(folder)
    router = APIRouter(tags=["OpenAI"])

    @router.post("/files", summary="Upload a file for a batch", openapi_extra=_UPLOAD)
    async def upload(request: Request) -> Response:
        caller = await door.access.caller(request)
        _check_room(folder)
        draft = await to_thread.run_sync(store.draft)
        try:
            name, fields = await receive(request, draft / "content", max_bytes=door.settings.max_file)
            if (purpose := fields.get("purpose")) != "batch":
                raise InvalidParameter(
                    f"purpose = {purpose!r}: files are kept for batches here; send batch", field="purpose"
                )
            add = partial(store.add, draft, name, caller.key_id, purpose=purpose, now=int(door.now()))
            return json_response(file_object(await to_thread.run_sync(add)))
        finally:
            await to_thread.run_sync(partial(shutil.rmtree, draft, ignore_errors=True))

    @router.get("/files", summary="Files, the newest first")
    async def files(
        request: Request,
        after: Annotated[str | None, Query(description="id of the last file of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Order = "desc",
        purpose: Annotated[str | None, Query(description="only files for this")] = None,
    ) -> Response:
        caller = await door.access.caller(request)

        def is_wanted(file: StoredFile) -> bool:
            return (caller.is_admin or file.owner == caller.key_id) and purpose in (None, file.purpose)

        look = partial(store.page, StoredFile, is_wanted, after=after, limit=limit, order=order)
        found, has_more = await to_thread.run_sync(look)
        return json_response(page([file_object(file) for file in found], has_more=has_more))

    @router.get("/files/{file_id}", summary="One file")
    async def file(request: Request, file_id: str) -> Response:
        return json_response(file_object(await _get(store, file_id, await door.access.caller(request))))

    @router.get("/files/{file_id}/content", summary="What is in a file")
    async def content(request: Request, file_id: str) -> Response:
        found = await _get(store, file_id, await door.access.caller(request))
        return FileResponse(store.content(found.id), media_type="application/octet-stream", filename=found.filename)

    @router.delete("/files/{file_id}", summary="Remove a file")
    async def delete(request: Request, file_id: str) -> Response:
        found = await _get(store, file_id, await door.access.caller(request))
        await to_thread.run_sync(store.remove, found.id)
        return json_response({"id": found.id, "object": "file", "deleted": True})

    app.include_router(router, prefix="/v1")
    app.include_router(router, include_in_schema=False)


def page(objects: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A page of a list, as OpenAI's API has it."""
    ids = [each["id"] for each in objects]
    ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return {"object": "list", "data": objects, **ends, "has_more": has_more}


def no_file(file_id: str, param: str = "file_id") -> Refused:
    """There is no such file, or it is somebody else's, which must not make a difference."""
    message = f"there is no file {file_id[:80]!r}; GET /v1/files lists them"
    return Refused(Fault(404, "invalid_request_error", "file_not_found", message, param))


async def _get(store: FileStore, file_id: str, caller: Caller) -> StoredFile:
    if found := await to_thread.run_sync(store.get, file_id, caller):
        return found
    raise no_file(file_id)


def _check_room(folder: Path) -> None:
    if shutil.disk_usage(folder).free < SPARE_BYTES:
        message = "the disk for uploads is nearly full; delete files, or have the operator make room"
        raise Refused(Fault(503, "server_error", "insufficient_storage", message, should_retry=False))
