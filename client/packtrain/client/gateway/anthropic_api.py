"""Anthropic's endpoints: messages, and their tokens counted, with and without `/v1`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from packtrain.client.dialects.anthropic import form
from packtrain.client.dialects.anthropic.bodies import CountBody, MessagesBody
from packtrain.client.dialects.anthropic.calls import parse_count, parse_messages
from packtrain.client.gateway.asking import asked
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import shape_failures
from packtrain.client.gateway.schema import takes
from packtrain.client.gateway.serving import OnlyBody, Writer, serve
from packtrain.client.gateway.typed_events import TypedWriter
from packtrain.client.openai import Call, Stamp
from packtrain.client.result import Result

_MESSAGES, _COUNT = "/messages", "/messages/count_tokens"


def add_anthropic(app: FastAPI, door: Door) -> None:
    """Serve Anthropic's Messages API."""
    router = APIRouter(tags=["Anthropic"])

    @router.post(_MESSAGES, summary="Answer a chat, as Anthropic's API does", openapi_extra=takes(MessagesBody))
    async def messages(request: Request) -> Response:
        caller, call = await asked(door, request, parse_messages)
        return await serve(door, request, caller, call, _Messages(call))

    @router.post(_COUNT, summary="Count the tokens of a chat", openapi_extra=takes(CountBody))
    async def count_tokens(request: Request) -> Response:
        caller, call = await asked(door, request, parse_count)
        return await serve(door, request, caller, call, OnlyBody(_count))

    app.include_router(router, prefix="/v1")
    app.include_router(router, include_in_schema=False)
    shape_failures(app, [prefix + path for prefix in ("", "/v1") for path in (_MESSAGES, _COUNT)], form.error)


class _Messages:
    def __init__(self, call: Call) -> None:
        self._max_tokens = call.specs[0].params.max_tokens

    def body(self, stamp: Stamp, results: Sequence[Result]) -> dict[str, Any]:
        return form.message(stamp, results[0], self._max_tokens)

    def writer(self, stamp: Stamp) -> Writer:
        return TypedWriter(form.MessageStream(stamp, self._max_tokens))


def _count(_: Stamp, results: Sequence[Result]) -> dict[str, Any]:
    return {"input_tokens": results[0].usage.prompt_tokens}
