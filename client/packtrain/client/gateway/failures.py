"""Every failure as one kind of answer, whichever layer it comes from: ours, FastAPI's, or one that nobody expected."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from packtrain.broker.errors import PacktrainError
from packtrain.client.openai.faults import Fault, fault_of

log = logging.getLogger(__name__)

_INVALID = "invalid_request_error"
#: From a fault and the id of its request to the body of the response.
Shape = Callable[[Fault, str], Mapping[str, Any]]


class Refused(Exception):
    """A request that ends with this fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def handle_failures(app: FastAPI) -> None:
    """Have `app` answer every failure in the shape that the path's clients expect."""

    async def respond(request: Request, error: Exception) -> Response:
        return failure_response(request, fault_behind(error, request))

    for kind in (PacktrainError, Refused, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, respond)


def fault_behind(error: BaseException, request: Request) -> Fault:
    """The fault that an exception is."""
    match error:
        case Refused():
            return error.fault
        case PacktrainError():
            return fault_of(error)
        case RequestValidationError():
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][1:]) or "request"
            return Fault(400, _INVALID, "invalid_parameter", f"{where}: {first['msg']}; correct it", where)
        case HTTPException():
            return _http(error, request)
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return Fault(
        500, "server_error", "internal_error", "the gateway failed at this; its log says how", should_retry=False
    )


def shape_failures(app: FastAPI, paths: Iterable[str], shape: Shape) -> None:
    """Have failures at these paths look as another API's clients expect, not as OpenAI's.

    Args:
        paths: One that ends with `/` stands for all below it.
    """
    if not hasattr(app.state, "shapes"):
        app.state.shapes = {}
    app.state.shapes.update(dict.fromkeys(paths, shape))


def failure_response(request: Request, fault: Fault) -> Response:
    """A fault as a response, in the shape of its path's API."""
    shapes: Mapping[str, Shape] = getattr(request.app.state, "shapes", {})
    path = request.url.path
    below = (shape for start, shape in shapes.items() if start.endswith("/") and path.startswith(start))
    shape = shapes.get(path) or next(below, None)
    body = shape(fault, getattr(request.state, "request_id", "")) if shape else fault.body()
    return json_response(body, fault.status, fault.headers())


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON for clients, whatever text stands in it: a lone surrogate becomes its escape."""
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=str).encode(errors="backslashreplace")
    return Response(content, status, dict(headers or {}), media_type="application/json")


def _http(error: HTTPException, request: Request) -> Fault:
    path = request.url.path
    if error.status_code == 404:
        return Fault(404, _INVALID, "unknown_url", f"there is no {path}; /docs lists what there is")
    if error.status_code == 405:
        message = f"{path} does not take {request.method}; /docs lists what does"
        allow = (error.headers or {}).get("Allow", "")
        return Fault(405, _INVALID, "method_not_allowed", message, allow=allow)
    kind = _INVALID if error.status_code < 500 else "server_error"
    return Fault(error.status_code, kind, "http_error", str(error.detail))
