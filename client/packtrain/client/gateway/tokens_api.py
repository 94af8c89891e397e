"""Tokens of texts and texts of tokens, at the paths of llama-server and vLLM, with and without `/v1`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from packtrain.client.dialects.tokens import (
    DetokenizeBody,
    TokenizeBody,
    detokenize_call,
    joined,
    listed,
    tokenize_call,
)
from packtrain.client.gateway.access import Caller
from packtrain.client.gateway.asking import heard, understood
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import json_response
from packtrain.client.gateway.schema import takes
from packtrain.client.gateway.serving import OnlyBody, serve
from packtrain.client.openai.calls import checked


def add_tokens(app: FastAPI, door: Door) -> None:
    """Serve them."""
    router = APIRouter(tags=["Tokens"])

    @router.post("/tokenize", summary="The tokens of a text or a chat", openapi_extra=takes(TokenizeBody))
    async def tokenize(request: Request) -> Response:
        caller, raw = await heard(door, request)
        body = checked(TokenizeBody, await _with_model(door, caller, raw))
        call = await understood(door, caller, lambda: tokenize_call(body, user=caller.user))
        if call is None:
            return json_response(listed(body, ()))
        return await serve(door, request, caller, call, OnlyBody(lambda _, results: listed(body, results[0].pieces)))

    @router.post("/detokenize", summary="The text of tokens", openapi_extra=takes(DetokenizeBody))
    async def detokenize(request: Request) -> Response:
        caller, raw = await heard(door, request)
        body = checked(DetokenizeBody, await _with_model(door, caller, raw))
        call = await understood(door, caller, lambda: detokenize_call(body, user=caller.user))
        if call is None:
            return json_response(joined(()))
        return await serve(door, request, caller, call, OnlyBody(lambda _, results: joined(results[0].pieces)))

    app.include_router(router, prefix="/v1")
    app.include_router(router, include_in_schema=False)


async def _with_model(door: Door, caller: Caller, raw: dict[str, Any]) -> dict[str, Any]:
    """A request with its model: llama-server has but one, so its clients name none; where there is one, that."""
    if raw.get("model") is not None:
        return raw
    offered = [info.id for info in await door.fleet.models() if not info.alias_of and caller.may_use(info.id)]
    return {**raw, "model": offered[0]} if len(offered) == 1 else raw
