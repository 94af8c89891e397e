"""How the native routes read bodies and write answers and failures."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from packtrain.client.gateway.body import read_json
from packtrain.client.gateway.door import Door
from packtrain.client.openai.calls import checked
from packtrain.client.openai.faults import Fault

B = TypeVar("B", bound=BaseModel)


async def read_body(request: Request, door: Door, kind: type[B]) -> B:
    """The body of a request in its shape.

    Raises:
        Refused: Too large.
        InvalidParameter
    """
    return await read_json(request, door, partial(checked, kind))


def written(message: BaseModel) -> Response:
    """A message as a response."""
    return as_json(message.model_dump_json())


def as_json(text: bytes | str) -> Response:
    """JSON as a response."""
    return Response(text, media_type="application/json")


def native_body(fault: Fault, _request_id: str = "") -> dict[str, Any]:
    """OpenAI's four keys, `code` by our own names, and the values behind the message: `PacktrainError.from_wire`."""
    about = {"message": fault.message, "type": fault.type, "param": fault.param}
    values = fault.wire.get("data") or ({"retry_after_s": fault.retry_after_s} if fault.retry_after_s else {})
    return {"error": {**about, "code": fault.wire.get("code", fault.code), "data": values}}
