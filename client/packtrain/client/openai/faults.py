"""What an error is over HTTP: its status, OpenAI's error object, and when to try again.

OpenAI's clients send a request again by themselves after 408, 409, 429 and 5xx, twice, unless `x-should-retry` says no;
they obey `Retry-After` up to 120 s. So an error that will not go away by itself says no.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from packtrain.broker import errors

#: Clients do not try again at all after a Retry-After beyond 120 s (openai-python 2).
MAX_RETRY_AFTER_S = 120
#: When nothing is known of how long it takes.
RETRY_AFTER_S = 5

_INVALID = "invalid_request_error"


@dataclass(frozen=True, slots=True)
class Fault:
    """An error as HTTP says it."""

    status: int
    type: str  # OpenAI's class of it
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    should_retry: bool | None = None  # None: as the status says
    extra: dict[str, Any] = field(default_factory=dict)  # beside OpenAI's four keys
    allow: str = ""  # of a 405: the methods that its path takes
    wire: dict[str, Any] = field(default_factory=dict)  # the error as our own clients read it; empty: it is none

    def body(self) -> dict[str, Any]:
        """OpenAI's error object: all four keys, always."""
        about = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**self.extra, **about}}

    def headers(self) -> dict[str, str]:
        """Of the response that carries it."""
        found = {}
        if self.retry_after_s is not None:
            found["Retry-After"] = str(self.retry_after_s)
        if self.should_retry is not None:
            found["x-should-retry"] = str(self.should_retry).lower()
        if self.allow:
            found["Allow"] = self.allow
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return found


def fault_of(error: errors.PacktrainError) -> Fault:
    """The fault that an error is over HTTP."""
    status, kind, code, should_retry = _kind(error)
    return Fault(
        status,
        kind,
        code,
        error.message,
        _param(error),
        _retry_after_s(error) if status in (429, 503) and should_retry is not False else None,
        should_retry,
        _extra(error),
        wire=error.to_wire(),
    )


def _kind(error: errors.PacktrainError) -> tuple[int, str, str, bool | None]:
    """Status, type, code, and whether to send it again where the status does not say so."""
    match error:
        case errors.PromptTooLong():
            return 400, _INVALID, "context_length_exceeded", None
        case errors.UnknownModel():
            return 404, _INVALID, "model_not_found", None
        case errors.UnknownJob() | errors.UnknownNode():
            return 404, _INVALID, error.code, None
        case errors.IdempotencyConflict():
            return 409, _INVALID, error.code, False
        case errors.NotDeterministic() | errors.InvalidRequest():
            return 400, _INVALID, error.code, None
        case errors.QueueFull():
            return 429, "rate_limit_error", error.code, None
        case errors.ResultTimeout():
            return 504, "timeout_error", error.code, False
        case errors.TryLater():
            return 503, "unavailable_error", error.code, None
        case errors.JobExpired():
            return 504, "timeout_error", error.code, False
        case errors.JobCancelled():
            return 409, _INVALID, error.code, False
        case errors.RemoteFailed():  # it was asked again already, as often as it let us
            return 502, "server_error", error.code, False
        case errors.JobError():
            return 500, "server_error", error.code, False
        case errors.ModelGone():
            return 503, "unavailable_error", error.code, None
        case errors.ModelError():  # an operator has to act first
            return 503, "unavailable_error", error.code, False
        case _:
            return 500, "server_error", error.code, False


def _param(error: errors.PacktrainError) -> str | None:
    if isinstance(error, errors.UnknownModel):
        return "model"
    named = str(error.data.get("field", "")).removeprefix("params.").removesuffix("_ms")
    return named or None


def _retry_after_s(error: errors.PacktrainError) -> int:
    seconds = float(error.data.get("retry_after_s", RETRY_AFTER_S))
    return max(1, min(MAX_RETRY_AFTER_S, math.ceil(seconds)))


def _extra(error: errors.PacktrainError) -> dict[str, Any]:
    if isinstance(error, errors.PromptTooLong):  # llama-server's names, which agents read
        return {"n_prompt_tokens": error.data.get("num_tokens"), "n_ctx": error.data.get("limit")}
    return {}
