"""What the translations of several APIs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from packtrain.broker.errors import InvalidParameter
from packtrain.client.openai.bodies import EXTRAS, Body


def extras_in(body: Body) -> dict[str, Any]:
    """What a body says beyond its API, which OpenAI's bodies say by the same names."""
    return body.model_dump(include={"model", "user", *EXTRAS}, exclude_none=True)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that say something."""
    return {name: value for name, value in fields.items() if value is not None}


def text_part(text: object) -> dict[str, Any]:
    """A part of a turn that is text."""
    return {"type": "text", "text": text}


def image_part(url: object) -> dict[str, Any]:
    """A part of a turn that is an image, as OpenAI's chats have it."""
    return {"type": "image_url", "image_url": {"url": url}}


def unsupported(where: str, kind: object, remedy: str) -> InvalidParameter:
    """The refusal of a part of a request that says what kind it is."""
    return InvalidParameter(f"{where} is of type {kind!r}; {remedy}", field=where)


def mapping(value: object, where: str) -> Mapping[str, Any]:
    """A value that has to be an object.

    Raises:
        InvalidParameter
    """
    if isinstance(value, Mapping):
        return value
    raise InvalidParameter(f"{where} = {value!r:.60} is no object; send one", field=where)


def listing(value: object, where: str) -> Sequence[Any]:
    """A value that has to be a list; null: an empty one.

    Raises:
        InvalidParameter
    """
    if value is None:
        return ()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    raise InvalidParameter(f"{where} = {value!r:.60} is no list; send one", field=where)


def named_choice(name: object) -> dict[str, Any]:
    """The one tool that has to be called, as OpenAI's chats name it."""
    return {"type": "function", "function": {"name": name}}
