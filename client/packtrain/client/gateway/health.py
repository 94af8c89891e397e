"""Is the gateway there, is it any use: what load balancers and orchestrators ask. None of it needs an API key.

| path               | 200 when                                            | else                                   |
|--------------------|-----------------------------------------------------|----------------------------------------|
| /livez             | the process answers; restart it otherwise           |                                        |
| /readyz            | it reaches the broker: it may have requests         | 503                                    |
| /health, /v1/health| a live node offers a model: a request can be served | 503, `Loading model` as llama-server's |
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from starlette.responses import Response

from packtrain.client.gateway.failures import Refused, json_response
from packtrain.client.gateway.fleet_view import FleetView
from packtrain.client.openai import Fault

#: A node that starts reports after a second or two.
RETRY_AFTER_S = 2


def add_health(app: FastAPI, view: FleetView) -> None:
    """Serve the three."""
    router = APIRouter(tags=["Health"])

    @router.get("/livez", summary="Does the gateway answer?")
    async def livez() -> Response:
        return json_response({"status": "ok"})

    @router.get("/readyz", summary="Does it reach the broker?")
    async def readyz() -> Response:
        await view.look()
        return json_response({"status": "ok"})

    @router.get("/health", summary="Can it serve a request?")
    @router.get("/v1/health", include_in_schema=False)
    async def health() -> Response:
        if not (await view.look()).offered:
            raise Refused(_nothing_there())
        return json_response({"status": "ok"})

    app.include_router(router)


def _nothing_there() -> Fault:
    message = "Loading model: no live node offers one; start a node with `packtrain up` or `packtrain node`"
    return Fault(503, "unavailable_error", "loading_model", message, retry_after_s=RETRY_AFTER_S)
