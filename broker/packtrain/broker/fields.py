"""What every message is made of: what crosses a process boundary, versioned, frozen and checked on arrival.

Clients' input refuses unknown fields, so that a misspelt option is an error and not a silent default. Reports between
our own processes ignore unknown fields, so that nodes of two versions can share a fleet.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

from packtrain.broker.errors import InvalidParameter


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not valid Unicode at position {error.start}; decode the bytes as UTF-8 first") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
SafeId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")]

#: How an instance computes: as fast as it can, or so that company, chunks and restarts change no bit of an answer.
Numerics = Literal["fast", "deterministic"]
#: What it does for that. `batched`: many sequences in a step, by kernels that compute each row alone. `serial`: one
#: sequence in a step, its prompt in fixed chunks, for models and builds where no such kernels can be had.
Recipe = Literal["fast", "batched", "serial"]

_M = TypeVar("_M", bound=BaseModel)
#: Of what was wrong with a field, so much is looked at: it is cut to 60 characters.
_SHOWN = 60


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


def invalid(error: ValidationError) -> InvalidParameter:
    """pydantic's first complaint as one sentence for a person."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "request"
    value = first.get("input")
    if isinstance(value, str | bytes | list | tuple):
        value = value[:_SHOWN]  # a million of them would take seconds
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return InvalidParameter(f"{where} = {shown}: {first['msg']}; correct this field", field=where)


def dump_hash(message: BaseModel) -> dict[str, str]:
    """A message as the fields of a Redis hash: each value is JSON."""
    return {name: json.dumps(value) for name, value in message.model_dump(mode="json").items()}


def load_hash(cls: type[_M], fields: dict[str, str]) -> _M:
    """The message again from the fields of a Redis hash."""
    return cls.model_validate({name: json.loads(value) for name, value in fields.items()})


def _depth(value: Any, limit: int) -> int:
    if limit < 0 or not isinstance(value, dict | list | tuple):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(item, limit - 1) for item in inner), default=0)
