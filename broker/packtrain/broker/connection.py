"""Connections to the broker: one way to make a client, sync or async, with timeouts that end a half-open link."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from redis import Redis
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    TimeoutError,
)
from redis.retry import Retry

from packtrain.broker.errors import BrokerUnavailable, SetupError
from packtrain.broker.pinning import AsyncPinnedConnection, PinnedConnection

SOCKET_TIMEOUT_S = 5.0
#: A blocking read returns by itself after this long, well inside the socket timeout.
BLOCK_MS = 2_000
#: Tries per command after the first, 0.05 to 1 s apart: a restart of Redis takes 1 to 2 s.
RETRIES = 6
#: Of one client. Each waiting thread holds one; redis-py 8 would refuse the 101st ("Too many connections").
#: As many as a Redis server takes by default.
MAX_CONNECTIONS = 10_000

_OPTIONS: dict[str, Any] = {
    "max_connections": MAX_CONNECTIONS,
    "decode_responses": True,
    "socket_timeout": SOCKET_TIMEOUT_S,
    "socket_connect_timeout": SOCKET_TIMEOUT_S,
    "socket_keepalive": True,
    "health_check_interval": 15,
    "retry_on_error": [ConnectionError, TimeoutError, BusyLoadingError],
}


def connect(url: str, *, name: str, retries: int = RETRIES) -> Redis:
    """A client for threads of one process. Connects on first use.

    Args:
        url: redis:// or rediss://
        name: Shown by CLIENT LIST.
        retries: Tries after the first for each command, on a lost connection only. Every script of ours may run twice
            without harm: submit, emit and finish are idempotent; a claim whose reply was lost leaves a lease to lapse.
    """
    _check(url)
    client = Redis.from_url(
        url,
        **_OPTIONS,
        client_name=name,
        retry=Retry(ExponentialWithJitterBackoff(cap=1.0, base=0.05), retries),
    )
    if url.startswith("rediss://"):
        client.connection_pool.connection_class = PinnedConnection
    return client


def connect_async(url: str, *, name: str, retries: int = RETRIES) -> aioredis.Redis:
    """The same for one event loop."""
    _check(url)
    client = aioredis.Redis.from_url(
        url,
        **_OPTIONS,
        client_name=name,
        retry=AsyncRetry(ExponentialWithJitterBackoff(cap=1.0, base=0.05), retries),
    )
    if url.startswith("rediss://"):
        client.connection_pool.connection_class = AsyncPinnedConnection
    return client


def trusting(url: str, ca: Path | None) -> str:
    """The URL with the certificates that the broker's must be signed by, if it speaks TLS and names none itself."""
    parts = urlsplit(url)
    if ca is None or parts.scheme != "rediss" or "ssl_ca_certs=" in parts.query:
        return url
    return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, f"ssl_ca_certs={quote(str(ca))}")))))


def tls_options(url: str) -> dict[str, Any] | None:
    """What the URL says of TLS, as arguments of a connection; None: it speaks none."""
    parts = urlsplit(url)
    if parts.scheme != "rediss":
        return None
    said = {name: value for name, value in parse_qsl(parts.query) if name.startswith("ssl_")}
    options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED, **said}
    if "ssl_check_hostname" in said:
        options["ssl_check_hostname"] = said["ssl_check_hostname"].lower() in ("true", "1", "yes")
    if said.get("ssl_cert_reqs") in ("none", "optional", "required"):
        options["ssl_cert_reqs"] = ssl.VerifyMode[f"CERT_{said['ssl_cert_reqs'].upper()}"]
    return options


def unavailable(url: str, error: RedisError) -> BrokerUnavailable | SetupError:
    """The error a user should see for a client that could not talk to the broker."""
    if isinstance(error, OutOfMemoryError):
        return SetupError(
            f"the memory of the broker at {masked(url)} is full; wait until old jobs expire (24 h after their end), or "
            "give it more with `packtrain up --broker-memory 2gb` (maxmemory in redis.conf)"
        )
    if isinstance(error, NoPermissionError):
        return SetupError(
            f"the broker's user at {masked(url)} may not do that ({error}); do it on the head, where `packtrain up` "
            "runs, or as another user: `packtrain broker url` there shows them"
        )
    if isinstance(error, AuthenticationError):
        return SetupError(
            f"the broker at {masked(url)} refused the password; correct it in PACKTRAIN_URL, "
            "or join anew with what `packtrain invite` prints: `packtrain node --join TOKEN`"
        )
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return SetupError(
            f"the certificate of the broker at {masked(url)} is not one that we trust ({str(error).rstrip('.')}); name "
            "those that sign it with PACKTRAIN_CA (a PEM file; `ca.pem` of the head), or join anew"
        )
    return BrokerUnavailable(url=masked(url), reason=str(error).rstrip(".") or type(error).__name__)


def masked(url: str) -> str:
    """`url` without its password, for people and logs."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "***"
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("redis", "rediss") and parts.port != 0
    except ValueError:  # of a port that is no number, of brackets that do not close
        is_good = False
    if url.startswith(("http://", "https://")):
        raise SetupError(
            f"PACKTRAIN_URL = {masked(url)!r} is a gateway, and this needs the broker itself; run it on a machine of "
            "the fleet, or use the broker's redis:// URL"
        )
    if not is_good:
        raise SetupError(
            f"PACKTRAIN_URL = {masked(url)!r} is no broker; use redis://host:port/0 or rediss://host:port/0"
        )
