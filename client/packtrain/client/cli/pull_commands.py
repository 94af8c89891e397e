"""`packtrain pull`: model files from Hugging Face, into this machine's models folder or that of a node."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from packtrain.broker.errors import ModelFetchFailed, PacktrainError, SetupError, UnknownNode
from packtrain.broker.pulls import HubFile, PullRequest, PullStatus, may_fit, new_pull
from packtrain.broker.settings import Settings, load_settings
from packtrain.client import Packtrain
from packtrain.client.cli import views
from packtrain.client.cli.options import HOME, JSON

#: A node that was asked has taken the request by then, seconds; its agent may be busy with a start of instances.
TAKEN_S = 20.0
POLL_S = 0.3


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(pull)


def pull(
    what: Annotated[
        str, typer.Argument(metavar="OWNER/NAME[/FILE]", help="A GGUF file of a repository; without it: what there is.")
    ],
    node: Annotated[
        str | None, typer.Option("--node", metavar="NODE", help="Of the fleet, to pull to; default: this machine.")
    ] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    mmproj: Annotated[
        str,
        typer.Option(
            metavar="TYPE|PATH|none",
            help="The model's projector: its type, its path in the repository, or none to leave it out; default: f16 "
            "where there is a choice.",
        ),
    ] = "",
    home: HOME = None,
    as_json: JSON = False,
) -> None:
    """Pull a model file from Hugging Face, or list a repository.

    All parts of a split model come, and the projector (mmproj) of one that sees or hears. Run it again to go on where
    it was cut off. HF_ENDPOINT names another hub, HF_TOKEN opens what is gated or private; with --node those of the
    node's agent count.
    """
    request = parse(what, revision, mmproj)
    settings = load_settings(**({"home": home} if home else {}))
    if not request.file:
        (listing,) = (status for status in here(request, settings) if status.state == "done")
        budget = _budget_of(node) if node else None
        found = [_fits(file, budget) for file in listing.found]
        views.show(found, _files_table, empty=f"{request.repo} has no GGUF files", as_json=as_json)
        return
    statuses = there(request, node) if node else here(request, settings)
    last = _follow(statuses, quiet=as_json)
    if as_json:
        views.print_json(last.model_dump(mode="json", include={"node", "model", "paths", "total"}))
    else:
        where = f" on {last.node}" if last.node else ""
        eyes = ", projector and all" if last.projector else ""
        views.console().print(
            f"{views.size(last.total)} are there{where}{eyes}; `packtrain run {last.model} ...` uses them"
        )


def parse(what: str, revision: str, mmproj: str = "") -> PullRequest:
    """What an argument asks for.

    >>> parse("ggml-org/models/tinyllamas/stories260K.gguf", "main").file
    'tinyllamas/stories260K.gguf'
    """
    owner, _, rest = what.partition("/")
    name, _, file = rest.partition("/")
    return new_pull(f"{owner}/{name}", file, revision, mmproj)


def here(request: PullRequest, settings: Settings) -> Generator[PullStatus]:
    """Pull by a process of this machine: how far it is, again and again."""
    missing = [name for name in ("huggingface_hub", "psutil") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(f"{' and '.join(missing)} is not installed; install packtrain with its [worker,hub] extras")
    command = [sys.executable, "-m", "packtrain.workers.files.pull_main", request.model_dump_json()]
    env = {**os.environ, "PACKTRAIN_HOME": str(settings.home)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                yield _checked(PullStatus.model_validate_json(line))
        finally:
            process.terminate()  # when nobody follows any more; what came is kept
    if process.returncode:
        raise ModelFetchFailed(f"the pull ended with code {process.returncode}; run it again, what came is kept")


def there(request: PullRequest, node: str) -> Generator[PullStatus]:
    """Have a node pull. It goes on when nobody follows any more."""
    with Packtrain() as fleet:
        pull_id = fleet.pull(request.repo, request.file, node=node, revision=request.revision, mmproj=request.mmproj)
        asked_at, was_seen = time.monotonic(), False
        while True:
            status = fleet.pull_status(pull_id)
            if status:
                was_seen = True
                yield _checked(status)
                if status.state == "done":
                    return
            elif was_seen or time.monotonic() - asked_at > TAKEN_S:
                raise ModelFetchFailed(f"{node} does not answer; see that its agent runs, and pull again")
            time.sleep(POLL_S)


def _checked(status: PullStatus) -> PullStatus:
    if status.error:
        raise PacktrainError.from_wire(status.error)
    return status


def _follow(statuses: Generator[PullStatus], *, quiet: bool) -> PullStatus:
    """Show progress until the end; the last status."""
    last = PullStatus()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=quiet)
    with closing(statuses), bar:
        task = None
        for last in statuses:
            name = Path(last.file).name
            if task is None and last.projector:
                bar.console.print(
                    f"its projector comes along: {last.projector}, {views.size(last.projector_size)} "
                    "(--mmproj none leaves it out)"
                )
            if task is None:  # what an earlier pull brought is no speed
                task = bar.add_task(name, total=last.total, completed=last.done)
            bar.update(task, description=name, completed=last.done)
    return last


def _budget_of(node: str) -> int:
    with Packtrain() as fleet:
        budgets = {beat.node: beat.memory_budget for beat in fleet.nodes()}
    if node not in budgets:
        raise UnknownNode(node=node, known=list(budgets))
    return budgets[node]


def _fits(file: HubFile, budget: int | None) -> HubFile:
    return file if budget is None else file.model_copy(update={"fits": may_fit(file.whole_size, budget)})


def _files_table(rows: Sequence[HubFile]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("FILE", "SIZE", "PARTS", "FITS"):
        table.add_column(column, no_wrap=True)
    table.add_column("PROJECTOR", overflow="fold")  # of a narrow terminal it is the one that gives way
    for row in rows:
        eyes = f"{row.projector}, {views.size(row.projector_size)}" if row.projector else "(is one)" * row.is_projector
        table.add_row(row.file, views.size(row.size), str(row.parts), "yes" if row.fits else "no", eyes)
    return table
