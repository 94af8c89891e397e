"""Who calls, and what they may: asked once at the head of every request, and again before its jobs are handed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request

from packtrain.broker.job_spec import JobSpec
from packtrain.client.openai import Fault


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


def no_model(model: str, caller: Caller) -> Fault:
    """The refusal of a model that the caller may not use; it does not tell whether there is one."""
    allowed = ", ".join(sorted(caller.models or ())) or "none"
    message = f"the model {model!r} does not exist, or this API key may not use it; it may use: {allowed}"
    return Fault(404, "invalid_request_error", "model_not_found", message, "model")


class Admission:
    """A request that may be under way. Its `end` is to be awaited once, whatever becomes of it."""

    counts = False  # True: it takes of what its key may use until its end
    guess = 0  # tokens that it was taken to cost

    async def end(self, tokens: int | None) -> None:
        """It is over.

        Args:
            tokens: Of its prompts and answers; 0: its jobs were never handed in; None: not known.
        """


class Access(Protocol):
    """Lets requests in or refuses them."""

    async def caller(self, request: Request) -> Caller:
        """Who sends this request.

        Raises:
            Refused: They may not.
        """
        ...

    async def admit(self, caller: Caller, specs: Sequence[JobSpec]) -> Admission:
        """Let these jobs of theirs be handed in.

        Raises:
            Refused: They may not use a model, or not now.
        """
        ...


class OpenAccess:
    """Everybody may, whatever key they send. For tests, and gateways that only their own process reaches."""

    async def caller(self, request: Request) -> Caller:
        return Caller()

    async def admit(self, caller: Caller, specs: Sequence[JobSpec]) -> Admission:
        return Admission()
