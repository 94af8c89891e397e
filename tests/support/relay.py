"""A relay between two networks: `python -m tests.support.relay FD ADDRESS PORT`, FD a socket that listens.

The listening socket was made outside and belongs to that network; the connections that it leads to are made in here.
It ends with its stdin.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress


async def run(listener: socket.socket, address: str, port: int) -> None:
    """Lead every connection to `address`, until told otherwise."""

    async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(address, port)
        except OSError:
            writer.close()
            return
        # What one side ends, the other hears as an end.
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))

    server = await asyncio.start_server(lead, sock=listener)
    async with server:
        await asyncio.get_running_loop().run_in_executor(None, _until_stdin_ends)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def _until_stdin_ends() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(run(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], int(sys.argv[3])))
