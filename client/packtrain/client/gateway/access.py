"""Who calls, and what they may: asked once at the head of every request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    user: str | None = None  # whose share of the fleet their jobs take; None: as the request says


class Access(Protocol):
    """Lets requests in or refuses them."""

    async def caller(self, request: Request) -> Caller:
        """Who sends this request.

        Raises:
            Refused: They may not.
        """
        ...


class OpenAccess:
    """Everybody may, whatever key they send. For gateways on loopback."""

    async def caller(self, request: Request) -> Caller:
        return Caller()
