"""How `packtrain top` draws a fleet: the facts of the fleet page as lines of a terminal. Pure: facts in, lines out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from packtrain.broker.states import InstanceState, JobState
from packtrain.client.cli.views import seconds, size
from packtrain.client.gateway.page_facts import BatchFacts, Facts, JobFacts, MemoryBar

_BAR_CELLS = 32
_BLOCKS = "▁▂▃▄▅▆▇█"
#: Parts of a memory bar, as they stand in it: field, what it is called, style, character.
_PARTS = (
    ("weights", "weights", "blue", "█"),
    ("kv", "KV", "yellow", "█"),
    ("other", "other", "magenta", "█"),
    ("reserved", "reserved", "cyan", "░"),
    ("outside", "other programs", "bright_black", "▒"),
)
_JOB_STYLES = {JobState.RUNNING: "green", JobState.FAILED: "red", JobState.DEAD: "red"}
#: Lines that everything but jobs and events takes, beside its rows.
_FRAME = 12
_MAX_EVENTS, _MAX_BATCHES = 5, 3


def screen(facts: Facts, curve: Sequence[float | None], *, height: int) -> RenderableType:
    """A whole screen.

    Args:
        curve: Tokens per second lately, one for each cell.
        height: Lines there are. Jobs get what the rest leaves, at least three.
    """
    events = facts.events[:_MAX_EVENTS]
    taken = _FRAME + len(facts.nodes) + len(facts.instances) + len(facts.queues) + len(events)
    parts: list[RenderableType] = [_head(facts, curve), Text(), _nodes(facts)]
    if facts.instances:
        parts += [Text(), _instances(facts)]
    if facts.queues:
        parts += [Text(), _queues(facts)]
    if facts.jobs:
        parts += [Text(), _jobs(facts, max(3, height - taken))]
    if facts.batches:
        parts += [
            Text(),
            *(Text(f"{b.id}  {b.status}  {b.completed + b.failed} of {b.total}") for b in facts.batches[:3]),
        ]
    if events:
        parts += [Text(), *(_event(facts, number) for number in range(len(events)))]
    return Group(*parts)


def spark(values: Sequence[float | None]) -> str:
    """A curve in one line; a blank where nothing is known.

    >>> spark([0, 2, None, 8])
    '▁▂ █'
    """
    most = max((value for value in values if value is not None), default=0) or 1
    return "".join(" " if value is None else _BLOCKS[min(7, int(value / most * 7.999))] for value in values)


def bar(memory: MemoryBar, cells: int = _BAR_CELLS) -> Text:
    """The memory of a node in so many cells; a part that is there at all has at least one."""
    found = Text()
    left, total = cells, max(memory.budget, 1)
    for field, _, style, character in _PARTS:
        part = getattr(memory, field)
        mine = min(left, max(1, round(part / total * cells))) if part else 0
        found.append(character * mine, style)
        left -= mine
    return found.append("·" * left, "bright_black")


def _head(facts: Facts, curve: Sequence[float | None]) -> Text:
    ready = [each for each in facts.instances if each.state is InstanceState.READY]
    waiting = sum(queue.waiting for queue in facts.queues)
    head = Text()
    head.append(f"{facts.tokens_per_s:.0f} tokens/s ", "bold green").append(spark(curve), "green")
    head.append(f"   {sum(i.slots_used for i in ready)}/{sum(i.slots for i in ready)} slots at work   {waiting} wait")
    if facts.user:
        head.append(f"   jobs of {facts.user}")
    if not facts.is_led:
        head.append("   no coordinator leads", "bold red")
    head.append(f"   {datetime.fromtimestamp(facts.at_ms / 1000):%H:%M:%S}", "bright_black")
    return head


def _nodes(facts: Facts) -> Table:
    legend = Text("MEMORY ")
    for _, name, style, character in _PARTS:
        legend.append(character, style).append(f" {name} ")
    table = _table("NODE", legend, "USED", "BUDGET", "CORES", "STATE")
    for node in facts.nodes:
        memory = node.memory
        state = Text(f"{node.state} {node.reason}".strip(), "" if node.state == "up" else "red")
        table.add_row(
            node.node, bar(memory), size(memory.budget - memory.free), size(memory.budget),
            f"{node.cores_used}/{node.cores}", state,
        )  # fmt: skip
    if not facts.nodes:
        table.add_row("no node reports", "", "", "", "", "")
    return table


def _instances(facts: Facts) -> Table:
    table = _table("INSTANCE", "NODE", "STATE", "SLOTS", "TOK/S", "BATCH", "MEMORY")
    for each in facts.instances:
        is_ready = each.state is InstanceState.READY
        slots = Text("▮" * each.slots_used, "green").append("▯" * (each.slots - each.slots_used))
        said = "; ".join(filter(None, (each.part, each.reason)))
        is_shard = each.group not in ("", each.instance)
        busy = "" if is_shard else f"{each.slots_used}/{each.slots}"
        table.add_row(
            each.instance, each.node, each.state.lower() + (f": {said}" if said else ""),
            slots if is_ready and each.slots <= 32 else busy,
            f"{each.tokens_per_s:.0f}" if is_ready else "",
            f"{each.batch_mean:.1f}, peak {each.batch_peak}" if each.batch_mean is not None else "",
            size(each.memory if is_ready or each.state is InstanceState.HOLDING else each.reserved),
        )  # fmt: skip
    return table


def _queues(facts: Facts) -> Table:
    table = _table("QUEUE", "LANE", "WAITING", "OLDEST", "WHY")
    for queue in facts.queues:
        table.add_row(queue.route, queue.lane, f"{queue.waiting:,}", seconds(queue.oldest_ms), queue.reason)
    return table


def _jobs(facts: Facts, rows: int) -> Table:
    table = _table("JOB", "STATE", "MODEL", "USER", "AGE", "TOKENS", "WHERE AND WHY")
    for job in facts.jobs[:rows]:
        table.add_row(
            job.id[:8], Text(job.state.lower(), _JOB_STYLES.get(job.state, "")), job.model, job.user,
            seconds(facts.at_ms - job.submitted_ms), f"{job.tokens}", _why(job),
        )  # fmt: skip
    return table


def _why(job: JobFacts) -> str:
    if job.position is None:
        return ": ".join(filter(None, [job.node, job.reason]))
    eta = "" if job.eta_s is None else f", in about {seconds(job.eta_s * 1000)}"
    return f"place {job.position}{eta}: {job.reason}"


def _batch(batch: BatchFacts) -> Text:
    return Text(f"{batch.id}  {batch.status}  {batch.completed + batch.failed} of {batch.total} rows")


def _event(facts: Facts, number: int) -> Text:
    event = facts.events[number]
    style = "red" if event.kind in ("fault", "reject") else "bright_black"
    where = f" on {event.node}" if event.node else ""
    ago = f"{seconds(facts.at_ms - event.at_ms)} ago  "
    return Text(f"{ago}{event.kind} {event.model}{where}: {event.text}", style, no_wrap=True, overflow="ellipsis")


def _table(*columns: str | Text) -> Table:
    """The last column has what the others leave, so that a long reason makes no other one narrow."""
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for number, column in enumerate(columns, 1):
        table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if number == len(columns) else None)
    return table
