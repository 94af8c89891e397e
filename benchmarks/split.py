"""A model over 1, 2 and 3 nodes on this machine: tokens per second of a job alone and of eight together, seconds of a
load, and the planner's forecast beside each.

Nodes are processes with one thread each, and one computes at a time. Between them is a proxy that adds a round trip, or
the tunnel, or the tunnel over a cable of so many Mbit/s between network namespaces (as root). "as llama.cpp" is its own
way to lay out the same split, with the output on the last node.

    python -m benchmarks.split                        speeds, 4 minutes on a quiet machine
    python -m benchmarks.split --nodes 2 --round-trips 0 20 --bandwidths
    python -m benchmarks.split --loads                seconds of loads, of the model and of one with large tensors
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import arguments_parser
from benchmarks.split_head import SLOTS, Head, head
from benchmarks.split_ways import Ways, limited, proxied, tunnelled
from packtrain.broker.ids import NodeId
from packtrain.broker.placement.split import Link, Share, SplitPlan
from packtrain.broker.placement.split_speed import Forecast, forecast
from packtrain.workers.gguf import GgufHeader, read_header
from packtrain.workers.shards.split import ShardPlace, Split
from tests.support.hosts import why_not
from tests.support.tiny_model import write_tiny_model

#: Of the synthetic model: matrices of 16.5 MiB, of which llama.cpp keeps those beyond 10 MiB.
LARGE_LAYERS, LARGE_FF = 8, 67_584
ROUNDS = 3

Way = tuple[str, AbstractContextManager[Ways]]


def deal(n_layer: int, nodes: int) -> list[int]:
    """Layers of each shard, as even as can be; the head has the rest."""
    return [n_layer // nodes] * (nodes - 1)


def split_over(ports: Sequence[int], layers: Sequence[int]) -> Split:
    """Shards behind these ports."""
    return Split(shards=tuple(ShardPlace(port=p, layers=n) for p, n in zip(ports, layers, strict=True)))


def forecast_of(header: GgufHeader, layers: Sequence[int], rate: float, link: Link) -> Forecast:
    """By the planner, from what a model showed unsplit here, bytes a second, and what the links are."""
    head = header.n_layer - sum(layers)
    shares, weights, first = [Share(NodeId("n0"), 0, head, 0, 0)], {}, head
    weights[NodeId("n0")] = sum(header.layer_bytes[:head]) + header.output_bytes
    for number, count in enumerate(layers, 1):
        shares.append(Share(NodeId(f"n{number}"), first, count, 0, 0, link))
        weights[NodeId(f"n{number}")] = sum(header.layer_bytes[first : first + count])
        first += count
    rates = dict.fromkeys(weights, rate)
    return forecast(SplitPlan(tuple(shares)), weights, rates, n_embd=header.n_embd)


def ways(nodes: int, round_trips: Sequence[float], bandwidths: Sequence[float]) -> Iterator[Way]:
    """All that were asked for, with their names."""
    count = nodes - 1
    for trip in round_trips:
        yield f"{trip:g} ms", proxied(count, trip / 1000)
    yield "tunnel", tunnelled(count)
    for mbit in bandwidths:
        yield f"tunnel, {mbit:g} Mbit/s", limited(count, int(mbit * 1e6))


@dataclass(frozen=True)
class Came:
    """What a set-up gave."""

    load_s: float
    alone: float  # tokens/s of one job
    beside: float  # ... of the model unsplit, in the same seconds
    together: float  # tokens/s of all slots
    kb_per_step: float  # over all links, of a job alone


def measure(there: Head, unsplit: Head, seconds: float, crossed: Callable[[], int]) -> Came:
    """In turns with the model unsplit, for what else a machine does changes from second to second."""
    there.decode(1, seconds / ROUNDS)
    alone, beside, steps, before = list[float](), list[float](), 0, crossed()
    for _ in range(ROUNDS):
        pace, count = there.decode(1, seconds / ROUNDS)
        alone.append(pace)
        steps += count
        beside.append(unsplit.decode(1, seconds / ROUNDS)[0])
    kb_per_step = (crossed() - before) / steps / 1000
    together, _ = there.decode(SLOTS, seconds)
    return Came(there.load_s, statistics.median(alone), statistics.median(beside), together, kb_per_step)


def show_speeds(
    model: Path, nodes: Sequence[int], trips: Sequence[float], mbits: Sequence[float], seconds: float
) -> None:
    """A row for each way, as soon as it is known."""
    header = read_header(model)
    step_bytes = sum(header.layer_bytes) + header.output_bytes
    with head(model, None) as unsplit:
        unsplit.decode(1, seconds / ROUNDS)
        show("1 node", Came(unsplit.load_s, unsplit.decode(1, seconds)[0], 0, unsplit.decode(SLOTS, seconds)[0], 0))
        for count in nodes:
            layers = deal(header.n_layer, count)
            with proxied(count - 1, 0) as way, head(model, split_over(way.ports, layers), as_llama_cpp=True) as there:
                show(f"{count} nodes as llama.cpp", measure(there, unsplit, seconds, way.crossed))
            for name, made in ways(count, trips, mbits):
                with made as way, head(model, split_over(way.ports, layers), on=way.head) as there:
                    came = measure(there, unsplit, seconds, way.crossed)
                show(f"{count} nodes, {name}", came, forecast_of(header, layers, came.beside * step_bytes, way.link))


def show_loads(model: Path) -> None:
    """Cold and warm, on shards that keep tensors."""
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as base:
        large = write_tiny_model(Path(base) / "large.gguf", n_layer=LARGE_LAYERS, n_ff=LARGE_FF)
        for name, path in ((model.stem, model), ("large tensors", large)):
            header = read_header(path)
            layers = deal(header.n_layer, 2)
            for trip in (0.0, 0.02):
                caches = Path(base) / f"{name}-{trip}"
                for state in ("cold", "warm"):
                    with proxied(1, trip, caches) as way:
                        before = way.crossed()
                        with head(path, split_over(way.ports, layers)) as there:
                            crossed = (way.crossed() - before) / 1e6
                        way.keep_caches()
                        said = forecast_of(header, layers, 0, way.link).load_s if state == "cold" else None
                    show_load(f"{name}, {trip * 1000:g} ms, {state}", there.load_s, crossed, said)
            for mbit in () if why_not() else (100, 1000):
                with limited(1, mbit * 10**6) as way, head(path, split_over(way.ports, layers), on=way.head) as there:
                    said = forecast_of(header, layers, 0, way.link).load_s
                show_load(f"{name}, tunnel, {mbit} Mbit/s", there.load_s, 0, said)


def show(name: str, came: Came, said: Forecast | None = None) -> None:
    """One row of speeds."""
    load = f"of {said.load_s:5.2f} ({came.load_s / said.load_s - 1:+4.0%})" if said else ""
    pace = (
        f"of {said.tokens_per_s:5.1f} ({came.alone / said.tokens_per_s - 1:+4.0%})"
        if said and said.tokens_per_s
        else ""
    )
    sys.stdout.write(
        f"{name:26} load {came.load_s:5.2f} s {load:16} alone {came.alone:5.1f} tokens/s {pace:16} (unsplit "
        f"{came.beside:5.1f})   {SLOTS} together {came.together:5.1f}   {came.kb_per_step:5.1f} KB a step\n"
    )
    sys.stdout.flush()


def show_load(name: str, load_s: float, crossed_mb: float, said: float | None) -> None:
    """One row of loads."""
    beside = f"   forecast {said:6.2f} s ({load_s / said - 1:+4.0%})" if said else ""
    sys.stdout.write(f"{name:34} {load_s:6.2f} s   {crossed_mb:7.1f} MB crossed{beside}\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--round-trips", type=float, nargs="*", default=[0, 0.2, 2, 20], help="ms that links add")
    parser.add_argument("--bandwidths", type=float, nargs="*", default=[100, 1000], help="Mbit/s of cables")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--loads", action="store_true", help="measure loads instead")
    arguments = parser.parse_args()
    if arguments.loads:
        show_loads(arguments.model)
        return
    bandwidths = arguments.bandwidths
    if bandwidths and (reason := why_not()):
        sys.stdout.write(f"no cables: {reason}\n")
        bandwidths = []
    show_speeds(arguments.model, arguments.nodes, arguments.round_trips, bandwidths, arguments.seconds)


if __name__ == "__main__":
    main()
