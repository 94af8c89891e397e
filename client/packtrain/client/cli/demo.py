"""`packtrain demo`: the main job on real input, from nothing to nothing, with the time it took.

A whole fleet comes up in a temporary home; one answer is streamed, one comes over HTTP, many jobs run at once; then all
of it goes away.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from packtrain.broker.errors import SetupError
from packtrain.broker.ids import NodeId
from packtrain.client.cli.gateway_page import missing_for_gateway
from packtrain.client.cli.up import UpOptions, running_fleet
from packtrain.client.client import Packtrain
from packtrain.client.result import Result

FIRST = "In two sentences: why do pack animals walk in a line?"
SECOND = "Name three pack animals."
TOPICS = (
    "rain", "bread", "bridges", "owls", "salt", "mirrors", "rivers", "clocks", "honey", "snow", "maps", "kites",
    "moss", "lamps", "trains", "tea",
)  # fmt: skip
MAX_TOKENS = 48


class Stopwatch:
    """Names of steps and the seconds each took."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Time a step."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.laps[name] = time.monotonic() - begin


def run(models: Sequence[Path], model: str, num_jobs: int) -> int:
    """Run the demo. The exit code: 1 when a process was left behind."""
    out = Console(highlight=False)
    watch = Stopwatch()
    pids: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="packtrain-demo-") as folder, ExitStack() as stack:
        options = UpOptions(
            home=Path(folder), port=0, models=tuple(models), node=NodeId("laptop"), quiet=True, drain_s=5,
            http_port=None if missing_for_gateway() else 0,
        )  # fmt: skip
        with watch.lap("start the fleet"), out.status("starting broker, coordinator and node agent"):
            fleet = stack.enter_context(running_fleet(options))
        stack.push(_timed_exit(watch, stack.pop_all()))
        pids |= fleet.pids
        client = stack.enter_context(Packtrain(fleet.url))
        out.print(f"[bold]A fleet is up:[/] {fleet.broker}, coordinator, agent of node {fleet.node}.")
        _check_offered(client, model, models)
        with watch.lap(f"load {model}"), out.status(f"loading {model}"):
            client.generate(model, "Hi", max_tokens=1)
        pids |= {instance.instance: instance.pid for instance in client.instances() if instance.pid}
        out.print(f"[bold]{model} is loaded.[/] We ask: {FIRST}\n")
        with watch.lap("stream one answer"):
            for text in client.stream(model, FIRST, max_tokens=80, seed=7):
                out.print(text, end="", markup=False, soft_wrap=True)
        out.print("\n")
        if fleet.gateway:
            with watch.lap("ask over HTTP"):
                _ask_over_http(out, fleet.gateway.url, model)
        prompts = [f"Write two sentences about {TOPICS[i % len(TOPICS)]}, number {i}." for i in range(num_jobs)]
        lap = f"{num_jobs} jobs at once"
        with watch.lap(lap), out.status(lap):
            results = list(client.map(model, prompts, in_flight=num_jobs, max_tokens=MAX_TOKENS))
        _print_summary(out, results, watch.laps[lap], client)
    _print_times(out, watch)
    left = [name for name, pid in pids.items() if _is_alive(pid)]
    if left:
        out.print(f"[red]still running: {', '.join(left)}[/]")
        return 1
    out.print(f"\nNothing is left behind: {', '.join(pids)} have ended, the temporary home is gone.")
    return 0


def _ask_over_http(out: Console, url: str, model: str) -> None:
    body = json.dumps({"model": model, "max_tokens": 24, "seed": 7, "messages": [{"role": "user", "content": SECOND}]})
    out.print(f"[bold]OpenAI's API[/] is at {url}/v1:\n\n  curl {url}/v1/chat/completions -d '{body}'", soft_wrap=True)
    asked = urllib.request.Request(f"{url}/v1/chat/completions", body.encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310
        said = json.load(answer)["choices"][0]["message"]["content"]
    out.print(f"  {' '.join(said.split())}\n", markup=False, soft_wrap=True)


def _check_offered(client: Packtrain, model: str, folders: Sequence[Path]) -> None:
    if model not in {info.id for info in client.models()}:
        searched = ", ".join(map(str, folders))
        raise SetupError(f"there is no model {model!r} in {searched}; `make demo` gets the demo model, see the README")


def _timed_exit(watch: Stopwatch, inner: ExitStack) -> Callable[..., bool | None]:
    def leave(*exception: Any) -> bool | None:
        with watch.lap("stop the fleet"):
            return inner.__exit__(*exception)

    return leave


def _print_summary(out: Console, results: Sequence[Result], seconds: float, client: Packtrain) -> None:
    tokens = sum(result.usage.completion_tokens for result in results)
    waits = sorted(result.timings.queue_ms + (result.timings.first_token_ms or 0) for result in results)
    rows = [
        ("jobs done", f"{len(results)} of {len(results)}, through Redis and Celery"),
        ("tokens", f"{tokens} in {seconds:.1f} s: {tokens / seconds:.0f} tokens/s"),
        ("largest batch", f"{max(result.batch_peak for result in results)} sequences in one step"),
        (
            "time to first token",
            f"{median(waits) / 1000:.2f} s median, {waits[-1] / 1000:.2f} s longest, queue included",
        ),
        ("one of the answers", escape(" ".join(results[0].text.split())[:90]) + " ..."),
    ]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    for row in rows:
        table.add_row(*row)
    out.print("[bold]What happened[/]")
    out.print(table)
    out.print("\n[bold]Where each part ran[/]")
    ran = Counter((result.node, result.instance) for result in results)
    for instance in client.instances():
        if not instance.state.is_terminal:
            jobs = ran[instance.node, instance.instance]
            out.print(
                f"  {instance.instance} on node {instance.node} (pid {instance.pid}): {jobs} jobs, "
                f"{instance.n_slots} slots, {instance.resident_bytes / 1024**2:.0f} MiB"
            )


def _print_times(out: Console, watch: Stopwatch) -> None:
    out.print("\n[bold]Where the time went[/]")
    for name, seconds in watch.laps.items():
        out.print(f"  {name:<24}{seconds:6.1f} s")
    out.print(f"  {'all of it':<24}{sum(watch.laps.values()):6.1f} s")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
