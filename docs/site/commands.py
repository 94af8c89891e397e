"""The page of all commands: what `--help` says of each."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import typer

from docs.site.tables import code, table
from packtrain.client.cli.main import app


def page() -> str:
    """Markdown of every command, in the order of `packtrain --help`."""
    group = typer.main.get_command(app)
    parts = ["# Commands\n", f"{group.epilog}\n", *_parts(group, "packtrain")]
    return "\n".join(parts)


def _parts(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        whole = f"{path} {name}"
        context = command.context_class(command, info_name=whole)
        yield f"## {whole}\n" if path == "packtrain" else f"### {whole}\n"
        yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
        yield f"{textwrap.dedent(command.help or '').strip()}\n"
        records = [record for each in command.params if (record := each.get_help_record(context))]
        rows = [(code(form), explained) for form, explained in records if "--help" not in form]
        if rows:
            yield table(("argument or option", "does"), rows)
        if hasattr(command, "commands"):
            yield from _parts(command, whole)
