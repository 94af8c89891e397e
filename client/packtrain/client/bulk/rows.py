"""One line of a bulk file as a row: OpenAI's batch form, or a plain prompt; or what is wrong with it.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": ..., "messages": [...]}}
    {"prompt": "Name a fruit."}                      one user turn; other fields beside it belong to the body
    {"messages": [{"role": "user", ...}]}

Faults carry OpenAI's codes, the line and the parameter, so that one look at a list of them mends a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

#: Bytes of one line. An image in a data URI is some megabytes.
MAX_LINE_BYTES = 16 * 1024 * 1024
#: Characters of a custom_id.
MAX_ID_CHARS = 512
#: What a row may ask for, without the `/v1` before it.
ENDPOINTS = ("/chat/completions", "/completions", "/embeddings")
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Row:
    """A request of a bulk file."""

    custom_id: str
    url: str  # of ENDPOINTS, with /v1 before it
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a line, as OpenAI's batches say it."""

    code: str
    message: str
    line: int  # the first is 1
    param: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in a batch's `errors.data`."""
        return {"code": self.code, "message": self.message, "param": self.param, "line": self.line}


class RowFault(Exception):
    """A line is no row, or a row asks for something that cannot be."""

    def __init__(self, fault: Fault, custom_id: str | None = None, *, is_request: bool = False) -> None:
        super().__init__(fault.message)
        self.fault = fault
        self.custom_id = custom_id  # as far as it could be read
        self.is_request = is_request  # a whole row, whose body the gateway would refuse


@dataclass(frozen=True, slots=True)
class Defaults:
    """What rows that do not say it themselves get.

    Attributes:
        body: Fields of each body, such as `model` and `max_tokens`.
        url: Of plain rows; empty: chat for prompts and messages, embeddings for `input`.
        endpoint: The only url that rows may have; empty: any of `ENDPOINTS`.
        plain: Rows may be plain prompts. False: only OpenAI's form.
    """

    body: Mapping[str, Any] = field(default_factory=dict)
    url: str = ""
    endpoint: str = ""
    plain: bool = True


def parse_row(text: bytes, line: int, defaults: Defaults) -> Row:
    """The row in a line.

    Raises:
        RowFault
    """
    fields = _object(text, line)
    if defaults.plain and "body" not in fields and fields.keys() & {"prompt", "messages", "input"}:
        return _plain(fields, line, defaults)
    custom_id = _text(fields, "custom_id", line, None)
    if len(custom_id) > MAX_ID_CHARS:
        _refuse(
            "invalid_request", f"custom_id has {len(custom_id)} characters, at most {MAX_ID_CHARS}", line, "custom_id"
        )
    method = _text(fields, "method", line, custom_id)
    if method.upper() != "POST":
        _refuse("invalid_method", f"method is {method!r}; every row is a POST", line, "method", custom_id)
    url = _url(_text(fields, "url", line, custom_id), line, defaults, custom_id)
    if "body" not in fields:
        _refuse("missing_required_parameter", "body is missing", line, "body", custom_id)
    body = fields["body"]
    if not isinstance(body, dict):
        _refuse(
            "invalid_request",
            f"body is {_kind(body)}; it is the JSON object that {url} takes",
            line,
            "body",
            custom_id,
        )
    return Row(custom_id, url, _checked({**defaults.body, **body}, line, custom_id))


def id_hash(custom_id: str) -> bytes:
    """Sixteen bytes that stand for a custom_id: two of a billion different ones are equal with a chance of 1e-21."""
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=_ID_BYTES).digest()


def _plain(fields: dict[str, Any], line: int, defaults: Defaults) -> Row:
    custom_id = fields.pop("custom_id", fields.pop("id", f"row-{line}"))
    if not isinstance(custom_id, str | int):
        _refuse("invalid_request", f"custom_id is {_kind(custom_id)}; give a text", line, "custom_id")
    custom_id = str(custom_id)
    url = str(fields.pop("url", "") or defaults.url)
    if not url:
        url = "/v1/embeddings" if "input" in fields else "/v1/chat/completions"
    url = _url(url, line, defaults, custom_id)
    body = {**defaults.body, **{name: value for name, value in fields.items() if name != "method"}}
    if url == "/v1/chat/completions" and "prompt" in body and "messages" not in body:
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    if url == "/v1/embeddings" and "prompt" in body and "input" not in body:
        body["input"] = body.pop("prompt")
    return Row(custom_id, url, _checked(body, line, custom_id))


def _checked(body: dict[str, Any], line: int, custom_id: str) -> dict[str, Any]:
    model = body.get("model")
    if model is None:
        _refuse("missing_required_parameter", "body.model is missing; name a model", line, "body.model", custom_id)
    if not isinstance(model, str):
        _refuse("invalid_request", f"body.model is {_kind(model)}; name a model", line, "body.model", custom_id)
    if body.get("stream"):
        _refuse(
            "streaming_unsupported", "rows of a file cannot be streamed; leave stream out", line, "body.stream",
            custom_id,
        )  # fmt: skip
    return body


def _url(url: str, line: int, defaults: Defaults, custom_id: str) -> str:
    path = "/" + url.strip("/").removeprefix("v1/")
    if path not in ENDPOINTS:
        known = ", ".join(f"/v1{name}" for name in ENDPOINTS)
        _refuse("invalid_url", f"url is {url[:200]!r}; use one of {known}", line, "url", custom_id)
    if defaults.endpoint and f"/v1{path}" != defaults.endpoint:
        _refuse(
            "invalid_url",
            f"url is {url!r}, and the endpoint of this batch is {defaults.endpoint}; all rows have the same",
            line,
            "url",
            custom_id,
        )
    return f"/v1{path}"


def _object(text: bytes, line: int) -> dict[str, Any]:
    if len(text) > MAX_LINE_BYTES:
        _refuse("invalid_json_line", f"the line is longer than {MAX_LINE_BYTES} bytes; split it", line)
    try:
        fields = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        _refuse("invalid_json_line", "the JSON is nested too deeply; make it flatter", line)
    except ValueError as error:  # of bytes that are no UTF-8, too
        _refuse("invalid_json_line", f"this line is no JSON ({error}); write one JSON object on each line", line)
    if not isinstance(fields, dict):
        _refuse("invalid_json_line", f"this line is {_kind(fields)}; write one JSON object on each line", line)
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _text(fields: Mapping[str, Any], name: str, line: int, custom_id: str | None) -> str:
    value = fields.get(name)
    if value is None or value == "":
        _refuse("missing_required_parameter", f"{name} is missing", line, name, custom_id)
    if not isinstance(value, str):
        _refuse("invalid_request", f"{name} is {_kind(value)}; give a text", line, name, custom_id)
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _refuse(code: str, message: str, line: int, param: str | None = None, custom_id: str | None = None) -> NoReturn:
    raise RowFault(Fault(code, message, line, param), custom_id)
