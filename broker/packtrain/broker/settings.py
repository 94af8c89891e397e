"""Settings: read once per process from the environment, then passed on. Nothing else reads the environment.

Every variable is `PACKTRAIN_<NAME>`; a wrong value stops the process at its start and names the variable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from packtrain.broker.connection import trusting
from packtrain.broker.errors import SetupError
from packtrain.broker.ids import NodeId, default_node_id, is_safe_id
from packtrain.broker.node_wishes import parse_label

S = TypeVar("S", bound=BaseSettings)


def _default_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "packtrain"


class Settings(BaseSettings):
    """What a Packtrain process needs to know about where it is."""

    model_config = SettingsConfigDict(env_prefix="PACKTRAIN_", frozen=True, extra="ignore")

    url_file: Path | None = Field(None, description="file that holds the URL, where PACKTRAIN_URL is not set")
    password_file: Path | None = Field(None, description="file that holds the broker's password, for a URL without one")
    api_key_file: Path | None = Field(None, description="file that holds the key, where PACKTRAIN_API_KEY is not set")
    join_file: Path | None = Field(
        None,
        description="file that holds what `packtrain node --join` takes, for a machine that nobody sits at: a token is "
        "used while it knows no fleet, a URL always",
    )
    url: str = Field(
        "",
        validate_default=True,
        description="broker of the fleet, redis:// or rediss://, or for clients a gateway, http:// or https://; "
        "empty: the fleet of this home",
    )
    api_key: str = Field("", repr=False, validate_default=True, description="for a gateway that asks for one")
    ca: Path | None = Field(
        None, description="PEM file of the certificates that those of the broker or gateway must be signed by"
    )
    home: Path = Field(default_factory=_default_home, description="folder for data, logs, sockets and models")
    models: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="model folders besides <home>/models, separated by ':'"
    )
    node: str = Field(default_factory=default_node_id, description="id of this node")
    memory: int | None = Field(
        None, ge=1, description="bytes that instances may use together; unset: 80 % of the total"
    )
    cores: int | None = Field(None, ge=1, description="cores that instances may use together; unset: all it may")
    labels: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict, description="of this node, for selectors: key=value, separated by ','"
    )
    lease_ms: int = Field(15_000, ge=500, description="how long a job stays with a silent instance, ms")
    max_waiting: int = Field(100_000, ge=1, description="jobs that may wait for one model before QueueFull")
    max_waiting_user: int | None = Field(
        None, ge=1, description="jobs of one user that may wait for one model before QueueFull; unset: any number"
    )
    keep_s: float = Field(
        86_400,
        ge=1,
        le=30 * 86_400,
        description="how long a job's record stays after its end, seconds",
    )
    offer_wait_s: float = Field(
        600, gt=0, description="how long jobs wait for a model that no live node offers, seconds; then they fail"
    )
    max_wait_s: float = Field(
        60,
        ge=0,
        description="after this long without an instance jobs may drive out a model that has work itself, seconds",
    )
    min_residency_s: float = Field(
        10,
        ge=0,
        description="how long an instance stays though its room is wanted, from its first token on if it is at work, "
        "seconds",
    )
    events: bool = Field(False, description="send Celery events, which Flower needs; costs throughput")
    stall_s: float = Field(60, gt=0, description="an engine without a sign of life for this long is restarted, seconds")
    drain_s: float = Field(30, ge=0, description="how long running jobs may finish when an instance drains, seconds")
    load_timeout_s: float = Field(600, gt=0, description="an instance that is not READY by then has failed, seconds")
    files_address: str = Field(
        "127.0.0.1:0",
        description="address:port where other nodes may read this one's model files, port 0 is a free one; "
        "empty: nowhere",
    )
    files_reached_at: str = Field(
        "",
        description="address:port by which other nodes reach that, where it is another: of a container's host; "
        "empty: the same",
    )
    files: Path | None = Field(
        None, description="folder of files that clients upload, and of batches; unset: <home>/files"
    )
    files_rate: int | None = Field(None, ge=1024, description="bytes per second that all of them may read together")
    fetch_stall_s: float = Field(
        60, gt=0, description="a fetch of a model file without a sign of life of its source fails after this, seconds"
    )
    split: bool = Field(
        False, description="this node may hold a part of a model with other nodes; it measures its links to them"
    )
    split_port: int = Field(
        0,
        ge=0,
        le=65_000,
        description="other nodes' tunnels to shards come to this port and the next 15; 0: to any free ones",
    )
    scripted: bool = Field(False, description="offer scripted models instead of GGUF files; for tests and benchmarks")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")

    @field_validator("url_file", "password_file", "api_key_file")
    @classmethod
    def _holds_something(cls, value: Path | None) -> Path | None:
        if value is not None:
            secret_in(value)
        return value

    @field_validator("url")
    @classmethod
    def _url_of_files(cls, value: str, info: ValidationInfo) -> str:
        if not value and (file := info.data.get("url_file")):
            value = secret_in(file)
        return with_password(value, secret_in(file)) if (file := info.data.get("password_file")) else value

    @field_validator("api_key")
    @classmethod
    def _key_of_file(cls, value: str, info: ValidationInfo) -> str:
        return secret_in(file) if not value and (file := info.data.get("api_key_file")) else value

    @field_validator("models", mode="before")
    @classmethod
    def _split_folders(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(Path(part).expanduser() for part in value.split(os.pathsep) if part)
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _split_labels(cls, value: object) -> object:
        if isinstance(value, str):
            return dict(parse_label(part) for part in value.split(",") if part.strip())
        return value

    @field_validator("home")
    @classmethod
    def _expand_home(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("node")
    @classmethod
    def _safe_node(cls, value: str) -> str:
        if not is_safe_id(value):
            raise ValueError("use lower-case letters, digits, '-', '_' and '.', at most 80")
        return value

    @field_validator("files_address", "files_reached_at")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        if value:
            split_address(value)
        return value

    @property
    def node_id(self) -> NodeId:
        """`node` under its own type."""
        return NodeId(self.node)

    @property
    def fleet_file(self) -> Path:
        """Where `packtrain up` leaves the URL for clients on this machine (mode 0600: it holds the password)."""
        return self.home / "fleet.json"

    @property
    def joined_file(self) -> Path:
        """Where a machine that joined a fleet keeps the URL (mode 0600: it holds the password)."""
        return self.home / "joined.json"

    @property
    def files_folder(self) -> Path:
        """Where uploaded files and batches are."""
        return (self.files or self.home / "files").expanduser().absolute()

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Every folder the catalog searches."""
        return (self.home / "models", *self.models)

    def broker_url(self) -> str:
        """The fleet's URL: `PACKTRAIN_URL`, else of the fleet that runs from this home, else of the one it joined.

        Raises:
            SetupError: None of them is there.
        """
        if url := self.known_url():
            return url
        raise SetupError(
            f"no fleet is known here: PACKTRAIN_URL is not set, nothing runs from {self.home}, and it joined none; "
            "start one with `packtrain up`, join one with `packtrain node`, or set PACKTRAIN_URL or PACKTRAIN_URL_FILE"
        )

    def known_url(self) -> str:
        """The same; empty when there is none."""
        url = self.url or _url_in(self.fleet_file) or _url_in(self.joined_file)
        return trusting(url, self.ca and self.ca.expanduser().absolute()) if url.startswith("rediss://") else url


