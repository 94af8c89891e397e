"""Connections led from one side to the other: on one side plain and of this machine, on the other TLS over the network.

A machine or a cable that vanishes says no goodbye. So the kernel asks after the other side of a connection that is
silent, and gives it up after `DEAD_S`; then the side of this machine is closed, too, and whoever waits there knows.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from contextlib import suppress

from packtrain.workers.tunnel.handshake import Role, is_from

logger = logging.getLogger(__name__)

#: A side that does not answer for so long is dead, seconds.
DEAD_S = 10
#: Between asking and asking again, seconds.
ASK_S = 2
#: Of connecting and of the handshake.
CONNECT_S = 10.0
#: At once: a head asks before it connects, and a stranger may not hold places.
MAX_CONNECTIONS = 4
PIECE_BYTES = 1024 * 1024


class Forwarder:
    """One end.

    Args:
        tls: Of the side that crosses the network.
        peer: Certificate of the other end, PEM.
        target: Where connections are led to: the other end, or a port of this machine.
    """

    def __init__(self, role: Role, *, tls: ssl.SSLContext, peer: str, target: tuple[str, int]) -> None:
        self._role = role
        self._tls = tls
        self._peer = peer
        self._target = target
        self._num = 0

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Begin. Port 0: a free one.

        Raises:
            OSError: The address cannot be used.
        """
        if self._role == "entry":
            return await asyncio.start_server(self._lead, host, port, limit=PIECE_BYTES)
        return await asyncio.start_server(
            self._lead, host, port, limit=PIECE_BYTES, ssl=self._tls, ssl_handshake_timeout=CONNECT_S
        )

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._num >= MAX_CONNECTIONS or (self._role == "exit" and not self._knows(writer)):
            writer.transport.abort()
            return
        self._num += 1
        ends = [writer]
        try:
            far_reader, far = await self._connect()
            ends.append(far)
            for end in ends:
                _watch(end)
            pumps = {asyncio.create_task(_pump(reader, far)), asyncio.create_task(_pump(far_reader, writer))}
            # What one side ends is over: nobody here goes on in one direction only.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            logger.warning("Cannot lead to %s:%d: %s", *self._target, reason, extra={"event": "tunnel.failed"})
        finally:
            self._num -= 1
            for end in ends:
                end.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = self._tls if self._role == "entry" else None
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(*self._target, limit=PIECE_BYTES, ssl=context)
        if self._role == "entry" and not self._knows(writer):
            writer.transport.abort()
            raise OSError("the other end shows another certificate than the fleet has of it")
        return reader, writer

    def _knows(self, writer: asyncio.StreamWriter) -> bool:
        connection = writer.get_extra_info("ssl_object")
        return connection is not None and is_from(connection, self._peer)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
            await writer.drain()
        # What was written goes out before the end does.
        writer.close()
        await writer.wait_closed()


def _watch(writer: asyncio.StreamWriter) -> None:
    found: socket.socket = writer.get_extra_info("socket")
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, ASK_S)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, ASK_S)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, (DEAD_S - ASK_S) // ASK_S)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_S * 1000)
