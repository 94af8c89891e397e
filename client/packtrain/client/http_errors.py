"""What a gateway answered, or something before it: the body of a good answer, or the error that it is."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from packtrain.broker.errors import BrokerUnavailable, InvalidRequest, JobFailed, PacktrainError, SetupError, TryLater

_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"  # by OpenSSL, and by whatever checks for the system


class Lost(Exception):
    """No gateway has answered, only what stands before one. It may be there again in a moment."""


def answer(url: str, status: int, body: bytes, *, absent: str = "") -> bytes | None:
    """The body of an answer; None: it says that what was asked for is not there.

    Args:
        url: Of the gateway.
        absent: The code by which it says so.

    Raises:
        PacktrainError: That it tells.
        Lost
    """
    if status == 200:
        return body
    told = _told(body)
    if told is None:
        raise _foreign(url, status)
    if absent and told.get("code") == absent:
        return None
    raise _error(url, status, told)


def is_final(reason: BaseException) -> bool:
    """True when another try would end as this one: it is there and does not answer, or is not who it should be."""
    return isinstance(reason, httpx2.ReadTimeout) or _UNTRUSTED in str(reason)


def away(url: str, reason: BaseException) -> BrokerUnavailable | SetupError:
    """The error of a gateway that does not answer."""
    if _UNTRUSTED in str(reason):
        return SetupError(
            f"the certificate of {url} is not to be trusted ({reason}); if it is your own, name the PEM file of who "
            "signed it in PACKTRAIN_CA"
        )
    return BrokerUnavailable(url=url, reason=str(reason).rstrip(".") or type(reason).__name__)


def _told(body: bytes) -> dict[str, Any] | None:
    """The error object of a gateway's answer; None: it is no such answer."""
    try:
        told = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return None
    return told if isinstance(told, dict) and "message" in told and "data" in told else None


def _error(url: str, status: int, told: dict[str, Any]) -> PacktrainError:
    error = PacktrainError.from_wire(told)
    if not isinstance(error, JobFailed) or told.get("code") == JobFailed.code:
        return error
    message, code = error.message, str(told.get("code"))  # of what only the HTTP door knows
    match status:
        case 401 | 403:
            return SetupError(f"the gateway at {url} refuses this: {message}", code=code)
        case 404:
            return SetupError(f"the gateway at {url} is older than this client: {message}", code=code)
        case 429 | 503:
            return TryLater(message, code=code, **error.data)
        case _ if status < 500:
            return InvalidRequest(message, code=code)
        case _:
            return PacktrainError(message, code=code)


def _foreign(url: str, status: int) -> Exception:
    if status in (502, 503, 504):
        return Lost(f"a proxy before it answers {status}")
    return SetupError(
        f"no Packtrain gateway answers at {url}, but something that says {status}; correct PACKTRAIN_URL, or update "
        "the gateway"
    )
