"""Ollama's endpoints. Clients find the gateway at its root (page_files.py), list models and ask them by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from packtrain.broker.errors import InvalidParameter, UnknownModel
from packtrain.broker.model_info import ModelInfo
from packtrain.client.dialects.ollama import form, models
from packtrain.client.dialects.ollama.bodies import ChatBody, EmbedBody, EmbeddingsBody, GenerateBody, GenerationBody
from packtrain.client.dialects.ollama.calls import chat_call, embed_call, generate_call, load_call
from packtrain.client.gateway.access import Caller, no_model
from packtrain.client.gateway.asking import asked, heard, understood
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import Refused, json_response, shape_failures
from packtrain.client.gateway.native_owners import administrator
from packtrain.client.gateway.ollama_streams import OllamaAnswerer
from packtrain.client.gateway.schema import takes
from packtrain.client.gateway.serving import OnlyBody, serve
from packtrain.client.openai import Call, Fault, Stamp
from packtrain.client.openai.calls import checked
from packtrain.client.result import Result

#: Of Ollama's API as it is spoken here. Clients look whether a server is new enough for what they want.
OLLAMA_VERSION = "0.13.0"

B = TypeVar("B", bound=GenerationBody)
E = TypeVar("E", EmbedBody, EmbeddingsBody)


def add_ollama(app: FastAPI, door: Door) -> None:
    """Serve Ollama's API."""
    router = APIRouter(prefix="/api", tags=["Ollama"])

    @router.get("/version", summary="The version of Ollama's API that is spoken")
    async def ollama_version() -> Response:
        return json_response({"version": OLLAMA_VERSION, "packtrain": version("packtrain")})

    @router.post("/chat", summary="Answer a chat, as Ollama's API does", openapi_extra=takes(ChatBody))
    async def chat(request: Request) -> Response:
        caller, raw = await heard(door, request)
        body = checked(ChatBody, raw)
        answer = OllamaAnswerer(str(raw["model"]), "chat")
        return await _text(door, request, caller, body, answer, chat_call if body.messages else None)

    @router.post("/generate", summary="Answer a text, as Ollama's API does", openapi_extra=takes(GenerateBody))
    async def generate(request: Request) -> Response:
        caller, raw = await heard(door, request)
        body = checked(GenerateBody, raw)
        is_asked = body.prompt or body.suffix or body.images
        answer = OllamaAnswerer(str(raw["model"]), "generate")
        return await _text(door, request, caller, body, answer, generate_call if is_asked else None)

    @router.post("/embed", summary="Make vectors of texts, as Ollama's API does", openapi_extra=takes(EmbedBody))
    async def embed(request: Request) -> Response:
        caller, (name, call) = await asked(door, request, partial(_embed, EmbedBody))
        return await serve(door, request, caller, call, OnlyBody(lambda _, results: form.embeddings(name, results)))

    @router.post("/embeddings", summary="The same of one text, the old way", openapi_extra=takes(EmbeddingsBody))
    async def embeddings(request: Request) -> Response:
        caller, (_, call) = await asked(door, request, partial(_embed, EmbeddingsBody))
        return await serve(door, request, caller, call, OnlyBody(_one_vector))

    @router.get("/tags", summary="The models of the fleet, as Ollama lists them")
    async def tags(request: Request) -> Response:
        caller = await door.access.caller(request)
        return json_response(models.tags(await _models(door, caller), door.started))

    @router.get("/ps", summary="The models that are loaded")
    async def running(request: Request) -> Response:
        caller = await door.access.caller(request)
        return json_response(models.running(await _models(door, caller), await door.fleet.instances()))

    @router.post("/show", summary="One model, as Ollama shows it")
    async def show(request: Request) -> Response:
        caller, raw = await heard(door, request)
        name = raw.get("model") or raw.get("name")
        if not isinstance(name, str):
            raise InvalidParameter("model is missing; name one of those that /api/tags lists", field="model")
        info, infos = await _model(door, caller, name.removesuffix(":latest"))
        return json_response(models.shown(info, infos, door.started))

    _refuse(router)
    app.include_router(router)
    shape_failures(app, ["/api/"], form.error)


def _embed(kind: type[E], raw: dict[str, Any], *, user: str | None) -> tuple[str, Call]:
    """The model as the client named it, and its jobs."""
    return str(raw.get("model")), embed_call(checked(kind, raw), user=user)


async def _text(
    door: Door, request: Request, caller: Caller, body: B, answer: OllamaAnswerer, parse: Callable[..., Call] | None
) -> Response:
    """Answer a request for text; without `parse` it has no prompt, and is about loading or unloading the model."""
    if parse:
        call = await understood(door, caller, lambda: parse(body, user=caller.user))
        return await serve(door, request, caller, call, answer)
    if body.unloads:
        await administrator(door, request)
        await _model(door, caller, body.model)
        await door.fleet.unload(body.model)
        return json_response(answer.without_text(door.now(), "unload"))
    call = await understood(door, caller, lambda: load_call(body, user=caller.user))
    return await serve(
        door, request, caller, call, OnlyBody(lambda stamp, _: answer.without_text(stamp.created, "load"))
    )


async def _models(door: Door, caller: Caller) -> dict[str, ModelInfo]:
    return {info.id: info for info in await door.fleet.models() if caller.may_use(info.id)}


async def _model(door: Door, caller: Caller, name: str) -> tuple[ModelInfo, dict[str, ModelInfo]]:
    """One model, and all for what an alias stands for.

    Raises:
        Refused: The caller may not use it.
        UnknownModel
    """
    if not caller.may_use(name):
        raise Refused(no_model(name, caller))
    infos = {info.id: info for info in await door.fleet.models()}
    if name not in infos:
        raise UnknownModel(model=name, known=[each for each in infos if caller.may_use(each)])
    return infos[name], infos


def _one_vector(_: Stamp, results: Sequence[Result]) -> dict[str, Any]:
    return {"embedding": list(results[0].embedding or ())}


def _refuse(router: APIRouter) -> None:
    """Say of what changes model files who does that here."""

    async def refuse(request: Request) -> Response:
        message = (
            f"{request.url.path} changes model files, which is done on the nodes here: bring one with "
            "`packtrain pull`, or put it into a model folder, or delete it there"
        )
        raise Refused(Fault(501, "invalid_request_error", "not_implemented", message, should_retry=False))

    for path in ("/pull", "/push", "/create", "/copy", "/delete", "/blobs/{digest}"):
        router.add_api_route(path, refuse, methods=["POST", "DELETE"], include_in_schema=False)
