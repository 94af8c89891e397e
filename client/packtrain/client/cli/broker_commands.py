"""`packtrain broker`: the broker's users, for those who run one of their own or hand out URLs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

import typer
from rich.table import Table

from packtrain.broker.access import RIGHTS, Role
from packtrain.broker.connection import masked
from packtrain.broker.errors import InvalidParameter, SetupError
from packtrain.broker.private_files import private_folder
from packtrain.broker.settings import load_settings
from packtrain.broker.users import UserFiles, with_user
from packtrain.client.cli import views
from packtrain.client.cli.options import JSON

_ADMIN = "admin"  # as people say it


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    group = typer.Typer(help="Users of the broker: `acl`, `url`.", no_args_is_help=True)
    group.command("acl")(acl)
    group.command("url")(url)
    app.add_typer(group, name="broker")


def acl(
    secrets: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the passwords, which are made where there are none: `password` of the admin, `users/ROLE` "
            "of the others. Default: those of this home's broker.",
        ),
    ] = None,
) -> None:
    """Print an ACL file for a broker of your own.

    Name it by `aclfile` in the configuration of a Redis from 7.0 on, or of any Valkey. It holds hashes, no passwords.
    `packtrain up` writes the same for its own broker by itself.
    """
    folder = private_folder((secrets or load_settings().home / "broker").absolute())
    sys.stdout.write(UserFiles(folder).acl())


def url(
    user: Annotated[str | None, typer.Argument(help="Whose; default: a list of all, without passwords.")] = None,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="As others reach the broker; default: as this machine does.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Print the broker's URL for one of its users.

    The password is in it. Give a program the one of `client`, and it may submit and follow jobs and nothing else. For
    who only looks there is `reader`.
    """
    settings = load_settings()
    known = settings.broker_url()
    files = UserFiles(settings.home / "broker")
    if not files.acl_file.exists() or settings.url:
        raise SetupError(
            f"the users of {masked(known)} are not ours to know: `packtrain up` did not start it from "
            f"{settings.home}; ask who runs it, or look into the folder given to `packtrain broker acl --secrets`"
        )
    names = {_ADMIN: Role.ADMIN, **{role.value: role for role in RIGHTS}}
    if user is not None and user not in names:
        raise InvalidParameter(f"there is no user {user!r}; these are: {', '.join(names)}", field="user")
    here = _at(known, host)
    urls = {name: with_user(here, role.value, files.password(role)) for name, role in names.items()}
    if user:
        views.print_json({"user": user, "url": urls[user]}) if as_json else sys.stdout.write(f"{urls[user]}\n")
    elif as_json:
        views.print_json({name: masked(each) for name, each in urls.items()})
    else:
        table = Table("user", "may", "url", box=None)
        for name, each in urls.items():
            may = "everything" if names[name] is Role.ADMIN else RIGHTS[names[name]].summary
            table.add_row(name, may, masked(each))
        views.console().print(table)


def _at(url: str, host: str | None) -> str:
    if host is None:
        return url
    parts = urlsplit(url)
    who = parts.netloc.rpartition("@")[0]
    place = f"[{host}]" if ":" in host else host
    return urlunsplit(parts._replace(netloc=f"{who}@{place}:{parts.port or 6379}"))
