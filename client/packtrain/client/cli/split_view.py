"""`packtrain plan --model M`: how a model would lie over several nodes, and how fast that would be."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.table import Table

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.errors import UnknownModel
from packtrain.broker.ids import ModelId
from packtrain.broker.placement import Snapshot
from packtrain.broker.placement.split_fleet import GroupSeen, ShareFit, SplitFit, fit_split
from packtrain.client.cli import views


def show_split(now: Snapshot, model: str, loaded: Sequence[InstanceBeat] = (), *, as_json: bool) -> None:
    """Print the plan, and how fast the model is where it lies over several nodes already.

    Args:
        now: The fleet as if nothing were loaded.
        loaded: What is.

    Raises:
        UnknownModel: No node offers it.
    """
    if ModelId(model) not in now.models:
        raise UnknownModel(model=model, known=list(now.models))
    found = fit_split(ModelId(model), now, loaded)
    if as_json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
        return
    out = views.console()
    out.print(f"{model} needs {views.size(found.required_bytes)} on one node", soft_wrap=True)
    for group in found.groups:
        out.print(_group(group), soft_wrap=True)
    if found.split_over:
        out.print(f"packtrain.toml has it lie over {', '.join(found.split_over)}", soft_wrap=True)
    elif found.fits_on:
        out.print(f"it fits on {', '.join(found.fits_on)} alone, so it needs no split", soft_wrap=True)
    if not found.shares:
        out.print("it cannot be split now:")
        for reason in found.missing:
            out.print(f"  {reason}", soft_wrap=True, markup=False)
        return
    out.print(_table(found.shares))
    out.print(_speed(found), soft_wrap=True)


def _group(group: GroupSeen) -> str:
    where = ", ".join(f"{count} layer{'s' * (count != 1)} on {node}" for node, count in group.layers.items())
    said = f"{group.state.value} as {group.instance}: {where}"
    forecast = f"{group.forecast_tokens_per_s:.1f} were forecast" if group.forecast_tokens_per_s else "no forecast"
    if group.alone_tokens_per_s:
        return f"{said}; one job alone gets {group.alone_tokens_per_s:.1f} tokens/s, {forecast}"
    if group.forecast_tokens_per_s:
        forecast = f"{group.forecast_tokens_per_s:.1f} tokens/s were forecast for one"
    return f"{said}; no job has run there alone yet, {forecast}"


def _table(shares: tuple[ShareFit, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("NODE", "PART"):
        table.add_column(name)
    for name in ("LAYERS", "TAKES", "MAY GIVE", "LINK", "ROUND TRIP"):
        table.add_column(name, justify="right")
    for share in shares:
        last = share.first_layer + share.layers - 1
        part = "head: input, output" if share.is_head else "shard"
        layers = f"{share.layers} ({share.first_layer} to {last})" if share.layers else "none"
        link = f"{share.bytes_per_s / 1e6:,.0f} MB/s" if share.bytes_per_s else ""
        trip = "" if share.round_trip_s is None else f"{share.round_trip_s * 1000:.2f} ms"
        table.add_row(share.node, part, layers, views.size(share.bytes), views.size(share.usable_bytes), link, trip)
    return table


def _speed(found: SplitFit) -> str:
    network = f"the network adds {found.network_s * 1000:.1f} ms to each token"
    load = f"its weights take {found.load_s:.1f} s over the links, the first time"
    if found.tokens_per_s is None or found.compute_s is None:
        nodes = ", ".join(found.unmeasured)
        return (
            f"{network}; {load}. The speed of {nodes} is not known yet: agents measure it in their first minute, and "
            "a long job shows it; ask again then"
        )
    return (
        f"forecast for one job alone: {found.tokens_per_s:.1f} tokens/s, by {found.compute_s * 1000:.1f} ms of "
        f"computing for each token; {network}; {load}"
    )
