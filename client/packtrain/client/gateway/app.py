"""The gateway as an ASGI application."""

from __future__ import annotations

import secrets
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from packtrain.client.gateway.anthropic_api import add_anthropic
from packtrain.client.gateway.batches_api import add_batches
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import failure_response, fault_behind, handle_failures
from packtrain.client.gateway.files_api import add_files
from packtrain.client.gateway.fleet_view import FleetView
from packtrain.client.gateway.health import add_health
from packtrain.client.gateway.metrics import add_metrics
from packtrain.client.gateway.native_api import add_native
from packtrain.client.gateway.ollama_api import add_ollama
from packtrain.client.gateway.openai_api import add_openai
from packtrain.client.gateway.page_feed import add_feed
from packtrain.client.gateway.page_files import add_page
from packtrain.client.gateway.responses_api import add_responses
from packtrain.client.gateway.schema import describe
from packtrain.client.gateway.tokens_api import add_tokens
from packtrain.client.gateway.traces import Traces


def make_app(door: Door) -> FastAPI:
    """A gateway before a fleet. It holds no state, so several may stand before the same one."""
    app = FastAPI(
        title="Packtrain",
        version=version("packtrain"),
        description="One queue in front of all your computers: OpenAI's API and Packtrain's own.",
        redirect_slashes=False,
    )
    handle_failures(app)
    view = FleetView(door.fleet)
    add_health(app, view)
    add_metrics(app, door.metrics, view, door.counters, door.access)
    add_page(app)
    if door.watch:
        add_feed(app, door, door.watch)
    add_openai(app, door)
    add_responses(app, door)
    add_anthropic(app, door)
    add_ollama(app, door)
    add_tokens(app, door)
    add_native(app, door)
    if door.files:
        add_files(app, door, door.files)
        add_batches(app, door, door.files)
    describe(app)
    app.add_middleware(Traces, tracing=door.tracing)
    app.add_middleware(_RequestIds)
    app.add_middleware(_Heads)
    if door.settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(door.settings.cors),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "x-packtrain-job", "retry-after"],
        )
    return app


class _Heads:
    """Answers HEAD wherever there is GET; the server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        await self._app({**scope, "method": "GET"} if is_head else scope, receive, send)


class _RequestIds:
    """Gives each response an `x-request-id`, which OpenAI's clients show in errors, and Anthropic's as `request-id`.

    One to what nobody expected has it, too: Starlette would answer that outside of all middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}".encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()

        has_begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            if message["type"] == "http.response.start":
                ids = [(b"x-request-id", request_id), (b"request-id", request_id)]
                message = {**message, "headers": [*message.get("headers", []), *ids]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if has_begun:
                raise  # its status is out: only the end of the connection can tell
            request = Request(scope)
            await failure_response(request, fault_behind(error, request))(scope, receive, send_with_id)
