"""The head of every request for jobs: who asks, and for what."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.requests import Request

from packtrain.broker.errors import UnknownModel
from packtrain.client.gateway.access import Caller
from packtrain.client.gateway.body import read_json
from packtrain.client.gateway.door import Door

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Parse(Protocol[T_co]):
    """Makes of a body what it asks for: a function of a module, or a partial of one."""

    def __call__(self, body: dict[str, Any], /, *, user: str | None) -> T_co: ...


async def heard(door: Door, request: Request) -> tuple[Caller, dict[str, Any]]:
    """Who sends a request, and the object it carries.

    Raises:
        Refused: They may not, or it is too large.
        InvalidParameter: It carries no object.
    """
    return await door.access.caller(request), await read_json(request, door, dict)


async def asked(door: Door, request: Request, parse: Parse[T]) -> tuple[Caller, T]:
    """Who sends a request, and what `parse` makes of it. Errors as of `heard`, of `parse` and of `understood`."""
    caller = await door.access.caller(request)
    make = partial(parse, user=caller.user)
    try:
        return caller, await read_json(request, door, make)
    except UnknownModel as error:
        raise await _for(door, caller, error) from None


async def understood(door: Door, caller: Caller, parse: Callable[[], T]) -> T:
    """What `parse` makes of a request.

    Raises:
        UnknownModel: By a name that no model can have; it says which there are for this caller.
    """
    try:
        return parse()
    except UnknownModel as error:
        raise await _for(door, caller, error) from None


async def _for(door: Door, caller: Caller, error: UnknownModel) -> UnknownModel:
    known = [info.id for info in await door.fleet.models() if caller.may_use(info.id)]
    return UnknownModel(model=str(error.data["model"]), known=known)
