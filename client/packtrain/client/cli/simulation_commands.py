"""`packtrain simulate` and `packtrain plan`: what a fleet would do, without one."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.connection import connect, unavailable
from packtrain.broker.errors import InvalidParameter
from packtrain.broker.placement import Snapshot
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.settings import load_settings
from packtrain.broker.simulation import (
    Fit,
    FleetFile,
    NodeFit,
    NodeUse,
    Outcome,
    Pace,
    PaceOf,
    Simulation,
    TraceLine,
    Waits,
    as_it_is,
    fit,
    on_paper,
    parse_fleet,
    parse_trace_line,
)
from packtrain.client.cli import views
from packtrain.client.cli.options import JSON
from packtrain.client.cli.split_view import show_split

#: Lines of one table; the rest is in --json.
MAX_ROWS = 20


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(simulate)
    app.command()(plan)


def simulate(
    fleet: Annotated[
        Path, typer.Argument(metavar="FLEET.toml", help="Nodes, models and jobs; see docs/simulation.md.")
    ],
    seed: Annotated[int, typer.Option(help="Of all that is drawn; the same seed gives the same outcome.")] = 1,
    as_json: JSON = False,
) -> None:
    """Try a fleet on paper: who waits, what is swapped.

    The planner, the fair queue and the order of claims are those of a real fleet; only time is made up. All times are
    seconds of the simulated clock.
    """
    read = _read(fleet)
    if not (read.jobs or read.trace):
        raise InvalidParameter(
            f"{fleet}: it has no jobs, so nothing would happen; add [[jobs]] or a trace, or ask `packtrain plan`",
            field="jobs",
        )
    run = Simulation(read, seed, _trace(fleet, read))
    begin = time.perf_counter()
    outcome = run.run()
    took = time.perf_counter() - begin
    if as_json:
        sys.stdout.write(outcome.model_dump_json(indent=2) + "\n")
        return
    _show_outcome(outcome)
    Console(stderr=True, highlight=False).print(f"{outcome.jobs / took:,.0f} jobs simulated in a second, {took:.1f} s")


def plan(
    fleet: Annotated[
        Path | None, typer.Argument(metavar="FLEET.toml", help="A fleet on paper; left out: the one that runs.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="How this model would lie over several nodes, docs/split.md.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Say which models fit together, and which take turns.

    As if all were wanted at once and nothing were loaded. Speeds are those that were measured, or that the file says.
    """
    if model is not None:
        if fleet:
            raise InvalidParameter(
                "--model is about the fleet that runs, whose links are measured; leave the file out", field="model"
            )
        empty, _, loaded = _live()
        show_split(empty, model, loaded, as_json=as_json)
        return
    found = fit(*(on_paper(_read(fleet)) if fleet else _live()[:2]))
    if as_json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    else:
        _show_fit(found)


def _read(path: Path) -> FleetFile:
    return parse_fleet(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidParameter(
            f"{path} cannot be read ({error.strerror}); name a file that can", field="file"
        ) from None
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"{path} is not UTF-8 ({error.reason}); save it as such", field="file") from None


def _trace(path: Path, fleet: FleetFile) -> Iterator[TraceLine]:
    if fleet.trace is None:
        return
    trace, before = path.parent / fleet.trace, 0.0
    for number, line in enumerate(_lines(trace), 1):
        if not line.strip():
            continue
        job = parse_trace_line(line, f"{trace}, line {number}", fleet.models)
        if job.at < before:
            raise InvalidParameter(
                f"{trace}, line {number}: at = {job.at:g}: is before the line above, {before:g}; sort the file by `at`",
                field="at",
            )
        before = job.at
        yield job


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as lines:
            yield from lines
    except OSError as error:
        raise InvalidParameter(
            f"trace = {str(path)!r}: cannot be read ({error.strerror}); name a JSONL file as seen from the fleet file",
            field="trace",
        ) from None
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"{path} is not UTF-8 ({error.reason}); save it as such", field="trace") from None


def _live() -> tuple[Snapshot, PaceOf, list[InstanceBeat]]:
    """The fleet as if nothing were loaded, how fast it is, and what is loaded."""
    url = load_settings().broker_url()
    redis = connect(url, name="plan")
    try:
        registry = RedisRegistry(redis)
        loaded = registry.instances()
        empty, pace = as_it_is(
            registry.now_ms(), registry.nodes(), loaded, registry.models(), registry.offers(),
            RedisJobs(redis).waiting(),
        )  # fmt: skip
        return empty, pace, loaded
    except RedisError as error:
        raise unavailable(url, error) from error
    finally:
        redis.close()


