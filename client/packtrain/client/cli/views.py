"""How the fleet looks at a terminal: one table per kind, or the same facts as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import BaseModel
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from packtrain.broker import vectors
from packtrain.broker.api_keys import ApiKey
from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.explain import Explanation
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.outcome import JobStatus
from packtrain.broker.states import InstanceState
from packtrain.client.verify import Candidate, Verification

_M = TypeVar("_M", bound=BaseModel)


def show(rows: Sequence[_M], table: Callable[[Sequence[_M]], Table], *, empty: str, as_json: bool) -> None:
    """Print rows as JSON or as a table; `empty` is said to people when there are none."""
    if as_json:
        sys.stdout.write(json.dumps([row.model_dump(mode="json") for row in rows], indent=2) + "\n")
    elif rows:
        print_table(table(rows))
    else:
        console().print(empty)


def print_json(facts: dict[str, object]) -> None:
    """One line on stdout, at once, whoever reads it."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def show_job(status: JobStatus, *, as_json: bool) -> None:
    """Print one job."""
    if as_json:
        sys.stdout.write(json.dumps(status.model_dump(mode="json"), indent=2) + "\n")
        return
    out = console()
    print_table(jobs_table([status]))
    if status.cause and not (status.outcome and status.outcome.error):
        out.print(
            f"lost attempts: {status.attempts}, the last time {status.cause.instance} {status.cause}", markup=False
        )
    if status.outcome and status.outcome.error:
        out.print(f"error: {status.outcome.error['message']}", markup=False)
    if status.outcome and status.outcome.text:
        out.print(status.outcome.text)
    if status.outcome and status.outcome.embedding:
        out.print(f"a vector of {len(vectors.from_wire(status.outcome.embedding))} dimensions, see --json")
    for call in status.outcome.tool_calls if status.outcome else ():
        out.print(f"calls {call.function.name} with {call.function.arguments}", markup=False)


def show_explanation(found: Explanation, *, as_json: bool) -> None:
    """Say why a job is where it is."""
    if as_json:
        sys.stdout.write(json.dumps(found.model_dump(mode="json"), indent=2) + "\n")
        return
    out = console()
    age = seconds(found.now_ms - found.since_ms)
    out.print(f"{found.state.value} since {age}: {found.reason}")
    out.print(f"model {found.model}, lane {found.lane}, user {found.user}")
    if found.position is not None:
        rate = "not measured yet" if found.jobs_per_s is None else f"{found.jobs_per_s:.3g} jobs/s"
        out.print(f"place {found.position} of {found.waiting} in its lane, {found.ahead} jobs before it, {rate}")
        out.print("begins in: " + ("not known" if found.eta_s is None else f"about {seconds(found.eta_s * 1000)}"))


def one_line(found: Explanation) -> str:
    """The same for a status line."""
    eta = f", about {seconds(found.eta_s * 1000)}" if found.eta_s else ""
    return f"{found.state.value.lower()}: {found.reason}{eta}"


def show_verification(found: Verification, *, as_json: bool) -> None:
    """Say whether two answers are equal, or where they part."""
    if as_json:
        fields = asdict(found) | {"is_equal": found.is_equal, "is_same_class": found.is_same_class}
        receipts = {name: r.model_dump() if r else None for name, r in (("old", found.old), ("new", found.new))}
        sys.stdout.write(json.dumps(fields | receipts, indent=2) + "\n")
        return
    out = console()
    classes = [receipt.numerics_class if receipt else "unknown" for receipt in (found.old, found.new)]
    said = "equal" if found.is_equal else "DIFFERENT"
    out.print(f"{said}: run again as {found.new_job_id} by {found.instance} on {found.node}")
    out.print(f"numerics class {classes[0] if found.is_same_class else ' and then '.join(classes)}")
    if part := found.difference:
        unit = found.unit
        out.print(f"first difference at {unit} {part.index}: {_candidate(part.old)} became {_candidate(part.new)}")
        if not found.is_deterministic:
            out.print("it ran in fast numerics, where company may change an answer; submit with deterministic=True")
        elif not found.is_same_class:
            out.print("classes differ in build, weights, adapters or recipe, so answers may; compare with --json")


def _candidate(candidate: Candidate) -> str:
    if candidate.token is None and not candidate.text:
        return "the end"
    token = "" if candidate.token is None else f"{candidate.token} "
    logprob = "" if candidate.logprob is None else f" (logprob {candidate.logprob:.6f})"
    return f"{token}{candidate.text!r}{logprob}"


def jobs_table(rows: Sequence[JobStatus]) -> Table:
    """Jobs: where each is, how long it waited and ran."""
    table = _new("JOB", "STATE", "MODEL", "LANE", "AGE", "WAITED", "RAN", "TOKENS", "WHERE")
    now_ms = int(time.time() * 1000)
    for row in rows:
        outcome = row.outcome
        waited = (row.started_ms or row.finished_ms or now_ms) - row.submitted_ms
        ran = "" if row.started_ms is None else seconds((row.finished_ms or now_ms) - row.started_ms)
        tokens = str(outcome.usage.completion_tokens) if outcome else ""
        table.add_row(
            row.id, row.state.value, row.model, row.lane, seconds(now_ms - row.submitted_ms), seconds(waited), ran,
            tokens, row.node or "",
        )  # fmt: skip
    return table


