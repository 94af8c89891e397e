"""OpenAI's Responses, with and without `/v1`. Nothing is kept: a conversation comes whole with each request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from packtrain.client.dialects.responses import form
from packtrain.client.dialects.responses.bodies import ResponsesBody
from packtrain.client.dialects.responses.calls import Asked, parse_responses
from packtrain.client.gateway.asking import asked
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.schema import takes
from packtrain.client.gateway.serving import Writer, serve
from packtrain.client.gateway.typed_events import TypedWriter
from packtrain.client.openai import Stamp
from packtrain.client.result import Result


def add_responses(app: FastAPI, door: Door) -> None:
    """Serve OpenAI's Responses API."""
    router = APIRouter(tags=["OpenAI"])

    @router.post("/responses", summary="Answer as a response with items", openapi_extra=takes(ResponsesBody))
    async def responses(request: Request) -> Response:
        caller, what = await asked(door, request, parse_responses)
        return await serve(door, request, caller, what.call, _Responses(what))

    app.include_router(router, prefix="/v1")
    app.include_router(router, include_in_schema=False)


class _Responses:
    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def body(self, stamp: Stamp, results: Sequence[Result]) -> dict[str, Any]:
        return form.response(self._asked, stamp, results[0])

    def writer(self, stamp: Stamp) -> Writer:
        return TypedWriter(form.ResponseStream(self._asked, stamp))
