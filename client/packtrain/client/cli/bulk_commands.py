"""`packtrain bulk`: a file of requests in, a file of answers out."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from packtrain.broker.errors import InvalidParameter, JobFailed
from packtrain.broker.ids import is_safe_id
from packtrain.client.bulk import BulkOptions, BulkRun, Defaults, FileInvalid, Summary
from packtrain.client.cli.bulk_view import BulkView
from packtrain.client.cli.options import JSON
from packtrain.client.opening import open_transport


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    bulk = typer.Typer(help="Run files of requests: JSONL, .gz, CSV, Parquet.", no_args_is_help=True)
    bulk.command("run")(run)
    app.add_typer(bulk, name="bulk")


def run(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="JSONL, also .gz; .csv, .tsv, .parquet; '-': stdin.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where answers go, as JSONL.")],
    errors: Annotated[
        Path | None,
        typer.Option("--errors", metavar="FILE", help="Where failed rows go; default: OUT.errors.jsonl."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Of rows that name none.")] = None,
    url: Annotated[
        str, typer.Option("--url", help="Of plain rows that name none; default: /v1/chat/completions.")
    ] = "",
    template: Annotated[
        str | None, typer.Option(help="Prompt of each row of a table, such as 'Translate: {text}'.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-n", help="Of rows that do not say it.")] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", help="Of rows that do not say it.")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="All rows whose body does not say otherwise.")
    ] = False,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="In the order of the input, and nothing that depends on the run.")
    ] = False,
    user: Annotated[str, typer.Option(help="Whose turn its jobs take; default: whom each row names.")] = "",
    max_run: Annotated[
        float | None, typer.Option(min=0.001, help="Give up a job this many seconds after it first began to run.")
    ] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Run a file that has faults; faulty rows go to the errors.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run rows again that failed in an earlier run.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what is done and begin anew.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only check the file and tell what it would take.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    as_json: JSON = False,
) -> None:
    """Run a file of requests; again, to go on with it.

    A row is a request of OpenAI's batches ({"custom_id", "method", "url", "body"}), or plainly {"prompt": ...} or
    {"messages": [...]} with other fields of a body beside it. All rows are checked before any runs.

    Whatever is killed on the way, run the same command again: each row is answered once. What is done stands in OUT;
    the folder OUT.packtrain beside it knows the rest, and may be deleted when you need neither resuming nor
    --retry-failed. Ctrl-C stops; jobs in the fleet go on and are found there. Exit code 3: some rows failed.
    """
    if user and not is_safe_id(user):
        raise InvalidParameter(f"--user {user!r}: use lower-case letters, digits, '-', '_' and '.'", field="user")
    said = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "deterministic": deterministic or None,
    }
    body: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    options = BulkOptions(
        source=source, out=out.absolute(), errors=errors.absolute() if errors else None, template=template,
        defaults=Defaults(body, url), user=user, max_run=max_run, ordered=ordered, skip_invalid=skip_invalid,
        retry_failed=retry_failed, restart=restart,
    )  # fmt: skip
    view = BulkView(as_json=as_json, quiet=quiet)
    with closing(open_transport(None)) as transport, BulkRun(transport, options) as bulk:
        try:
            found = bulk.prepare(view.reading)
        except FileInvalid as error:
            view.faults(error.data["faults"], error.data["count"])
            raise
        view.forecast(found, total=bulk.total)
        if check:
            return
        with _stopped_by_signals(bulk), view:
            summary = bulk.run(view.progress)
    _end(summary, options, view)


@contextmanager
def _stopped_by_signals(bulk: BulkRun) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM has the run stop where it can go on; the second ends it at once."""

    def stop(number: int, _: FrameType | None) -> None:
        bulk.stop()
        signal.signal(number, before[signal.Signals(number)])

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(summary: Summary, options: BulkOptions, view: BulkView) -> None:
    """Say what came of it, and exit with the code that fits.

    Raises:
        ModelError: Rows of some models cannot run.
        JobFailed: Some rows failed.
    """
    blocked = [error.to_wire() for error in summary.blocked]
    facts = {**asdict(summary), "blocked": blocked, "out": str(options.out), "errors": str(options.errors_file)}
    view.event("end", facts)
    view.say(f"{summary.completed:,} of {summary.total:,} rows are in {options.out}")
    if summary.blocked:
        view.say(f"{summary.left:,} rows wait; when the following is mended, go on with the same command:")
        raise summary.blocked[0]
    if summary.left:
        flying = f"; {summary.in_flight:,} jobs go on in the fleet and are found there" if summary.in_flight else ""
        view.say(f"{summary.left:,} rows are left{flying}. Go on with: {_command()}")
        raise typer.Exit(130)
    if summary.failed:
        raise JobFailed(
            f"{summary.failed:,} rows failed, see {options.errors_file}; run them again with --retry-failed",
            failed=summary.failed,
        )


def _command() -> str:
    """The command as it was given, without what must not be given twice."""
    return shlex.join(["packtrain", *(word for word in sys.argv[1:] if word not in ("--restart", "--retry-failed"))])
