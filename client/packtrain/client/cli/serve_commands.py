"""`packtrain serve`: a gateway alone, before a fleet that runs here or elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from packtrain.broker import logs
from packtrain.broker.errors import SetupError
from packtrain.broker.settings import load_settings
from packtrain.client.cli.gateway_page import missing_for_gateway
from packtrain.client.cli.options import JSON
from packtrain.client.cli.views import print_json
from packtrain.client.gateway.settings import load_gateway_settings


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(serve)


def serve(
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Address to listen at; beyond loopback only with API keys."),
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port, default 8080; 0: a free one.")] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate and its chain, PEM: speak HTTPS only.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its private key, PEM, without a password.")
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Origin of web pages that may call; may be given several times. '*': all."),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Serve OpenAI's API over HTTP until Ctrl-C.

    It stands before the fleet of this home, or the one that PACKTRAIN_URL names; several may stand before the same one.
    `packtrain up` runs one by itself. Without API keys it takes requests from this machine only: see `packtrain keys`.
    """
    if missing := missing_for_gateway():
        raise SetupError(f"no HTTP here: {missing}")
    from packtrain.client.gateway.gateway_main import run

    settings = load_settings()
    logs.configure(settings.log_level)
    given = {
        "host": host,
        "port": port,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "cors": tuple(origin.rstrip("/") for origin in cors) if cors else None,
    }
    gateway = load_gateway_settings(**{name: value for name, value in given.items() if value is not None})

    def ready(url: str) -> None:
        if as_json:
            print_json({"url": url, "openai_base_url": f"{url}/v1"})
        else:
            Console(stderr=True, highlight=False, soft_wrap=True).print(
                f"Serving OpenAI's API at {url}/v1, the fleet page at {url}; what there is: {url}/docs. Ctrl-C stops."
            )

    run(gateway, settings.broker_url(), files=settings.files_folder, drain_s=settings.drain_s, ready=ready)
