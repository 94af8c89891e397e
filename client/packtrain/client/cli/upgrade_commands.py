"""`packtrain upgrade-check`: which versions the processes of a fleet speak, and whether this one may join them."""

from __future__ import annotations

from collections import Counter
from typing import Final

import typer
from redis.exceptions import RedisError
from rich.table import Table
from rich.text import Text

from packtrain.broker.compatibility import Judged, State, Verdict, judge
from packtrain.broker.connection import connect, masked, unavailable
from packtrain.broker.processes import Processes, speaks
from packtrain.broker.settings import load_settings
from packtrain.client.cli import views
from packtrain.client.cli.options import JSON

_SAID: Final[dict[State, str]] = {
    "empty": "Nothing runs there; {version} may be started.",
    "current": "All run {version}, which is what is installed here: there is nothing to do.",
    "ready": "A rolling upgrade to {version} is safe. In this order, one after the other:",
    "mixed": "An upgrade to {version} is under way, and safe: all of them understand each other. What is left:",
    "back": "What runs is newer than {version}. A way back is safe, in this order:",
    "blocked": "{version} cannot share this fleet:",
}
_COLOURS: Final = {"same": "green", "older": "yellow", "newer": "yellow", "alien": "red"}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("upgrade-check")(upgrade_check)


def upgrade_check(as_json: JSON = False) -> None:
    """Say how the fleet is upgraded to what is installed here.

    It shows what each process speaks, what is mixed, whether a rolling upgrade is safe, and the next steps in order.
    Exit codes: 0 it can be, or there is nothing to do; 1 it cannot, and why; 4 the broker does not answer.
    """
    url = load_settings().broker_url()
    redis = connect(url, name="upgrade-check", retries=1)
    try:
        processes = Processes(redis)
        verdict = judge(speaks(), processes.schema(), processes.all())
    except RedisError as error:
        raise unavailable(url, error) from error
    finally:
        redis.close()
    if as_json:
        views.print_json({**verdict.model_dump(mode="json"), "broker": masked(url)})
    else:
        _show(verdict)
    raise typer.Exit(0 if verdict.safe else 1)


def _show(verdict: Verdict) -> None:
    out = views.console()
    if verdict.processes:
        out.print(_table(verdict.processes))
        out.print(_mixture(verdict))
    out.print(_SAID[verdict.state].format(version=verdict.installed.version), soft_wrap=True)
    for problem in verdict.problems:
        out.print(f"  - {problem}", soft_wrap=True, markup=False)
    if verdict.problems and verdict.steps:
        out.print("What to do:")
    for number, step in enumerate(verdict.steps, start=1):
        out.print(f"  {number}. {step}", soft_wrap=True, markup=False)


def _table(processes: tuple[Judged, ...]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("node", "process", "id", "version", "schema", "messages", ""):
        table.add_column(name)
    for each in processes:
        colour = _COLOURS[each.standing]
        numbers = Counter(spoken.writes for spoken in each.messages.values())
        usual = max(numbers, default=1)
        odd = [f"{name} {spoken.writes}" for name, spoken in each.messages.items() if spoken.writes != usual]
        messages = ", ".join([f"all {usual}" if not odd else f"others {usual}", *odd])
        table.add_row(
            each.node, each.kind, each.id, each.version, each.schema_version, messages,
            Text("as here" if each.standing == "same" else each.standing, colour),
        )  # fmt: skip
    return table


def _mixture(verdict: Verdict) -> str:
    counted = Counter(each.version for each in verdict.processes)
    told = ", ".join(f"{count} of {version}" for version, count in sorted(counted.items()))
    return f"\nProcesses: {told}. Installed here: {verdict.installed.version}."
