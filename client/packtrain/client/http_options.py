"""How a gateway is reached: its URL, the key, certificates and proxies, as the HTTP client takes them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from packtrain.broker.connection import masked
from packtrain.broker.errors import SetupError
from packtrain.client.native_wire import BEAT_S, PREFIX

#: Seconds. A gateway whose broker is away says so after some 10; a stream says every `BEAT_S` that it lives.
TIMEOUT = httpx2.Timeout(30.0, connect=5.0, pool=None)
FEED_TIMEOUT = httpx2.Timeout(30.0, connect=5.0, pool=None, read=5 * BEAT_S)
#: Each waiting thread or task holds a connection. One that is kept for the next request is dropped before a gateway
#: would, after 5 s.
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=4.0)


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """A gateway, as it is reached."""

    url: str  # without `/v1`
    api_key: str = field(default="", repr=False)
    ca: Path | None = None  # certificates to trust; None: those that the system trusts

    def client(self) -> dict[str, Any]:
        """Arguments for an HTTP client, blocking or asynchronous.

        Raises:
            SetupError: The certificates cannot be read.
        """
        headers = {"User-Agent": f"packtrain/{version('packtrain')}"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return {
            "base_url": self.url + PREFIX,
            "headers": headers,
            "timeout": TIMEOUT,
            "limits": LIMITS,
            "verify": _context(self.ca) if self.ca else True,
            "trust_env": False,  # or a .netrc would replace the key
            "proxy": _proxy(self.url),
        }


def parse_options(url: str, api_key: str = "", ca: Path | None = None) -> HttpOptions:
    """A gateway by what users say of it. Behind its host may stand a path, and OpenAI's `/v1`, which is left out.

    >>> parse_options("https://ai.example/fleet/v1/").url
    'https://ai.example/fleet'

    Raises:
        SetupError: It cannot be.
    """
    try:
        parts = urlsplit(url)
        is_good = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:  # of a port that is no number, of brackets that do not close
        is_good = False
    if not is_good:
        raise SetupError(f"PACKTRAIN_URL = {masked(url)!r} is no gateway; use http://host:8080 or https://host")
    if parts.username is not None or parts.password is not None:
        raise SetupError(
            f"PACKTRAIN_URL = {masked(url)!r} holds a user; a gateway takes an API key instead: give it as "
            "PACKTRAIN_API_KEY or `api_key`"
        )
    if not api_key.isascii() or not api_key.isprintable():
        raise SetupError("PACKTRAIN_API_KEY holds characters that no key has; copy it again, without line ends")
    return HttpOptions(url.rstrip("/").removesuffix("/v1").rstrip("/"), api_key, ca)


def _context(ca: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError is one, too
        raise SetupError(f"PACKTRAIN_CA = {str(ca)!r} holds no certificates ({error}); name a PEM file") from None


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a host elsewhere."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("localhost", "::1") or host.startswith("127.") or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")
