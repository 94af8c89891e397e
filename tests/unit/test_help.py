"""What `--help` says, as a new user meets it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from packtrain.client.cli.main import app

pytestmark = pytest.mark.unit

#: Processes in the foreground; `embed` prints JSON anyway, `broker acl` a file; groups show their help.
WITHOUT_JSON = {"node", "coordinator", "demo", "embed", "bulk", "broker", "broker acl", "keys", "pairing"}


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{path}{name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_in_one_line_what_it_does(name: str) -> None:
    line = COMMANDS[name].get_short_help_str(limit=60)

    assert line
    assert not line.endswith("...")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    unexplained = [p.name for p in COMMANDS[name].params if not getattr(p, "help", None)]

    assert unexplained == []


def test_every_command_that_shows_something_prints_json_when_asked() -> None:
    without = {name for name, c in COMMANDS.items() if not any("--json" in p.opts for p in c.params)}

    assert without == WITHOUT_JSON
