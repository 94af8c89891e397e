"""TLS connections that trust the certificates which their URL names, and no others.

redis-py trusts those of the system besides: whoever gets a certificate for the broker's name from any authority in the
world could stand between. It also reads all of them at each connect, 28 ms of CPU time of 32. So where a URL names
certificates (`ssl_ca_certs`), these connections use a context that knows nothing else, made once.
"""

from __future__ import annotations

import ssl
from functools import cache
from socket import socket
from typing import Any

from redis import asyncio as aioredis
from redis.connection import SSLConnection


@cache
def pinned_context(ca: str) -> ssl.SSLContext:
    """Trusts what these certificates have signed; one for all connections.

    Raises:
        OSError: The file cannot be read, or holds none (`ssl.SSLError`).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=ca)
    return context


class PinnedConnection(SSLConnection):
    """For blocking clients, and for kombu."""

    def _wrap_socket_with_ssl(self, sock: socket) -> ssl.SSLSocket:
        if self.ca_certs and self.cert_reqs is ssl.CERT_REQUIRED and self.check_hostname:
            return pinned_context(self.ca_certs).wrap_socket(sock, server_hostname=self.host)
        wrapped: ssl.SSLSocket = super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]
        return wrapped


class AsyncPinnedConnection(aioredis.SSLConnection):
    """For asyncio."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        said = self.ssl_context
        if said.ca_certs and said.cert_reqs is ssl.CERT_REQUIRED and said.check_hostname:
            said.context = pinned_context(said.ca_certs)
