"""Reading the JSON of a request: bounded before it is in memory, and before it is parsed."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from packtrain.broker.errors import InvalidParameter
from packtrain.client.gateway.failures import Refused
from packtrain.client.openai.bodies import EXTRAS
from packtrain.client.openai.faults import Fault


async def read_json(request: Request, *, max_bytes: int, max_depth: int) -> dict[str, Any]:
    """The object that a request carries, with what its headers `X-Packtrain-*` and `Idempotency-Key` add.

    Raises:
        Refused: Larger than `max_bytes` (413).
        InvalidParameter: No JSON object, or nested deeper than `max_depth`.
    """
    text = await read_bytes(request, max_bytes)
    if _is_deeper(text, max_depth):
        raise InvalidParameter(f"the body is nested deeper than {max_depth} levels; make it flatter", field="body")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(
            f"the body is no JSON ({error}); send an object as application/json", field="body"
        ) from None
    if not isinstance(body, dict):
        raise InvalidParameter(f"the body is a JSON {type(body).__name__}; send an object", field="body")
    return body | _from_headers(request)


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        Refused: Larger than `max_bytes` (413).
    """
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > max_bytes:
        raise _too_large(int(said), max_bytes)
    pieces, size = [], 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > max_bytes:
                raise _too_large(size, max_bytes)
            pieces.append(piece)
    except ClientDisconnect:
        raise Refused(Fault(400, "invalid_request_error", "incomplete_body", "the body broke off")) from None
    return b"".join(pieces)


def _too_large(size: int, limit: int) -> Refused:
    message = f"the body has {size} bytes or more, at most {limit} are taken (PACKTRAIN_HTTP_MAX_BODY); send less"
    return Refused(Fault(413, "invalid_request_error", "body_too_large", message))


def _is_deeper(text: bytes, limit: int) -> bool:
    """True when the brackets outside of strings nest deeper than `limit`. What is no JSON is found by the parser."""
    if text.count(b"[") + text.count(b"{") <= limit:
        return False  # the usual case costs two scans in C
    depth, is_string, is_escaped = 0, False, False
    for byte in text:
        if is_string:
            if is_escaped:
                is_escaped = False
            elif byte == 0x5C:  # \
                is_escaped = True
            elif byte == 0x22:  # "
                is_string = False
        elif byte == 0x22:
            is_string = True
        elif byte in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif byte in b"]}":
            depth -= 1
    return False


def _from_headers(request: Request) -> dict[str, Any]:
    """Extras that came as headers: for clients that cannot add fields to a body."""
    found: dict[str, Any] = {}
    for name in EXTRAS:
        value = request.headers.get("x-packtrain-" + name.replace("_", "-"))
        if value is not None:
            found[name] = value.strip()
    if key := request.headers.get("idempotency-key"):
        found.setdefault("idempotency_key", key)
    return found
