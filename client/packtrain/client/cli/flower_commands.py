"""`packtrain flower`: Flower alone, before a fleet that runs here or elsewhere; `up --flower` has one beside it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from packtrain.broker.server import await_broker
from packtrain.broker.settings import load_settings
from packtrain.client.cli.flower_page import APP, HOST, USER, prepare_flower
from packtrain.client.cli.options import HOME, JSON
from packtrain.client.cli.views import print_json


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(flower)


def flower(
    address: Annotated[
        str,
        typer.Option(
            "--address", metavar="ADDRESS", help="Address to listen at; beyond loopback its password must be long."
        ),
    ] = HOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")] = 5555,
    password_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds its password; default: <home>/flower/password, made when absent."),
    ] = None,
    home: HOME = None,
    as_json: JSON = False,
) -> None:
    """Run Flower, the monitor for Celery, until Ctrl-C. It shows and changes nothing.

    It looks at the fleet of this home, or the one that PACKTRAIN_URL names: queues, workers with their node's facts,
    what each doorbell did. Nothing private crosses Celery.
    """
    settings = load_settings(**({"home": home} if home else {}))
    url = settings.broker_url()
    page = prepare_flower(
        settings.home / "flower", port, host=address, password_file=password_file, option="--port"
    )  # fmt: skip
    await_broker(url)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Python only notes a signal, and what it has noted is lost when this process becomes another one.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if as_json:
        print_json({"url": page.url, "user": USER, "password_file": str(page.password_file)})
    else:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(
            f"Flower at {page.url}, user {USER}, password in {page.password_file}. Ctrl-C stops."
        )
    command = page.command(APP)
    # It becomes this process, so signals and exit code are its own. Safe path: see supervisor.py.
    os.execve(command[0], command, {**os.environ, "PACKTRAIN_URL": url, "PYTHONSAFEPATH": "1"})  # noqa: S606
