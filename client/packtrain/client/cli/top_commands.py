"""`packtrain top`: the fleet page at a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from packtrain.broker.connection import connect
from packtrain.broker.errors import BrokerUnavailable
from packtrain.broker.history import Series
from packtrain.broker.settings import load_settings
from packtrain.client.cli.options import JSON
from packtrain.client.cli.top_view import screen
from packtrain.client.gateway.page_facts import Facts
from packtrain.client.gateway.page_watch import Watch
from packtrain.client.opening import HTTP_SCHEMES
from packtrain.client.redis_transport import reachable

#: Of the curve at the top: its last quarter of an hour, in this many cells.
SPAN_S, CELLS = 900, 30
#: Lines of a look that is printed.
PRINTED = 60
#: The curve changes each 15 s.
CURVE_EVERY_S = 5.0

Looks = tuple[Callable[[], Facts], Callable[[], Series]]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(top)


def top(
    every: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds from one look to the next.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end, as without a terminal.")] = False,
    as_json: JSON = False,
) -> None:
    """Watch the fleet at a terminal, until Ctrl-C.

    Nodes with what takes their memory, instances, queues, jobs and events, as on the fleet page. With --json: one look,
    as one line of JSON. Prompts and answers are in neither.
    """
    with _looks() as (look, curve):
        out = Console(highlight=False, markup=False)
        if as_json:
            sys.stdout.write(look().model_dump_json() + "\n")
        elif once or not out.is_terminal:
            wide = out if out.is_terminal else Console(highlight=False, markup=False, width=160)
            wide.print(screen(look(), _cells(curve()), height=PRINTED))
        else:
            _watch(out, look, curve, every)


def _watch(out: Console, look: Callable[[], Facts], curve: Callable[[], Series], every: float) -> None:
    with Live(console=out, screen=True, auto_refresh=False) as live:
        drawn_at, cells = float("-inf"), _cells(None)
        while True:
            begun = time.monotonic()
            try:
                if begun - drawn_at >= CURVE_EVERY_S:
                    cells, drawn_at = _cells(curve()), begun
                live.update(screen(look(), cells, height=out.height), refresh=True)
            except BrokerUnavailable as error:  # it comes back; a wrong key, say, ends this
                live.update(str(error), refresh=True)
            time.sleep(max(0.1, every - (time.monotonic() - begun)))


def _cells(curve: Series | None) -> list[float | None]:
    """The curve as means of neighbours, one for each cell."""
    values = list(curve.tokens_per_s) if curve else []
    step = max(1, len(values) // CELLS)
    found: list[float | None] = []
    for at in range(0, len(values), step):
        known = [value for value in values[at : at + step] if value is not None]
        found.append(sum(known) / len(known) if known else None)
    return found[-CELLS:]


@contextmanager
def _looks() -> Iterator[Looks]:
    """How the fleet is looked at: by the broker, or by a gateway where the URL names one."""
    settings = load_settings()
    url = settings.broker_url()
    if url.startswith(HTTP_SCHEMES):
        # Not above: most programs never need an HTTP client, whose import takes a tenth of a second.
        from packtrain.client.http_options import parse_options
        from packtrain.client.http_page import HttpWatch

        with HttpWatch(parse_options(url, settings.api_key, settings.ca)) as found:
            yield found.look, lambda: found.history(SPAN_S)
        return
    redis = connect(url, name="top")
    watch = Watch(redis)

    def look() -> Facts:
        with reachable(url):
            return watch.look()

    def curve() -> Series:
        with reachable(url):
            return watch.history(SPAN_S)

    try:
        yield look, curve
    finally:
        redis.close()
