"""A kept connection to a gateway by a bare socket: cheap enough to have hundreds, and no client library is measured."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Connection:
    """One connection, for one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host
        self.job = ""  # of the last request

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Connection]:
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield cls(reader, writer, host)
        finally:
            writer.close()

    async def complete(self, **body: object) -> bytes:
        """The whole body of an answer."""
        headers = await self._send(body)
        return await self._reader.readexactly(int(headers["content-length"]))

    async def stream(self, **body: object) -> AsyncIterator[bytes]:
        """What stands behind `data: ` in each event of a stream, without the last, [DONE]."""
        await self._send({"stream": True, **body})
        while (line := await self._reader.readline()) != b"data: [DONE]\n":
            if not line:
                raise ConnectionError("the stream ended without [DONE]")
            if line.startswith(b"data: "):
                yield line[6:]
        while (line := await self._reader.readline()) != b"0\r\n":  # of the chunked body
            if not line:
                raise ConnectionError("the response has no end")
        await self._reader.readline()

    def reset(self) -> None:
        """Break the connection off, as the kernel does for a process that was killed."""
        self._writer.transport.abort()

    async def _send(self, body: dict[str, object]) -> dict[str, str]:
        content = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(content)}\r\n\r\n"
        self._writer.write(head.encode() + content)
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        assert status.split()[1] == "200", status
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.job = headers["x-packtrain-job"]
        return headers
