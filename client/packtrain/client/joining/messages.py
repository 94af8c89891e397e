"""What the pairing service and a machine that joins say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import Field

from packtrain.broker.connection import tls_options
from packtrain.broker.errors import SetupError
from packtrain.broker.fields import Report, SafeId
from packtrain.broker.settings import split_address

MAX_BODY = 8192  # bytes; ours have some 200, with a certificate 2,500
_Hex = Field(pattern=r"^([0-9a-f]{2}){1,3072}$")


class Hello(Report):
    """A machine wants to join."""

    invite: str = Field("", max_length=64, description="empty: the one whose code is asked for")
    element: str = _Hex


class Welcome(Report):
    """The other half of the exchange."""

    session: str
    element: str = _Hex


class Confirm(Report):
    """It knows the secret: `Guest`, sealed."""

    session: str = Field(max_length=64)
    sealed: str = _Hex


class Admitted(Report):
    """It does: `BrokerPlace`, sealed."""

    sealed: str = _Hex


class Guest(Report):
    """Who joins."""

    node: SafeId


class BrokerPlace(Report):
    """The way to the broker. Secret."""

    fleet: str
    scheme: str
    host: str = Field("", description="empty: the address that the pairing service was reached at")
    port: int
    db: str = "0"
    username: str = ""
    password: str = ""
    ca: str = Field("", max_length=4096, description="PEM: who signs its certificate; empty: whom the system trusts")


@dataclass(frozen=True, slots=True)
class Joined:
    """What a machine is told that knew the secret."""

    url: str  # of the broker, with our password
    fleet: str  # its name
    ca: str  # PEM: who signs the broker's certificate; empty: whom the system trusts, or there is none


def place_of(url: str, fleet: str, reached_at: str = "") -> BrokerPlace:
    """What to tell of a broker. A loopback address means: where we are. `reached_at`: `address:port` instead.

    Raises:
        SetupError: The certificates that the URL names cannot be read.
    """
    parts = urlsplit(url)
    host, port = split_address(reached_at) if reached_at else (parts.hostname or "", parts.port or 6379)
    return BrokerPlace(
        fleet=fleet,
        scheme=parts.scheme,
        host="" if host in ("localhost", "::1") or host.startswith("127.") else host,
        port=port,
        db=parts.path.strip("/") or "0",
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        ca=_certificates(url),
    )


def _certificates(url: str) -> str:
    file = (tls_options(url) or {}).get("ssl_ca_certs")
    try:
        return Path(file).read_text() if file else ""
    except OSError as error:
        raise SetupError(f"cannot read the broker's certificates in {file} ({error.strerror})") from error
