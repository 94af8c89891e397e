"""The gateway beside the fleet: OpenAI's API at a URL that `packtrain up` knows before it runs."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from packtrain.broker.errors import SetupError
from packtrain.client.cli.ports import checked_port, here, url_here
from packtrain.client.cli.supervisor import Child

#: What the extra `gateway` brings.
_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


@dataclass(frozen=True, slots=True)
class GatewayPage:
    """A gateway as it will run."""

    host: str
    port: int
    is_tls: bool = False  # by its settings

    @property
    def url(self) -> str:
        """Where clients on this machine find it, without `/v1`."""
        url = url_here(self.host, self.port)
        return url.replace("http://", "https://") if self.is_tls else url

    def child(self, argv: Sequence[str], env: Mapping[str, str]) -> Child:
        """The process to supervise."""
        # Jobs drain with the agent, which is asked before; what still waits by then has nobody to answer it.
        ours = {"PACKTRAIN_HTTP_HOST": self.host, "PACKTRAIN_HTTP_PORT": str(self.port), "PACKTRAIN_DRAIN_S": "1"}
        return Child("gateway", argv, {**env, **ours}, ready=self.answers)

    def answers(self) -> bool:
        """True when it takes requests."""
        connection = http.client.HTTPConnection(here(self.host), self.port, timeout=2)
        if self.is_tls:  # our own child on this machine, whose certificate is for other names
            connection = http.client.HTTPSConnection(
                here(self.host),
                self.port,
                timeout=2,
                context=ssl._create_unverified_context(),  # noqa: S323
            )
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def missing_for_gateway() -> str:
    """Why this installation can run no gateway, with the remedy; empty: it can."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    return f"{', '.join(missing)} not installed; install packtrain with its [gateway] extra" if missing else ""


def prepare_gateway(host: str, port: int, *, is_tls: bool = False) -> GatewayPage:
    """A gateway at this address; port 0: a free one.

    Args:
        is_tls: Its settings name a certificate.

    Raises:
        SetupError: The extra is not installed, or the port is taken.
    """
    if missing := missing_for_gateway():
        raise SetupError(f"no HTTP here: {missing}, or leave it out with `--no-http`")
    return GatewayPage(host, checked_port(host, port, what="HTTP", option="--http-port"), is_tls)
