"""OpenAI's endpoints for models, chats, completions and embeddings, with and without `/v1`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from packtrain.broker.errors import UnknownModel
from packtrain.broker.explain import Explanation
from packtrain.client.gateway.access import no_model
from packtrain.client.gateway.asking import asked
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import Refused, json_response
from packtrain.client.gateway.schema import takes
from packtrain.client.gateway.serving import Writer, serve
from packtrain.client.gateway.streams import comment, data
from packtrain.client.openai import Call, Fault, Stamp, StreamForm, parse_call
from packtrain.client.openai.bodies import ChatBody, CompletionBody, EmbeddingBody
from packtrain.client.openai.models import model_list, model_object
from packtrain.client.result import AnswerDelta, Result


def add_openai(app: FastAPI, door: Door) -> None:
    """Serve OpenAI's API."""
    router = APIRouter(tags=["OpenAI"])

    @router.get("/models", summary="The models of the fleet")
    async def models(request: Request) -> Response:
        caller = await door.access.caller(request)
        return json_response(model_list(await door.fleet.models(), int(door.started), may_use=caller.may_use))

    @router.get("/models/{model_id:path}", summary="One model")
    async def model(request: Request, model_id: str) -> Response:
        caller = await door.access.caller(request)
        if not caller.may_use(model_id):
            raise Refused(no_model(model_id, caller))
        found = {info.id: info for info in await door.fleet.models()}
        if model_id not in found:
            raise UnknownModel(model=model_id, known=[name for name in found if caller.may_use(name)])
        return json_response(model_object(found[model_id], found, int(door.started)))

    @router.post("/chat/completions", summary="Answer a chat", openapi_extra=takes(ChatBody))
    async def chat(request: Request) -> Response:
        return await _jobs("/v1/chat/completions", request, door)

    @router.post("/completions", summary="Continue a text", openapi_extra=takes(CompletionBody))
    async def completions(request: Request) -> Response:
        return await _jobs("/v1/completions", request, door)

    @router.post("/embeddings", summary="Make vectors of texts", openapi_extra=takes(EmbeddingBody))
    async def embeddings(request: Request) -> Response:
        return await _jobs("/v1/embeddings", request, door)

    app.include_router(router, prefix="/v1")
    app.include_router(router, include_in_schema=False)  # people forget the /v1


async def _jobs(url: str, request: Request, door: Door) -> Response:
    caller, call = await asked(door, request, partial(parse_call, url))
    return await serve(door, request, caller, call, _OpenAI(call))


class _OpenAI:
    def __init__(self, call: Call) -> None:
        self._call = call

    def body(self, stamp: Stamp, results: Sequence[Result]) -> dict[str, Any]:
        return self._call.form.body(stamp, results)

    def writer(self, stamp: Stamp) -> Writer:
        form = self._call.form
        assert isinstance(form, StreamForm), "only calls for text may ask for a stream"
        return _OpenAIWriter(self._call, form, stamp)


class _OpenAIWriter:
    """Chunks as `data:` events; a failure is one, too, and then the stream ends."""

    media_type = "text/event-stream"

    def __init__(self, call: Call, form: StreamForm, stamp: Stamp) -> None:
        self._call = call
        self._form = form
        self._stamp = stamp
        self.tells_queue = call.stream_options.include_queue

    def opening(self) -> list[bytes]:
        numbers = range(len(self._call.specs))
        return [data(chunk) for number in numbers for chunk in self._form.opening(self._stamp, number)] or [
            comment("begun")
        ]

    def waiting(self, place: Explanation | None) -> list[bytes]:
        if place is None:
            return [comment("waiting")]
        shown = place.model_dump(include={"id", "state", "reason", "position", "ahead", "eta_s"})
        return [data(shown, event="packtrain.queue")]

    def piece(self, choice: int, delta: AnswerDelta) -> list[bytes]:
        return [data(chunk) for chunk in self._form.piece(self._stamp, choice, delta)]

    def closing(self, choice: int, result: Result) -> list[bytes]:
        return [data(chunk) for chunk in self._form.closing(self._stamp, choice, result)]

    def ending(self, results: Sequence[Result]) -> list[bytes]:
        usage = [data(self._form.usage(self._stamp, results))] if self._call.stream_options.include_usage else []
        return [*usage, data("[DONE]")]

    def failing(self, fault: Fault) -> list[bytes]:
        return [data(fault.body())]