def _url_in(file: Path) -> str:
    try:
        return str(json.loads(file.read_text())["url"])
    except (OSError, ValueError, KeyError):
        return ""


def secret_in(file: Path) -> str:
    """The one line of text in a file: secrets come so into containers and services.

    Raises:
        ValueError: It cannot be read, or is empty.
    """
    try:
        text = file.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read ({getattr(error, 'strerror', None) or 'no text'})") from None
    if not text:
        raise ValueError("holds nothing")
    return text


def with_password(url: str, password: str) -> str:
    """`url` with this password, if it is one of a broker and has none.

    >>> with_password("redis://gateway@head:6379/0", "a b")
    'redis://gateway:a%20b@head:6379/0'
    """
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss") or parts.password is not None:
            return url
    except ValueError:  # it is refused where it is used, without showing it
        return url
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 address stands in brackets.

    Raises:
        ValueError: It is none.

    >>> split_address("127.0.0.1:0"), split_address("[::1]:6391")
    (('127.0.0.1', 0), ('::1', 6391))
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number, brackets that do not close
        host = port = None
    if host is None or port is None or parts.netloc != text or set(text) & set("@ \t\n"):
        raise ValueError("write it like 192.168.1.5:6391, with a port; 0 is a free one")
    return host, port


def load_settings(**overrides: object) -> Settings:
    """The settings of this process, from the environment and these overrides.

    Raises:
        SetupError: A variable has a wrong value; the message names it.
    """
    return read_settings(Settings, overrides)


def read_settings(kind: type[S], overrides: Mapping[str, Any]) -> S:
    """The same of any part of a process that has settings of its own."""
    try:
        return kind(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"{kind.model_config['env_prefix']}{first['loc'][0]}".upper()
        raise SetupError(f"{name} = {first.get('input')!r}: {first['msg']}; correct or unset it") from None
