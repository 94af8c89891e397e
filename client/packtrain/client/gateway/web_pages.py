"""Pages of web sites, told apart while there is no API key.

A gateway on loopback lets everybody in then who reaches it: processes of this machine. Pages of other web sites reach
it as well, in the operator's browser, so those are told apart by `Origin`, and by a `Host` that no name of this machine
is (a site can let its own name point here).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.requests import Request

from packtrain.client.gateway.failures import Refused
from packtrain.client.gateway.settings import is_loopback
from packtrain.client.openai import Fault

#: What no public name ends with, so that no web site can have it.
_PRIVATE_NAMES = (".local", ".internal")


def refuse_web_pages(request: Request, allowed: Sequence[str]) -> None:
    """Refuse what a page of some web site sends in the browser of this machine's user.

    Raises:
        Refused
    """
    host = _host_of(f"//{request.headers.get('host', '')}")
    if not (_is_here(host) or host.endswith(_PRIVATE_NAMES) or _is_address(host)):
        raise _web_page(f"{host!r} is no name of this machine")
    origin = request.headers.get("origin")
    if origin is None or "*" in allowed or origin in allowed:
        return
    # Other schemes are those of programs: extensions, editors, desktop applications. "null" is any page that hides.
    if origin == "null" or (origin.startswith(("http://", "https://")) and not _is_here(_host_of(origin))):
        raise _web_page(f"pages of {origin!r} may not call this gateway")


def _web_page(what: str) -> Refused:
    message = f"{what}; while there are no API keys, allow its origin with --cors, or create a key: `packtrain keys`"
    return Refused(Fault(403, "invalid_request_error", "origin_not_allowed", message))


def _host_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return "?"


def _is_here(host: str) -> bool:
    """True for names of this machine alone; an HTTP/1.0 client sends none."""
    return host in ("", socket.gethostname().lower()) or host.endswith(".localhost") or is_loopback(host)


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False
