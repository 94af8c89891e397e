"""What `packtrain up` says once its fleet is up: a page for people, or the same facts as JSON. No secret in either."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packtrain.broker.connection import masked
from packtrain.client.cli.flower_page import USER
from packtrain.client.cli.home import fleet_file

if TYPE_CHECKING:
    from packtrain.client.cli.up import RunningFleet


def facts(fleet: RunningFleet) -> dict[str, object]:
    """For programs. `fleet_file` holds the URL with its password, for who may read it."""
    flower = fleet.flower
    return {
        "url": masked(fleet.url),
        "broker": fleet.broker,
        "node": fleet.node,
        "models": fleet.num_models,
        "http": fleet.gateway.url if fleet.gateway else None,
        "listen": fleet.listen or None,
        "home": str(fleet.home),
        "logs": str(fleet.home / "logs"),
        "fleet_file": str(fleet_file(fleet.home)),
        "flower": {"url": flower.url, "user": USER, "password_file": str(flower.password_file)} if flower else None,
        "pids": fleet.pids,
    }


def page(fleet: RunningFleet, *, with_password: bool) -> str:
    """For people.

    Args:
        with_password: Of Flower: at a terminal, and nowhere else, for the page ends in some log there.
    """
    rows = [
        ("broker", f"{masked(fleet.url)}  ({fleet.broker})"),
        ("node", fleet.node),
        (
            "models",
            f"{fleet.num_models}" if fleet.num_models else f"none yet: put a .gguf file into {fleet.home}/models",
        ),
    ]
    if fleet.gateway:
        rows.append(("page", f"{fleet.gateway.url}  (the fleet, live, in a browser; `packtrain top` at a terminal)"))
        rows.append(("HTTP", f"{fleet.gateway.url}/v1  (OpenAI's API; all of it: {fleet.gateway.url}/docs)"))
    if fleet.listen:
        rows.append(("join", f"other machines may, at {fleet.listen}: `packtrain invite` shows them how"))
    if fleet.flower:
        password = fleet.flower.password if with_password else f"in {fleet.flower.password_file}"
        rows.append(("Flower", f"{fleet.flower.url}  user {USER}, password {password}"))
    rows += [("home", f"{fleet.home}"), ("logs", f"{fleet.home / 'logs'}")]
    shown = "\n".join(f"  {name:<8}{value}" for name, value in rows)
    return (
        f"\nThe fleet is up.\n\n{shown}\n\n"
        "Try, in another terminal:\n\n"
        "  packtrain models                              which models there are\n"
        "  packtrain run MODEL 'Why is the sky blue?'    ask one of them\n"
        "  packtrain ps                                  what runs where\n\n"
        "Ctrl-C drains and stops; a second one kills.\n"
    )
