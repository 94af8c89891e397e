"""The fleet over HTTP: its models, nodes and instances for everybody; what changes it for administrators."""

from __future__ import annotations

import asyncio
from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.ids import ModelId, NodeId, is_safe_id
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.node_wishes import NodeChange
from packtrain.broker.pulls import PullRequest, new_pull
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import Refused
from packtrain.client.gateway.names import names_of
from packtrain.client.gateway.native_form import read_body, written
from packtrain.client.gateway.native_owners import administrator
from packtrain.client.gateway.schema import takes
from packtrain.client.native_wire import DesiredBody, Instances, LoadBody, Models, Nodes, PullAsked, PullBody, Waiting
from packtrain.client.openai import Fault


def add_fleet(router: APIRouter, door: Door) -> None:
    """Serve the fleet."""
    transport = door.fleet.transport.blocking

    @router.get("/models", summary="Models and aliases that the fleet offers")
    async def models(request: Request) -> Response:
        caller = await door.access.caller(request)
        found: list[ModelInfo] = await asyncio.to_thread(transport.models)
        return written(Models(models=[info for info in found if caller.may_use(info.id)]))

    @router.get("/nodes", summary="Live nodes")
    async def nodes(request: Request) -> Response:
        names = await names_of(door, await door.access.caller(request))
        return written(Nodes(nodes=[names.node(beat) for beat in await asyncio.to_thread(transport.nodes)]))

    @router.get("/instances", summary="Instances that live or ended lately")
    async def instances(request: Request) -> Response:
        names = await names_of(door, await door.access.caller(request))
        return written(Instances(instances=names.instances(await asyncio.to_thread(transport.instances))))

    @router.get("/waiting", summary="How many jobs wait, by model, and why models cannot be loaded")
    async def waiting(request: Request) -> Response:
        names = await names_of(door, await door.access.caller(request))
        counts = await asyncio.to_thread(transport.waiting)
        reasons = await asyncio.to_thread(transport.waits)
        return written(
            Waiting(
                waiting={str(route): count for route, count in counts.items() if names.shows(route)},
                reasons={str(route): names.told(why) for route, why in reasons.items() if names.shows(route)},
            )
        )

    async def desire(model: str, replicas: int, *, unload: bool) -> Response:
        change = partial(transport.set_desired, ModelId(model), replicas=replicas, unload=unload)
        return written(await asyncio.to_thread(change))

    @router.put("/models/{model:path}/desired", summary="How much is wanted", openapi_extra=takes(DesiredBody))
    async def desired(request: Request, model: str) -> Response:
        await administrator(door, request)
        body = await read_body(request, door, DesiredBody)
        return await desire(model, body.replicas, unload=body.unload)

    @router.post("/models/{model:path}/load", summary="Load a model and keep it loaded", openapi_extra=takes(LoadBody))
    async def load(request: Request, model: str) -> Response:
        await administrator(door, request)
        body = await read_body(request, door, LoadBody)
        return await desire(model, body.replicas, unload=False)

    @router.post("/models/{model:path}/unload", summary="Unload a model once its running jobs have ended")
    async def unload(request: Request, model: str) -> Response:
        await administrator(door, request)
        return await desire(model, 0, unload=True)

    @router.patch("/nodes/{node}", summary="Change budgets, labels, drain or resume", openapi_extra=takes(NodeChange))
    async def change_node(request: Request, node: str) -> Response:
        await administrator(door, request)
        change = await read_body(request, door, NodeChange)
        return written(await asyncio.to_thread(transport.change_node, _node(node), change))

    @router.post("/nodes/{node}/pulls", summary="Have a node pull a model file", openapi_extra=takes(PullBody))
    async def pull(request: Request, node: str) -> Response:
        await administrator(door, request)
        asked = pull_request(await read_body(request, door, PullBody))
        await asyncio.to_thread(transport.pull, _node(node), asked)
        return written(PullAsked(id=asked.id))

    @router.get("/pulls/{pull_id}", summary="How far a pull is")
    async def pull_status(request: Request, pull_id: str) -> Response:
        await administrator(door, request)
        found = await asyncio.to_thread(transport.pull_status, pull_id)
        if found is None:
            message = "no node has said anything of this pull for 15 s; ask again, or pull again"
            raise Refused(Fault(404, "invalid_request_error", "unknown_pull", message))
        return written(found)


def pull_request(body: PullBody) -> PullRequest:
    """What a node is asked to pull.

    Raises:
        InvalidParameter: A name cannot be.
    """
    return new_pull(body.repo, body.file, body.revision, body.mmproj, pull_id=body.id or "")


def _node(text: str) -> NodeId:
    if not is_safe_id(text):
        raise InvalidParameter(f"{text!r} is no node's id; GET /packtrain/v1/nodes lists them", field="node")
    return NodeId(text)