def _show_outcome(outcome: Outcome) -> None:
    out = views.console()
    ended = f"{outcome.succeeded:,} of {outcome.jobs:,} jobs done in {outcome.makespan:,.1f} s"
    out.print(f"{ended}: {outcome.jobs_per_s:.3g} jobs/s, {outcome.tokens_per_s:,.0f} tokens/s")
    if outcome.rejected or outcome.never_served:
        out.print(f"{outcome.rejected:,} could never run, {outcome.never_served:,} were not served to the end:")
        for model, reason in outcome.reasons.items():
            out.print(f"  {model}: {reason}", soft_wrap=True)
    out.print(
        f"{outcome.loads} loads, {outcome.swaps} of them swaps; {outcome.evictions} evictions, "
        f"{outcome.driven_out} of them with work; {outcome.idle_unloads} unloaded since idle; "
        f"{outcome.moved} jobs moved; {outcome.plans:,} plans",
        soft_wrap=True,
    )
    out.print(
        f"{outcome.slots:.0%} of slots at work, {outcome.memory:.0%} of budgets in use, "
        f"at most {outcome.most_waiting:,} jobs waited",
        soft_wrap=True,
    )
    rows = [("all", outcome.waits), *((f"lane {k}", v) for k, v in outcome.by_lane.items())]
    rows += [(f"model {k}", v) for k, v in _worst(outcome.by_model)]
    rows += [(f"user {k}", v) for k, v in _worst(outcome.by_user)]
    out.print(_waits_table(rows, outcome.longest_unserved))
    out.print(_use_table(outcome.nodes[:MAX_ROWS]))
    if len(outcome.nodes) > MAX_ROWS or max(len(outcome.by_model), len(outcome.by_user)) > MAX_ROWS:
        out.print(f"the first {MAX_ROWS} nodes, and of models and users those that waited longest; all: --json")


def _worst(waits: dict[str, Waits]) -> list[tuple[str, Waits]]:
    worst = sorted(waits.items(), key=lambda entry: (-entry[1].longest, entry[0]))[:MAX_ROWS]
    return worst if len(waits) > MAX_ROWS else sorted(worst)


def _waits_table(rows: Sequence[tuple[str, Waits]], unserved: dict[str, float]) -> Table:
    table = _table("WAITED, s", "JOBS", "MEAN", "P50", "P95", "P99", "LONGEST", "NOT LOADED")
    for name, waits in rows:
        times = [waits.mean, waits.p50, waits.p95, waits.p99, waits.longest]
        lacked = unserved.get(name.removeprefix("model ")) if name.startswith("model ") else None
        table.add_row(
            name, f"{waits.jobs:,}", *(f"{value:,.1f}" for value in times), "" if lacked is None else f"{lacked:,.1f}"
        )
    return table


def _use_table(rows: Sequence[NodeUse]) -> Table:
    table = _table("NODE", "SLOTS AT WORK", "MEMORY IN USE", "LOADS")
    for row in rows:
        table.add_row(row.node, f"{row.slots:.0%}", f"{row.memory:.0%}", str(row.loads))
    return table


def _show_fit(found: Fit) -> None:
    out = views.console()
    if not found.nodes:
        out.print("no node is up; start one with `packtrain node`, or name a fleet file")
        return
    out.print(_nodes_table(found.nodes))
    table = _table("MODEL", "NEEDS", "FATE", "ON", "LOADS IN", "TOKENS/S ALONE", "TOKENS/S TOGETHER", right_from=6)
    for model in found.models:
        fate = f"{model.fate} with {', '.join(model.swaps_with)}" if model.swaps_with else model.fate
        first = model.places[0].pace if model.places else Pace()
        nodes = ", ".join(place.node for place in model.places[:3])
        more = f" and {len(model.places) - 3} more" if len(model.places) > 3 else ""
        together = _rate(first.full)
        if first.full is not None and first.jobs_at_once is not None:
            together += f" ({first.jobs_at_once} at once)"
        load = "" if not model.places else "not known" if first.load_s is None else f"{first.load_s:.1f} s"
        table.add_row(
            model.model, views.size(model.required_bytes), fate, nodes + more, load,
            _rate(first.alone) if model.places else "", together if model.places else "",
        )  # fmt: skip
    out.print(table)
    for model in found.models:
        if model.reason:
            out.print(f"{model.model}: {model.reason}", soft_wrap=True)
    if any(place.pace.source == "unknown" for model in found.models for place in model.places):
        out.print("a speed is not known before the model has run there; run a job and look again")


def _nodes_table(rows: Sequence[NodeFit]) -> Table:
    table = _table("NODE", "BUDGET", "LEFT", "HOLDS TOGETHER", right_from=99)
    for row in rows[:MAX_ROWS]:
        held = ", ".join(row.models) or "nothing"
        table.add_row(
            row.node, views.size(row.budget_bytes), views.size(row.free_bytes),
            f"{held}; closed: {row.closed}" if row.closed else held,
        )  # fmt: skip
    if len(rows) > MAX_ROWS:
        table.caption = f"and {len(rows) - MAX_ROWS} more nodes, see --json"
    return table


def _rate(tokens_per_s: float | None) -> str:
    return "not known" if tokens_per_s is None else f"{tokens_per_s:,.0f}"


def _table(*columns: str, right_from: int = 2) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns, 1):
        table.add_column(column, justify="right" if number >= right_from else "left")
    return table
