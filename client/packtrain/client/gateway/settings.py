"""Settings of a gateway, from the environment: `PACKTRAIN_HTTP_<NAME>`."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from packtrain.broker.errors import SetupError
from packtrain.broker.settings import read_settings
from packtrain.client.gateway.image_urls import place_of


class GatewaySettings(BaseSettings):
    """How a gateway behaves."""

    model_config = SettingsConfigDict(env_prefix="PACKTRAIN_HTTP_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="address to listen on; beyond loopback only with API keys")
    port: int = Field(8080, ge=0, le=65_535, description="0: a free one")
    tls_cert: Path | None = Field(None, description="PEM file of a certificate and its chain: speak HTTPS only")
    tls_key: Path | None = Field(None, description="PEM file of its private key, without a password")
    hold_s: float = Field(
        1.0,
        ge=0,
        description="a stream begins this long after its request at the latest; until then an error still has its own "
        "status, seconds",
    )
    keepalive_s: float = Field(
        10.0, gt=0, description="a comment goes into a stream after so long without text, seconds"
    )
    max_body: int = Field(32 * 1024 * 1024, ge=1024, description="bytes of one request")
    max_file: int = Field(200 * 1024 * 1024, ge=1, description="bytes of one uploaded file")
    max_depth: int = Field(64, ge=8, le=500, description="levels of JSON in one request")
    slow_s: float = Field(
        20.0, gt=0, description="a request has so long to come in, and one more for each 500 bytes that came, seconds"
    )
    cors: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins of web pages that may call, separated by ','; '*': all"
    )

    image_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="hosts that images may be fetched from by URL, separated by ','; unset: none",
    )
    max_wait_s: float | None = Field(
        None, gt=0, description="requests that would begin later get a 503 instead, seconds; unset: they wait"
    )

    flower_url: str = Field("", pattern=r"^(https?://\S+)?$", description="where browsers find Flower, for a link")
    grafana_url: str = Field("", pattern=r"^(https?://\S+)?$", description="where browsers find Grafana, for a link")

    @property
    def is_loopback(self) -> bool:
        """True when only this machine reaches it."""
        return is_loopback(self.host)

    @field_validator("image_hosts")
    @classmethod
    def _are_places(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            place_of(host)
        return value

    @field_validator("cors", "image_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip())
        return value


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_reach(host: str, *, has_keys: bool) -> None:
    """Refuse to let other machines in without API keys.

    Raises:
        SetupError
    """
    if not has_keys and not is_loopback(host):
        raise SetupError(
            f"{host} can be reached from other machines, and there is no API key; start on 127.0.0.1, create one with "
            "`packtrain keys create NAME`, and start anew"
        )


def check_tls(settings: GatewaySettings) -> None:
    """Look at the certificate and its key, before a server says in its own words what is wrong with them.

    Raises:
        SetupError: One is missing, or they cannot be read, or do not belong together.
    """
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise SetupError(
            "a certificate needs its key, and a key its certificate; give both or none: --tls-cert with --tls-key, "
            "PACKTRAIN_HTTP_TLS_CERT with PACKTRAIN_HTTP_TLS_KEY"
        )
    if settings.tls_cert is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SetupError(
            f"cannot serve HTTPS with {settings.tls_cert} and {settings.tls_key} ({error}); name PEM files of a "
            "certificate and of its key without a password: `deploy/tls/make-ca.sh` makes such"
        ) from None


def _no_password() -> str:
    raise ValueError("the key has a password, and nobody is here to be asked for it")


def load_gateway_settings(**overrides: object) -> GatewaySettings:
    """The settings of this process, from the environment and these overrides.

    Raises:
        SetupError: A variable has a wrong value; the message names it.
    """
    return read_settings(GatewaySettings, overrides)
