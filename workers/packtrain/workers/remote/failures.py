"""Failures: what a server's refusal means for a job, and how long to wait before the next try. Pure.

    status                     meaning                              the job
    400, 413, 422              the request is wrong                 ends: `InvalidParameter` with the server's words,
                                                                    or `PromptTooLong`, where it calls it so
    401, 403 (see engine.py)   the key is wrong                     ends: `RemoteFailed`, and the instance with it
    404                        no such model or address there       ends: `RemoteFailed`
    408, 409, 425, 429, 5xx    later it may work                    is tried again for `retry_s`, then `RemoteFailed`
    no answer                  as 5xx                               the same
    anything else              nobody knows                         ends: `RemoteFailed`

A server that says whether to try again (x-should-retry) is believed, whatever the status. So is one that says how long
to wait (Retry-After, in seconds or as a date); where that is longer than
`retry_s` leaves, the job ends at once. Else the wait is half a second, doubled with each try, up to 20 seconds, each
shortened at random by up to a half, so that jobs that failed together do not come back together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from packtrain.broker.errors import InvalidParameter, PacktrainError, PromptTooLong, RemoteFailed
from packtrain.workers.remote.answers import MAX_SAID
from packtrain.workers.remote.options import RemoteOptions

FIRST_WAIT_S, MAX_WAIT_S = 0.5, 20.0
#: What servers call a prompt that is too long.
_TOO_LONG = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_WRONG = frozenset({400, 413, 422})
_LATER = frozenset({408, 409, 425, 429})


@dataclass(frozen=True, slots=True)
class Refusal:
    """What came instead of an answer."""

    said: str  # by the server, or why none answered
    status: int | None = None  # None: no answer
    retry_after_s: float | None = None  # that the server asks for
    field: str | None = None  # of the request, that the server names
    may_retry: bool | None = None  # as the server says; None: it does not
    code: str = ""  # what the server calls it

    @property
    def is_temporary(self) -> bool:
        """True when the same request may succeed later."""
        if self.may_retry is not None:
            return self.may_retry
        if self.status is None:
            return True
        return self.status in _LATER or (self.status >= 500 and self.status != 501)


def refusal(status: int, headers: Mapping[str, str], body: bytes, *, now: datetime, secret: str = "") -> Refusal:
    """An HTTP answer that is none to the request.

    Args:
        secret: The key, which some servers repeat in their complaints about it.
    """
    said, field, code = _said(body)
    may_retry = {"true": True, "false": False}.get(headers.get("x-should-retry", ""))
    said = redacted(said, secret) or "it said no more"
    return Refusal(said, status, retry_after_s(headers, now), field, may_retry, code)


def redacted(text: str, secret: str) -> str:
    """A text without the key."""
    return text.replace(secret, "***") if secret else text


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that a server asks to wait; None: it does not.

    >>> retry_after_s({"retry-after": "7"}, datetime.now(UTC))
    7.0
    """
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, OverflowError):  # of a year that no clock shows
            return None
        seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def next_wait_s(failed: Refusal, tries: int, tried_s: float, bound_s: float, chance: float) -> float | None:
    """Seconds until the next try; None: give up.

    Args:
        tries: So far, at least 1.
        tried_s: Since the first began.
        bound_s: When no more begin.
        chance: From 0 to 1, at random.
    """
    if not failed.is_temporary:
        return None
    wait_s = failed.retry_after_s
    if not wait_s:  # 0, or a time that is past by our clock, would have it asked as fast as it refuses
        wait_s = min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** min(tries - 1, 10)) * (1 - chance / 2)
    return wait_s if tried_s + wait_s <= bound_s else None


def error_of(failed: Refusal, options: RemoteOptions, model: str, *, tries: int = 1) -> PacktrainError:
    """What a job ends with.

    Args:
        model: Its id here.
    """
    host, status = options.host, failed.status
    if failed.code in _TOO_LONG:
        return PacktrainError.from_wire(
            {
                "code": PromptTooLong.code,
                "message": f"{host} says that the prompt is too long ({failed.said}); shorten it, or ask another model",
                "data": {"model": model, "host": host, "status": status, "said": failed.said},
            }
        )
    if status in _WRONG:
        return InvalidParameter(
            f"{host} refuses the request ({status}): {failed.said}; correct it, or ask another model",
            field=failed.field or "request", host=host, status=status, said=failed.said,
        )  # fmt: skip
    again = f", the last of {tries} tries" if tries > 1 else ""
    what = f"{host} does not answer{again}: {failed.said}"
    if status is not None:
        what = f"{host} could not answer ({status}{again}): {failed.said}"
    if status in (401, 403):
        remedy = (
            f"put a valid key for it into {options.key_env} and restart the node"
            if options.key_env
            else (f"name the variable that holds its key as key_env in [models.{model}.remote]")
        )
    elif status == 404:
        remedy = f"correct url or model ({options.model!r}) in [models.{model}.remote] of packtrain.toml"
    elif failed.is_temporary:
        remedy = (
            f"try again later, or allow more time for it: retry_s in [models.{model}.remote], now {options.retry_s:g}"
        )
    else:
        remedy = f"see what that server asks for, and correct [models.{model}.remote] in packtrain.toml"
    data: dict[str, Any] = {"host": host, "status": status, "said": failed.said, "tries": tries}
    if failed.retry_after_s is not None:
        data["retry_after_s"] = failed.retry_after_s
    return RemoteFailed(f"{what}; {remedy}", **data)


def _said(body: bytes) -> tuple[str, str | None, str]:
    """The words of an error body, the field it names, and what it calls that, in the forms that servers use."""
    text = body.decode("utf-8", "replace").strip()
    try:
        told = json.loads(text)
    except ValueError:
        return _line(text), None, ""
    if isinstance(told, list) and told:
        told = told[0]
    if isinstance(told, dict):
        inner = next((told[name] for name in ("error", "detail", "message") if told.get(name)), told)
        if isinstance(inner, dict):
            field, kind = inner.get("param"), inner.get("type")
            code = kind if kind in _TOO_LONG else inner.get("code")
            words = _line(str(inner.get("message") or json.dumps(inner)))
            return words, field if isinstance(field, str) else None, code if isinstance(code, str) else ""
        return _line(inner if isinstance(inner, str) else json.dumps(inner)), None, ""
    return _line(text), None, ""


def _line(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_SAID else line[: MAX_SAID - 3] + "..."
