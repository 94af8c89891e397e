"""`packtrain plan` and `packtrain simulate`: what a fleet can hold and how it would do, before it exists."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from packtrain.broker.connection import connect
from packtrain.broker.coordinator import real_models
from packtrain.broker.placement import Snapshot
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.settings import load_settings
from packtrain.broker.simulation.fitting import Fit, fit
from packtrain.broker.simulation.fleet import arrivals
from packtrain.broker.simulation.report import SimResult, Waits
from packtrain.broker.simulation.world import World
from packtrain.client.cli import views
from packtrain.client.cli.fleet_file import read_fleet, to_snapshot
from packtrain.client.cli.options import JSON
from packtrain.client.redis_transport import reachable

#: Models in the table, those with the longest waits; JSON has all.
MAX_ROWS = 40

FILE = Annotated[Path, typer.Argument(help="A fleet file, see docs/fleet-file.md.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("plan")(plan_fleet)
    app.command()(simulate)


def plan_fleet(
    file: Annotated[
        Path | None, typer.Argument(help="A fleet file, see docs/fleet-file.md; default: the fleet that runs.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Say which models fit together, and where. Which would take turns, and which never fit.

    Every model is taken to be wanted, and nothing to be loaded yet.
    """
    fleet = read_fleet(file) if file else None
    snapshot = to_snapshot(fleet) if fleet else _running()
    found = fit(snapshot)
    speeds = {model: sim.tokens_per_s for model, sim in fleet.models.items()} if fleet else {}
    if as_json:
        loads = [{"model": x.model, "node": x.node, "bytes": x.reserved_bytes, "slots": x.n_slots} for x in found.loads]
        facts = {"loads": loads, "turns": dict(found.turns), "never": dict(found.never)}
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        return
    out = views.console()
    out.print(_fit_table(snapshot, found))
    if speeds:
        total = sum(speeds[load.model] for load in found.loads)
        out.print(f"all of it at work: {total:,.0f} tokens/s, by the rates of the file on nodes of speed 1")
    for model, why in found.turns.items():
        out.print(f"{model} takes turns with others: {why}", soft_wrap=True)
    for model, why in found.never.items():
        out.print(f"{model} never fits: {why}", soft_wrap=True)
    if not found.turns and not found.never:
        out.print("all models fit together")


def simulate(
    file: FILE,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=100_000_000, help="Jobs that come.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of their coming; the same seed gives the same result.")] = 1,
    max_wait: Annotated[float, typer.Option(min=0, help="PACKTRAIN_MAX_WAIT_S of the coordinator.")] = 60,
    min_residency: Annotated[float, typer.Option(min=0, help="PACKTRAIN_MIN_RESIDENCY_S of the coordinator.")] = 10,
    as_json: JSON = False,
) -> None:
    """Run a fleet that need not exist. By the real planner and fair queue, on a virtual clock."""
    fleet = read_fleet(file)
    begin = time.perf_counter()
    world = World(fleet, max_wait_ms=int(max_wait * 1000), min_residency_ms=int(min_residency * 1000))
    result = world.run(arrivals(fleet, jobs, seed)).result
    took_s = time.perf_counter() - begin
    if as_json:
        sys.stdout.write(json.dumps({**result.model_dump(), "took_s": took_s}, indent=2) + "\n")
        return
    out = views.console()
    out.print(_result_table(result))
    out.print(
        f"{result.jobs:,} jobs in {views.seconds(result.seconds * 1000)} of virtual time: {result.loads} loads, "
        f"{result.unloads_for_room} of them after another model had to leave; loaded slots at work {result.work:.0%}, "
        f"memory held {result.memory:.0%} of the budgets; simulated in {took_s:.1f} s",
        soft_wrap=True,
    )
    for why, count in result.rejected.items():
        out.print(f"{count:,} jobs fail: {why}", soft_wrap=True)
    if result.left:
        out.print(f"{result.left:,} jobs wait for ever: what could run them is never unloaded, see `packtrain plan`")


def _running() -> Snapshot:
    url = load_settings().broker_url()
    with reachable(url):
        redis = connect(url, name="client")
        try:
            registry = RedisRegistry(redis)
            return Snapshot(
                now_ms=registry.now_ms(),
                nodes=registry.nodes(),
                models=real_models(registry.models()),
                offers=registry.offers(),
            )
        finally:
            redis.close()


def _fit_table(snapshot: Snapshot, found: Fit) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NODE", "BUDGET", "LEFT", "MODELS"):
        table.add_column(column)
    for node in snapshot.nodes:
        here = [load for load in found.loads if load.node == node.node]
        left = node.memory_budget - sum(load.reserved_bytes for load in here)
        models = ", ".join(f"{load.model} ({views.size(load.reserved_bytes)})" for load in here)
        table.add_row(node.node, views.size(node.memory_budget), views.size(left), models or "-")
    return table


def _result_table(result: SimResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("MODEL", "JOBS", "LOADS", "WAIT: MEDIAN", "90 %", "99 %", "LONGEST", "SLOTS AT WORK"):
        table.add_column(column, justify="left" if column == "MODEL" else "right")
    slowest = sorted(result.models, key=lambda row: -row.waits.p99)[:MAX_ROWS]
    for row in (row for row in result.models if row in slowest):
        table.add_row(row.model, f"{row.jobs:,}", str(row.loads), *_told(row.waits), f"{row.work:.0%}")
    table.add_row("all", f"{result.jobs:,}", str(result.loads), *_told(result.waits), f"{result.work:.0%}")
    return table


def _told(waits: Waits) -> list[str]:
    return [views.seconds(1000 * wait) for wait in (waits.median, waits.p90, waits.p99, waits.longest)]
