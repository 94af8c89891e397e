"""`packtrain invite` and `pairing` on the head, and what `packtrain node` does on a machine that knows no fleet yet."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from redis.exceptions import RedisError
from rich.console import Console

from packtrain.broker.connection import connect, trusting, unavailable
from packtrain.broker.errors import InvalidParameter, SetupError
from packtrain.broker.invites import Invites
from packtrain.broker.private_files import private_folder, write_private
from packtrain.broker.server import check_schema
from packtrain.broker.settings import Settings, load_settings, split_address
from packtrain.client.cli import views
from packtrain.client.cli.options import JSON
from packtrain.client.joining.messages import Joined
from packtrain.client.joining.tokens import Token, parse_code, parse_token, spaced

JOIN = Annotated[
    str | None,
    typer.Option("--join", metavar="TOKEN|URL", help="Join by a token of `packtrain invite`, or by the broker's URL."),
]
CODE = Annotated[str | None, typer.Option("--code", help="The code of `packtrain invite`; default: ask for it.")]
FLEET = Annotated[str | None, typer.Option("--fleet", metavar="NAME", help="Which fleet, where the LAN has several.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(invite)
    app.command()(pairing)


def invite(
    uses: Annotated[int, typer.Option(min=1, max=100, help="Machines that may join by it.")] = 1,
    minutes: Annotated[int, typer.Option(min=1, max=24 * 60, help="It is over after this long.")] = 15,
    as_json: JSON = False,
) -> None:
    """Let another machine join: print a code and a token.

    The code is good until the next invitation. Both are over after their time, their uses, or too many wrong codes.
    """
    url = load_settings().broker_url()
    redis = connect(url, name="invite")
    try:
        invites = Invites(redis)
        place = invites.place()
        if place is None:
            raise SetupError(
                "no machine can reach this fleet; start it with `packtrain up --listen ADDRESS` "
                "(an address of the head, or 0.0.0.0)"
            )
        made = invites.create(uses=uses, lives_s=minutes * 60)
    except RedisError as error:
        raise unavailable(url, error) from error
    finally:
        redis.close()
    token = str(Token(invite=made.id, secret=made.secret, addresses=place.addresses, port=place.port))
    if as_json:
        facts = {"code": spaced(made.code), "token": token, "fleet": place.name, "uses": uses, "minutes": minutes}
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    who = "one machine" if uses == 1 else f"{uses} machines"
    views.console().print(
        f"Code {spaced(made.code)} lets {who} into fleet {place.name}, within {minutes} min. There:\n\n"
        "  packtrain node                     finds the fleet on the LAN, and asks for the code\n\n"
        f"or, where it finds nothing:\n\n  packtrain node --join {token}\n",
        soft_wrap=True,
    )


def pairing(
    listen: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen at; 0.0.0.0: at any.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 6391,
    reached_at: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS:PORT",
            help="Where other machines reach the broker, and this service at the same address; for containers. "
            "Default: as this machine does.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="The fleet's, as they see it; default: this machine's.")] = "",
) -> None:
    """Let other machines join a fleet without `packtrain up`.

    `packtrain up --listen` does so by itself; this stands beside a broker of your own, as in containers. It answers
    machines that have a code or token of `packtrain invite`, and tells them the way to the broker.
    """
    need_joining()
    try:
        split_address(reached_at or "127.0.0.1:0")
    except ValueError as error:
        raise InvalidParameter(f"{reached_at!r} is no address: {error}", field="reached_at") from None
    words = ["--listen", listen, "--port", str(port)]
    words += ["--reached-at", reached_at] if reached_at else []
    words += ["--name", name] if name else []
    # It becomes this process, so signals and exit code are its own.
    os.execv(sys.executable, [sys.executable, "-m", "packtrain.client.joining.service_main", *words])  # noqa: S606


def join_fleet(settings: Settings, join: str | None, code: str | None, fleet: str | None) -> str:
    """Become a member of a fleet, and remember it in the home. The broker's URL.

    Args:
        join: A token or a URL; None: look for a fleet on the LAN.
        code: Of an invitation; None: ask for it.
        fleet: Its name; None: there is only one.

    Raises:
        SetupError: There is none, or it does not let us in; the message says why.
        InvalidParameter: Code or token are none.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if join and "://" in join:
        joined = Joined(trusting(join, settings.ca), "that URL", "")
    else:
        need_joining()
        joined = _by_token(join, settings.node) if join else _by_code(console, code, fleet, settings.node)
    url, name = joined.url, joined.fleet
    private_folder(settings.home)
    if (
        joined.ca
    ):  # it came through the exchange, so it is the fleet's own: nobody between us can put another in its place
        ca = settings.home / "broker-ca.pem"
        write_private(ca, joined.ca)
        url = trusting(url, ca)
    check_schema(url)
    kept = {"url": url, "fleet": name, "joined": datetime.now(UTC).isoformat(timespec="seconds")}
    write_private(settings.joined_file, json.dumps(kept, indent=2) + "\n")
    console.print(f"Joined {name}; from now on `packtrain node` does so by itself.", markup=False)
    return url


def need_joining() -> None:
    """Say so at once when this installation cannot join others or be joined.

    Raises:
        SetupError
    """
    missing = [name for name in ("zeroconf", "spake2", "cryptography") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"machines cannot join here: {', '.join(missing)} is not installed; "
            "install packtrain with its [worker] or [join] extra"
        )


def _by_token(text: str, node: str) -> Joined:
    from packtrain.client.joining.guest import join

    token = parse_token(text)
    return join(token.addresses, token.port, secret=token.secret, invite=token.invite, node=node)


def _by_code(console: Console, code: str | None, fleet: str | None, node: str) -> Joined:
    from packtrain.client.joining.discovery import find_fleets
    from packtrain.client.joining.guest import join

    digits = parse_code(code) if code else ""
    with console.status("looking for a fleet on the LAN"):
        found = {each.name: each for each in find_fleets()}
    if not found:
        raise SetupError(
            "no fleet is known here and none answers on the LAN; start one on another machine with "
            "`packtrain up --listen ADDRESS`, or join by what `packtrain invite` prints there: "
            "`packtrain node --join TOKEN`"
        )
    names = ", ".join(found)
    if fleet is None and len(found) > 1:
        raise SetupError(f"several fleets answer on the LAN: {names}; choose one with `--fleet NAME`")
    chosen = found.get(fleet) if fleet else next(iter(found.values()))
    if chosen is None:
        raise SetupError(f"no fleet {fleet!r} answers on the LAN; these do: {names}")
    if not digits:
        if not sys.stdin.isatty():
            raise SetupError(
                f"fleet {chosen.name} was found, and nobody is here to ask for its code; give it with `--code`"
            )
        digits = parse_code(typer.prompt(f"Code of fleet {chosen.name} (`packtrain invite` there shows it)", err=True))
    return join(chosen.addresses, chosen.port, secret=digits, invite="", node=node)
