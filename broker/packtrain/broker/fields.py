"""What every message is made of: the two kinds of base, and fields that more than one module needs."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not valid Unicode at position {error.start}; decode the bytes as UTF-8 first") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
SafeId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")]


class Input(BaseModel):
    """From clients: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Report(BaseModel):
    """Between our own processes: unknown fields come from a newer version and are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


def check_json(value: object, *, max_chars: int, max_depth: int) -> None:
    """Refuse what cannot be sent as JSON, or is larger or deeper than it need be.

    Raises:
        ValueError
    """
    if _depth(value, max_depth) > max_depth:
        raise ValueError(f"is nested deeper than {max_depth} levels; make it flatter")
    try:
        size = len(_encodable(json.dumps(value, allow_nan=False, ensure_ascii=False)))
    except TypeError as error:
        raise ValueError(f"is no JSON ({error})") from None
    if size > max_chars:
        raise ValueError(f"has {size} characters as JSON, at most {max_chars} are allowed")


def _depth(value: Any, limit: int) -> int:
    if limit < 0 or not isinstance(value, dict | list | tuple):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(item, limit - 1) for item in inner), default=0)
