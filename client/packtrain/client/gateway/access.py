"""Who calls, and what they may: asked once at the head of every request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    user: str | None = None  # whose share of the fleet their jobs take; None: as the request says
    key_id: str | None = None  # of their API key; None: none was asked for
    is_admin: bool = True  # may load and unload, change nodes, and see jobs of others
    models: frozenset[str] | None = None  # that they may use, by the names they may say; None: all

    def may_use(self, model: str) -> bool:
        """True when they may use the model of this name. Another name of the same model has to be allowed itself."""
        return self.models is None or model in self.models


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
