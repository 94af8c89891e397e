"""Reading the JSON of a request: its size is bounded before it is in memory, its depth by the parser and by us.

A large one is read, and made into what it asks for, by another process (readers.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from packtrain.broker.errors import InvalidParameter
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.failures import Refused
from packtrain.client.gateway.image_urls import put_in, urls_in
from packtrain.client.gateway.readers import LARGE_BYTES, is_large
from packtrain.client.openai.bodies import EXTRAS
from packtrain.client.openai.faults import Fault

T = TypeVar("T")
#: No images are to be put in.
NONE: Mapping[str, str] = {}
_NESTING = frozenset({dict, list})  # what the parser makes
Object = dict[str, Any]


async def read_json(request: Request, door: Door, make: Callable[[Object], T]) -> T:
    """What is made of the object that a request carries, and of what headers `X-Packtrain-*` and `Idempotency-Key` add.

    Args:
        make: Picklable, as its result is: a function of a module, or a partial of one.

    Raises:
        Refused: Larger than is taken (413).
        InvalidParameter: No JSON object, or nested too deep.
        PacktrainError: As `make` does.
    """
    text, more = await read_bytes(request, door.settings.max_body), _from_headers(request)
    read, run = partial(_read, text, door.settings.max_depth), door.readers.run
    if not door.images.may_name(text):
        return await run(partial(_made, read, more, make)) if is_large(text) else make({**read(), **more})
    if is_large(text):  # it is read twice, but not here
        images = await door.images.fetch(await run(partial(_urls_in, read)))
        return await run(partial(_made, read, more, make, images))
    body = read()
    images = await door.images.fetch(urls_in(body))
    put_in(body, images)
    work = partial(make, {**body, **more})
    return await run(work) if sum(map(len, images.values())) > LARGE_BYTES else work()


def _urls_in(read: Callable[[], Object]) -> list[str]:
    return urls_in(read())


def _made(
    read: Callable[[], Object],
    more: Mapping[str, Any],
    make: Callable[[Object], T],
    images: Mapping[str, str] | None = None,
) -> T:
    body = read()
    if images:
        put_in(body, images)
    return make({**body, **more})


def _read(text: bytes, max_depth: int) -> Object:
    try:
        body = json.loads(text)
    except RecursionError:  # Python's own bound, far above ours
        raise _too_deep(max_depth) from None
    except ValueError as error:
        raise InvalidParameter(
            f"the body is no JSON ({error}); send an object as application/json", field="body"
        ) from None
    if not isinstance(body, dict):
        raise InvalidParameter(f"the body is a JSON {type(body).__name__}; send an object", field="body")
    if _is_deeper(body, max_depth):
        raise _too_deep(max_depth)
    return body


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


def _too_deep(limit: int) -> InvalidParameter:
    return InvalidParameter(f"the body is nested deeper than {limit} levels; make it flatter", field="body")


def _is_deeper(value: Any, limit: int) -> bool:
    """True when arrays and objects nest deeper than `limit`."""
    level = [value]
    for _ in range(limit + 1):
        if not level:
            return False
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        # Most hold nothing but numbers or texts, which `map` sees ten times as fast as a loop.
        holding = (items for items in inner if not _NESTING.isdisjoint(map(type, items)))
        level = [item for items in holding for item in items if isinstance(item, dict | list)]
    return True


def _from_headers(request: Request) -> Object:
    """Extras that came as headers: for clients that cannot add fields to a body."""
    found: Object = {}
    for name in EXTRAS:
        value = request.headers.get("x-packtrain-" + name.replace("_", "-"))
        if value is not None:
            found[name] = value.strip()
    if key := request.headers.get("idempotency-key"):
        found.setdefault("idempotency_key", key)
    return found
