"""`packtrain journal` and `packtrain replay`: what placement decided and why, and whether it would do so again."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from packtrain.broker.connection import connect
from packtrain.broker.errors import InvalidParameter
from packtrain.broker.journal import Decision, Entry, RedisJournal, replay
from packtrain.broker.settings import load_settings
from packtrain.client.cli import views
from packtrain.client.cli.options import JSON
from packtrain.client.redis_transport import reachable

#: Entries that are looked at together.
COUNT = Annotated[int, typer.Option("--number", "-n", min=1, max=10_000, help="Latest entries.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(journal)
    app.command("replay")(replay_entries)


def journal(
    number: COUNT = 20,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="With --json: with what each was planned from, for `replay`.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Show what was loaded and unloaded, where and why. Oldest first; as JSON it is one entry a line."""
    entries = _read(number, with_snapshots=snapshots)
    if as_json:
        for entry in entries:
            sys.stdout.write(entry.model_dump_json(exclude_defaults=True) + "\n")
        return
    out = views.console()
    if not entries:
        out.print("nothing was loaded or unloaded in the last week")
    for entry in entries:
        at = datetime.fromtimestamp(entry.at_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
        for decision in entry.decisions:
            out.print(f"{at}  {sentence(decision)}", soft_wrap=True)
            others = [seen for seen in decision.candidates if seen.node != decision.node]
            if others:
                told = ", ".join(f"{s.node} ({s.verdict}, {views.size(s.free_bytes)} free)" for s in others)
                out.print(f"{'':21}beside {told}", soft_wrap=True)


def replay_entries(
    file: Annotated[
        Path | None, typer.Argument(help="What `journal --json --snapshots` printed; default: ask the fleet.")
    ] = None,
    number: COUNT = 300,
    as_json: JSON = False,
) -> None:
    """Plan again what the journal holds, and compare. Exit code 1: some plan comes out differently."""
    entries = _parse(file) if file else _read(number, with_snapshots=True)
    same = different = 0
    out = views.console()
    for entry in entries:
        if entry.snapshot is None:
            continue
        try:
            gone, new = replay(entry)
        except ValueError as error:
            raise InvalidParameter(f"entry {entry.id}: {error}; write the file again", field="file") from None
        if not gone and not new:
            same += 1
            continue
        different += 1
        if as_json:
            told = {"then": [d.model_dump() for d in gone], "now": [d.model_dump() for d in new]}
            sys.stdout.write(json.dumps({"id": entry.id, **told}) + "\n")
        else:
            out.print(f"entry {entry.id} comes out differently:", soft_wrap=True)
            for word, decisions in (("then", gone), ("now", new)):
                for decision in decisions:
                    out.print(f"    {word:5} {sentence(decision)}", soft_wrap=True)
    left_out = len(entries) - same - different
    if as_json:
        sys.stdout.write(json.dumps({"same": same, "different": different, "without_snapshot": left_out}) + "\n")
    else:
        said = f"{same} plans are the same, {different} are not"
        out.print(said + (f"; of {left_out} no snapshot is kept" if left_out else ""))
    raise typer.Exit(1 if different else 0)


def sentence(decision: Decision) -> str:
    """A decision for people."""
    match decision.verb:
        case "load":
            name = f" as {decision.instance}" if decision.instance else ""
            return f"load {decision.model} on {decision.node}{name}: {decision.reason}"
        case "unload":
            cost = "" if decision.cost is None else f" (costs {decision.cost:g} s)"
            return f"unload {decision.instance} from {decision.node}: {decision.reason}{cost}"
        case _:
            return f"fail {decision.jobs} jobs of {decision.route}: {decision.reason}"


def _read(number: int, *, with_snapshots: bool) -> list[Entry]:
    url = load_settings().broker_url()
    with reachable(url):
        redis = connect(url, name="client")
        try:
            return RedisJournal(redis).read(number, with_snapshots=with_snapshots)
        finally:
            redis.close()


def _parse(file: Path) -> list[Entry]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"{file} cannot be read ({error}); name another file", field="file") from None
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries.append(Entry.model_validate_json(line))
        except ValidationError:
            raise InvalidParameter(
                f"{file}, line {number} is no entry; write the file by `packtrain journal --json --snapshots`",
                field="file",
            ) from None
    return entries
