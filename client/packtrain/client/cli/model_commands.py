"""`packtrain models`: what the fleet offers, and what one model takes: estimated, measured, where it is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from packtrain.broker.errors import UnknownModel
from packtrain.client import InstanceBeat, ModelInfo, Packtrain
from packtrain.client.cli import views
from packtrain.client.cli.options import JSON

_SOURCES = {"header": "estimated from the file's header", "llama.cpp": "estimated by llama.cpp, without a load"}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    models = typer.Typer(help="List what the fleet offers, or `show` one model.", invoke_without_command=True)
    models.callback()(list_models)
    models.command("show")(show)
    app.add_typer(models, name="models")


def list_models(context: typer.Context, as_json: JSON = False) -> None:
    """List what the fleet offers, and files that it cannot offer; `models show MODEL` says what one takes."""
    if context.invoked_subcommand:
        return
    with Packtrain() as fleet:
        rows, beats = fleet.models(), fleet.nodes()
    empty = "no node offers a model; put a .gguf file into <home>/models, or name its folder with `up --models`"
    views.show(rows, views.models_table, empty=empty, as_json=as_json)
    if not as_json:
        out = views.console()
        for beat in beats:
            for fault in beat.faults:
                out.print(f"{beat.node} cannot offer {fault.file}: {fault.reason}", markup=False, soft_wrap=True)


def show(model: Annotated[str, typer.Argument(help="Model id or alias.")], as_json: JSON = False) -> None:
    """Show what one model takes and where it is loaded. Memory is estimated, and measured once it was loaded."""
    with Packtrain() as fleet:
        known = {info.id: info for info in fleet.models()}
        beats = fleet.instances()
    if model not in known:
        raise UnknownModel(model=model, known=list(known))
    info = known[known[model].alias_of or model]
    alive = [beat for beat in beats if beat.model == info.id and not beat.state.is_terminal]
    loaded = sorted(alive, key=lambda beat: (beat.group or beat.instance, beat.is_shard, beat.instance))
    if as_json:
        sys.stdout.write(json.dumps(model_facts(info, loaded), indent=2) + "\n")
        return
    out = views.console()
    if info.remote:
        out.print(f"{info.id}: answered by {info.remote}, {info.n_slots} requests at once; its process takes:")
    else:
        out.print(f"{info.id}: {info.file}, {info.architecture}, {info.quantization}, {info.parameters / 1e6:,.0f} M")
        options = "".join(f", {name} {value}" for name, value in info.options.items())
        out.print(f"loaded as {info.n_slots} slots of {info.n_ctx} tokens{options}")
    if info.projector:
        out.print(f"takes {', '.join(info.modalities)}, by {info.projector}")
    if info.adapters:
        out.print(adapters_table(info))
    out.print(memory_table(info))
    for beat in loaded:
        took = f"{views.size(beat.resident_bytes)} resident, {views.size(beat.reserved_bytes)} reserved"
        part = f" ({beat.part})" if beat.part else ""
        out.print(f"on {beat.node} as {beat.instance}{part}, {beat.state}: {took}", soft_wrap=True)
    if not loaded:
        out.print("not loaded now")


def model_facts(info: ModelInfo, loaded: Sequence[InstanceBeat]) -> dict[str, Any]:
    """One model for programs, sizes in bytes."""
    memory = info.memory
    return {
        **info.model_dump(mode="json"),
        "estimate": {
            "process_bytes": memory.process_bytes,
            "weights_bytes": memory.host("weights"),
            "cache_bytes": memory.host("cache"),
            "scratch_bytes": memory.scratch_bytes,
            "total_bytes": memory.estimated_bytes,
            "cache_bytes_per_slot": round(_cache(info) / info.n_slots),
            "cache_bytes_per_1000_tokens": round(_per_1000_tokens(info)),
        },
        "instances": [beat.model_dump(mode="json") for beat in loaded],
    }


def adapters_table(info: ModelInfo) -> Table:
    """Its LoRA adapters, and what is wrong with them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ADAPTER", "FILE", "SCALE", "WEIGHTS", ""):
        table.add_column(column)
    for adapter in info.adapters:
        fault = f"cannot be used: {adapter.fault}" if adapter.fault else ""
        weights = "" if adapter.fault else _mib(adapter.weights_bytes)
        table.add_row(adapter.name, adapter.file, f"{adapter.scale:g}", weights, fault)
    return table


def memory_table(info: ModelInfo) -> Table:
    """What it takes, part by part."""
    memory = info.memory
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    cache = f"{_mib(_cache(info) / info.n_slots)} per slot, {_mib(_per_1000_tokens(info))} per 1,000 tokens"
    if info.remote:
        table.add_row("process", _mib(memory.process_bytes), "Python and libraries")
    elif memory.buffers:
        table.add_row("process", _mib(memory.process_bytes), "Python, libraries, vocabulary")
        table.add_row("weights", _mib(memory.host("weights")), "")
        if memory.adapter_bytes:
            table.add_row("adapters", _mib(memory.adapter_bytes), "")
        if memory.image_bytes:
            table.add_row("projector", _mib(memory.image_bytes), "its weights and scratch space")
        table.add_row("cache", _mib(memory.host("cache")), cache)
        picture = ", and the largest picture" if memory.picture_bytes else ""
        table.add_row("scratch space", _mib(memory.scratch_bytes), f"of one step{picture}")
        table.add_row("in all", _mib(memory.estimated_bytes), _SOURCES[memory.source])
        for buffer in memory.buffers:
            if not buffer.on_host:
                parts = buffer.weights + buffer.cache + buffer.compute
                table.add_row(f"on {buffer.buffer}", _mib(parts), "not in the machine's own memory")
    if memory.measured_bytes:
        share = memory.measured_bytes / memory.estimated_bytes
        table.add_row("measured", _mib(memory.measured_bytes), f"{share:.1%} of the estimate, loaded just like this")
    elif memory.factor != 1:
        table.add_row("measured", f"× {memory.factor:.3f}", "of the estimate, with other slots or context")
    table.add_row("reserved", _mib(info.required_bytes), "when it is loaded")
    return table


def _cache(info: ModelInfo) -> int:
    """Of all slots, wherever it lies."""
    return sum(buffer.cache for buffer in info.memory.buffers)


def _per_1000_tokens(info: ModelInfo) -> float:
    return 1000 * _cache(info) / (info.n_slots * info.n_ctx) if info.n_ctx else 0.0


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 1024**2:,.1f} MiB"
