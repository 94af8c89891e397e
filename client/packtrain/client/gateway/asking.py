"""The head of every request for jobs: who asks, and for what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request

from packtrain.broker.errors import UnknownModel
from packtrain.client.gateway.access import Caller
from packtrain.client.gateway.body import read_json
from packtrain.client.gateway.door import Door

T = TypeVar("T")


async def heard(door: Door, request: Request) -> tuple[Caller, dict[str, Any]]:
    """Who sends a request, and the object it carries.

    Raises:
        Refused: They may not, or it is too large.
        InvalidParameter: It carries no object.
    """
    caller = await door.access.caller(request)
    return caller, await read_json(request, max_bytes=door.settings.max_body, max_depth=door.settings.max_depth)


async def understood(door: Door, caller: Caller, parse: Callable[[], T]) -> T:
    """What `parse` makes of a request.

    Raises:
        UnknownModel: By a name that no model can have; it says which there are for this caller.
    """
    try:
        return parse()
    except UnknownModel as error:
        known = [info.id for info in await door.fleet.models() if caller.may_use(info.id)]
        raise UnknownModel(model=str(error.data["model"]), known=known) from None
