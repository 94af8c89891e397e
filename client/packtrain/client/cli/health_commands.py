"""`packtrain health`: is one part of the fleet well? For people; supervisors ask `packtrain.broker.health` itself."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from packtrain.broker.health import ROLES, check
from packtrain.broker.settings import load_settings
from packtrain.client.cli.options import JSON
from packtrain.client.cli.views import print_json


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(health)


def health(
    role: Annotated[str, typer.Argument(metavar="ROLE", help=f"One of {', '.join(ROLES)}.")],
    page: Annotated[
        str,
        typer.Option("--page", metavar="URL", help="Where to ask gateway or Flower; default: their usual ports here."),
    ] = "",
    as_json: JSON = False,
) -> None:
    """Is one part of the fleet well?

    Exit code 0 says so, 1 not; the reason stands on stderr. Supervisors of containers and services ask this.
    """
    said = check(role, load_settings(), page=page)
    if as_json:
        print_json({"role": role, "is_well": True})
    else:
        sys.stdout.write(said + "\n")
