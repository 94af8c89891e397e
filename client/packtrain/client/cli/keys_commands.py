"""`packtrain keys`: who may call over HTTP, and how much."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console

from packtrain.broker.api_keys import ApiKey, ApiKeys, digest_of
from packtrain.broker.connection import connect, unavailable
from packtrain.broker.errors import InvalidParameter
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.settings import load_settings, secret_in
from packtrain.client.cli import views
from packtrain.client.cli.options import JSON

NAME = Annotated[str, typer.Argument(help="Of the key, and of the user whose jobs its requests are.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    group = typer.Typer(help="API keys for HTTP: `create`, `list`, `revoke`.", no_args_is_help=True)
    group.command("create")(create)
    group.command("list")(list_keys)
    group.command("revoke")(revoke)
    app.add_typer(group, name="keys")


def create(
    name: NAME,
    models: Annotated[
        str | None, typer.Option(metavar="A,B", help="Models it may use, by the names it will say; default: all.")
    ] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Requests at once; default: any number.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Tokens of prompts and answers in 60 s; default: any number.")
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="It may load and unload, change nodes, and see jobs of others.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="End the key that has this name.")] = False,
    secret_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds the secret to take; a key that has it already stays as it is."),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Make an API key and print its secret, this once.

    From the first key on, every gateway of the fleet asks for one. Programs send it as their OpenAI API key.
    """
    allowed = [model.strip() for model in models.split(",") if model.strip()] if models else []
    chosen = _secret_in(secret_file) if secret_file else ""
    with _broker() as redis:
        if same := [
            key for key in ApiKeys(redis).all() if chosen and (key.name, key.digest) == (name, digest_of(chosen))
        ]:
            views.print_json(_facts(same[0])) if as_json else _say(f"The key {name!r} has this secret already.")
            return
        offered = {info.id for info in RedisRegistry(redis).models()}
        key, secret = ApiKeys(redis).create(
            name, models=allowed, concurrent=concurrent, tokens_per_minute=tokens_per_minute, is_admin=admin,
            replace=replace, secret=chosen,
        )  # fmt: skip
    if as_json:
        views.print_json(_facts(key) if chosen else {**_facts(key), "secret": secret})
        return
    if not chosen:
        sys.stdout.write(secret + "\n")
    if unknown := sorted(set(allowed) - offered):
        _say(f"No node offers {', '.join(unknown)} now; see `packtrain models`.")
    which = (
        f"The key {name!r} has the secret in {secret_file}."
        if chosen
        else (f"This is the secret of {name!r}, which nothing shows again.")
    )
    _say(f"{which} From now on requests need a key.")


def list_keys(as_json: JSON = False) -> None:
    """List the API keys: what each may do, without secrets."""
    with _broker() as redis:
        rows = ApiKeys(redis).all()
    if as_json:
        sys.stdout.write(json.dumps([_facts(key) for key in rows], indent=2) + "\n")
    elif rows:
        views.console().print(views.keys_table(rows))
    else:
        views.console().print(
            "there are no API keys, so only this machine may call; `packtrain keys create NAME` makes one",
            soft_wrap=True,
        )


def revoke(name: NAME, as_json: JSON = False) -> None:
    """End an API key. Gateways refuse it within two seconds; what is under way goes on."""
    with _broker() as redis:
        keys = ApiKeys(redis)
        if not keys.revoke(name):
            names = ", ".join(key.name for key in keys.all()) or "none"
            raise InvalidParameter(f"there is no key {name!r}; there are: {names}", field="name")
        left = len(keys.all())
    if as_json:
        views.print_json({"name": name, "revoked": True, "left": left})
        return
    last = "" if left else ". It was the last: gateways on loopback let this machine in without one, others nobody"
    views.console().print(f"{name} is revoked{last}", soft_wrap=True)


def _secret_in(file: Path) -> str:
    try:
        return secret_in(file)
    except ValueError as error:
        raise InvalidParameter(f"{file}: {error}; write the secret there, in one line", field="secret") from None


def _say(text: str) -> None:
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text)


@contextmanager
def _broker() -> Iterator[Redis]:
    url = load_settings().broker_url()
    redis = connect(url, name="keys")
    try:
        yield redis
    except RedisError as error:
        raise unavailable(url, error) from error
    finally:
        redis.close()


def _facts(key: ApiKey) -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"digest"})