def instances_table(rows: Sequence[InstanceBeat]) -> Table:
    """Instances: what is loaded where and how busy it is; shards behind their heads."""
    table = _new(
        "INSTANCE", "MODEL", "NODE", "STATE", "SLOTS", "CONTEXT", "NUMERICS", "MEMORY", "THREADS", "TOK/S",
        "LARGEST BATCH",
        "REASON",
    )  # fmt: skip
    for row in sorted(rows, key=lambda row: (row.group or row.instance, row.is_shard, row.instance)):
        alive = not row.state.is_terminal
        computes = alive and not row.is_shard
        reason = "" if row.state in (InstanceState.READY, InstanceState.HOLDING) else row.reason
        table.add_row(
            row.instance, row.model, row.node, row.state.value,
            "" if row.is_shard else f"{row.slots_used}/{row.n_slots}", str(row.n_ctx or ""),
            _numerics(row), size(row.resident_bytes) if alive else "", str(row.threads) if computes else "",
            f"{row.tokens_per_s:.0f}" if computes else "", str(row.batch_peak or ""),
            "; ".join(filter(None, (row.part, reason))),
        )  # fmt: skip
    return table


def _numerics(row: InstanceBeat) -> str:
    return f"{row.numerics} ({row.recipe})" if row.numerics == "deterministic" and row.recipe else row.numerics


def nodes_table(rows: Sequence[NodeBeat]) -> Table:
    """Nodes: what each has."""
    table = _new("NODE", "CORES", "FREE", "BUDGET", "TOTAL", "GPU", "MODELS", "INSTANCES", "LABELS", "STATE", "REASON")
    for row in rows:
        table.add_row(
            row.node, str(row.cores), size(row.memory_free), size(row.memory_budget), size(row.memory_total),
            gpus(row), str(len(row.models)), str(len(row.instances)),
            " ".join(f"{key}={value}" for key, value in row.labels.items()), node_state(row), row.quarantine,
        )  # fmt: skip
    return table


def gpus(row: NodeBeat) -> str:
    """Memory of a node's GPUs."""
    own = [f"{size(device.free)} of {size(device.total)}" for device in row.devices if device.kind == "gpu"]
    return ", ".join(own) or ("shares RAM" if any(device.unified for device in row.devices) else "")


def node_state(row: NodeBeat) -> str:
    """One word for it."""
    if row.draining:
        return "draining"
    return "quarantine" if row.quarantine else "up"


def keys_table(rows: Sequence[ApiKey]) -> Table:
    """API keys: what each may do."""
    table = _new("NAME", "MODELS", "AT ONCE", "TOKENS/MIN", "ADMIN", "CREATED")
    for key in rows:
        created = datetime.fromtimestamp(key.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
        table.add_row(
            key.name, ", ".join(key.models) or "all", str(key.concurrent or "any"),
            str(key.tokens_per_minute or "any"), "yes" if key.is_admin else "no", created,
        )  # fmt: skip
    return table


def models_table(rows: Sequence[ModelInfo]) -> Table:
    """Models: what each is and needs."""
    table = _new("MODEL", "TYPE", "PARAMETERS", "QUANT", "WEIGHTS", "NEEDS", "CONTEXT", "SLOTS", "TRAINED", "DOES")
    for row in rows:
        if row.alias_of:
            spill = "" if row.spill_after_s is None else f" after {row.spill_after_s:g} s"
            others = f", else{spill} {', '.join(row.targets[1:])}" if row.targets[1:] else ""
            table.add_row(row.id, f"= {row.alias_of}{others}", *[""] * 8)
            continue
        if row.remote:
            context = str(row.n_ctx or "")
            table.add_row(
                row.id, row.remote, "", "", "", size(row.required_bytes), context, str(row.n_slots), "", "remote"
            )
            continue
        table.add_row(
            row.id, row.architecture, f"{row.parameters / 1e6:,.0f} M", row.quantization, size(row.weights_bytes),
            size(row.required_bytes), str(row.n_ctx), str(row.n_slots), str(row.n_ctx_train),
            _does(row),
        )  # fmt: skip
    return table


def _does(row: ModelInfo) -> str:
    if row.embeds_only:
        return "embed"
    does = "chat" if row.has_chat_template else "complete"
    return ", ".join((does, *row.modalities[1:]))


def console() -> Console:
    """Stdout, as wide as it needs to be when nobody looks at it: a script must not meet cut columns."""
    out = Console(highlight=False, markup=False)
    return out if out.is_terminal else Console(highlight=False, markup=False, width=250)


def print_table(table: Table) -> None:
    """A table in its own width. A narrower terminal wraps its lines: an id that was cut could not be copied."""
    out = console()
    needed = Measurement.get(out, out.options.update(width=1_000), table).maximum
    Console(highlight=False, markup=False, width=max(out.width, needed)).print(table)


def size(num_bytes: int) -> str:
    """Bytes for people.

    >>> size(0), size(150 * 1024**2), size(24 * 1024**3)
    ('0 MiB', '150 MiB', '24.0 GiB')
    """
    mib = num_bytes / 1024**2
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def seconds(milliseconds: float) -> str:
    """A duration for people.

    >>> seconds(80), seconds(2500), seconds(200_000)
    ('0.08 s', '2.5 s', '3 min')
    """
    s = max(0.0, milliseconds / 1000)
    if s < 1:
        return f"{s:.2f} s"
    return f"{s:.1f} s" if s < 120 else f"{s / 60:.0f} min"


def _new(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column != "REASON")
    return table
