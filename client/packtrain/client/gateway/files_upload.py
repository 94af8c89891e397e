"""An upload, written to disk as it comes: multipart/form-data with one file and some short fields, all bounded."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import IO, Final

from python_multipart import multipart
from python_multipart.exceptions import FormParserError
from starlette.requests import ClientDisconnect, Request

from packtrain.broker.errors import InvalidParameter
from packtrain.client.gateway.failures import Refused
from packtrain.client.openai.faults import Fault

#: Of all fields but the file, and of the lines before them.
MAX_FIELDS_BYTES: Final = 64 * 1024


class _Form:
    """The parts of a form: the file goes to disk, fields are kept.

    Args:
        target: For the content of the part called `file`.
    """

    def __init__(self, target: IO[bytes], max_bytes: int) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.is_whole = False
        self._target = target
        self._max_bytes = max_bytes
        self._size = 0
        self._header = [b"", b""]
        self._name = ""
        self._is_file = False
        self._value = b""
        self._small = 0

    def begin(self) -> None:
        self._name, self._is_file, self._value = "", False, b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += self._bounded(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += self._bounded(data[start:end])

    def header_end(self) -> None:
        (name, value), self._header = self._header, [b"", b""]
        if name.lower() != b"content-disposition":
            return
        _, options = multipart.parse_options_header(value)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = self._name == "file"
        if self._is_file:
            if self.filename is not None:
                raise InvalidParameter("the form has two files; send one", field="file")
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace")

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._size += end - start
            if self._size > self._max_bytes:
                raise too_large(self._max_bytes)
            self._target.write(data[start:end])
        else:
            self._value += self._bounded(data[start:end])

    def end(self) -> None:
        if not self._is_file:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def finish(self) -> None:
        self.is_whole = True

    def _bounded(self, data: bytes) -> bytes:
        self._small += len(data)
        if self._small > MAX_FIELDS_BYTES:
            raise InvalidParameter(f"the fields of the form have more than {MAX_FIELDS_BYTES} bytes; send less")
        return data


async def receive(request: Request, target: Path, *, max_bytes: int) -> tuple[str, dict[str, str]]:
    """Write the file of a form to `target`; its name, and the other fields.

    Raises:
        InvalidParameter: It is no such form.
        Refused: The file has more than `max_bytes` (413), or the client left.
    """
    kind, options = multipart.parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidParameter("send the file as multipart/form-data, in a part called `file`", field="file")
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > max_bytes + 2 * MAX_FIELDS_BYTES:
        raise too_large(max_bytes)
    with open(target, "wb") as file:
        form = _Form(file, max_bytes)
        try:
            parser = multipart.MultipartParser(
                boundary,
                {
                    "on_part_begin": form.begin,
                    "on_part_data": form.data,
                    "on_part_end": form.end,
                    "on_header_field": form.header_field,
                    "on_header_value": form.header_value,
                    "on_header_end": form.header_end,
                    "on_end": form.finish,
                },
            )
            async for piece in request.stream():
                parser.write(piece)
            parser.finalize()
            if not form.is_whole:
                raise InvalidParameter("the form ends before its last boundary; send all of it")
        except ClientDisconnect:
            raise Refused(Fault(400, "invalid_request_error", "incomplete_body", "the body broke off")) from None
        except FormParserError as error:
            raise InvalidParameter(f"the form cannot be read ({error}); send multipart/form-data") from None
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())  # a 200 means that it outlives a power cut
    if form.filename is None:
        raise InvalidParameter("the form has no part called `file`; send the file in one", field="file")
    return form.filename, form.fields


def too_large(limit: int) -> Refused:
    """The answer to a file beyond the limit."""
    message = f"the file has more than {limit} bytes (PACKTRAIN_HTTP_MAX_FILE); split it"
    return Refused(Fault(413, "invalid_request_error", "file_too_large", message, "file"))
