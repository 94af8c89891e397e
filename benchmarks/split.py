"""A model over 1, 2 and 3 nodes on this machine: tokens per second of a job alone and of eight together, seconds of a
load, and the planner's forecast beside the first.

Nodes are processes with one thread each. Links are a proxy that adds a round trip, or the tunnel. "as llama.cpp" is its
own way to lay out the same split, with the output on the last node.

    python -m benchmarks.split                    all of it, 3 minutes on a quiet machine
    python -m benchmarks.split --nodes 2 --round-trips 0 20
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from benchmarks.common import arguments_parser
from packtrain.broker.ids import NodeId
from packtrain.broker.placement.split import Link, Share, SplitPlan
from packtrain.broker.placement.split_speed import forecast
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends import llama_cpp_params
from packtrain.workers.backends.base import StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.gguf import GgufHeader, read_header
from packtrain.workers.shards.process import ShardProcess
from packtrain.workers.shards.split import ShardPlace, Split
from packtrain.workers.tunnel.certificate import new_identity
from tests.support.tcp_proxy import TcpProxy
from tests.support.tunnels import end

SLOTS, CONTEXT, PROMPT = 8, 512, 32
GREEDY = SamplingParams(temperature=0)


@dataclass(frozen=True)
class Shown:
    """What one set-up gave."""

    name: str
    load_s: float
    alone: float  # tokens/s
    together: float  # tokens/s of all slots
    kb_per_step: float  # over all links, of one job
    forecast: float | None = None


def decode(backend: LlamaCppBackend, slots: range, seconds: float) -> tuple[float, int]:
    """Tokens per second of these slots, by the median step, for others may use this machine; and steps."""
    for slot in slots:
        backend.open(slot, GREEDY, 1, [], 0)
        backend.truncate(slot, 0)
    rows = [StepRows(slot, 0, [100 + 7 * slot + i for i in range(PROMPT)], True) for slot in slots]
    last = [sampled.token for sampled in backend.step(rows, None)]
    times, position, end = list[float](), PROMPT, time.perf_counter() + seconds
    while time.perf_counter() < end and position < CONTEXT:
        begin = time.perf_counter()
        rows = [StepRows(slot, position, [token], True) for slot, token in zip(slots, last, strict=True)]
        last = [sampled.token for sampled in backend.step(rows, None)]
        times.append(time.perf_counter() - begin)
        position += 1
    for slot in slots:
        backend.close(slot)
    return len(slots) / statistics.median(times), len(times) + 1


def measure(name: str, path: Path, seconds: float, split: Split | None, links: Sequence[TcpProxy]) -> Shown:
    """Load and decode."""
    begin = time.perf_counter()
    backend = LlamaCppBackend(path, model="m", n_slots=SLOTS, n_ctx=CONTEXT, n_threads=1, split=split)
    load_s = time.perf_counter() - begin
    decode(backend, range(1), seconds / 4)
    before = _crossed(links)
    alone, steps = decode(backend, range(1), seconds)
    crossed = (_crossed(links) - before) / steps
    together, _ = decode(backend, range(SLOTS), seconds)
    backend.shutdown()
    return Shown(name, load_s, alone, together, crossed / 1000)


@contextmanager
def shards(count: int) -> Iterator[list[ShardProcess]]:
    """So many."""
    with ExitStack() as stack:
        made = [ShardProcess(cache_folder=None, n_threads=1) for _ in range(count)]
        for shard in made:
            stack.callback(shard.close)
        for shard in made:
            shard.wait()
        yield made


@contextmanager
def tunnels(ports: Sequence[int]) -> Iterator[list[int]]:
    """Ports that lead to these through a tunnel each."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="packtrain-bench-")))
        near, far = new_identity(folder / "near", "near"), new_identity(folder / "far", "far")
        led = []
        for target in ports:
            far_end = end("exit", far, near, target)
            stack.callback(far_end.close)
            near_end = end("entry", near, far, far_end.port)
            stack.callback(near_end.close)
            led.append(near_end.port)
        yield led


def deal(n_layer: int, nodes: int) -> list[int]:
    """Layers of each shard, as even as can be; the head has the rest."""
    return [n_layer // nodes] * (nodes - 1)


def forecast_of(header: GgufHeader, layers: Sequence[int], alone: float, link: Link) -> float | None:
    """Tokens per second by the planner, from what the model showed unsplit here and what the link is."""
    rate = alone * (sum(header.layer_bytes) + header.output_bytes)
    head = header.n_layer - sum(layers)
    shares, weights, first = [Share(NodeId("n0"), 0, head, 0, 0)], {}, head
    weights[NodeId("n0")] = sum(header.layer_bytes[:head]) + header.output_bytes
    for number, count in enumerate(layers, 1):
        shares.append(Share(NodeId(f"n{number}"), first, count, 0, 0, link))
        weights[NodeId(f"n{number}")] = sum(header.layer_bytes[first : first + count])
        first += count
    rates = dict.fromkeys(weights, rate)
    return forecast(SplitPlan(tuple(shares)), weights, rates, n_embd=header.n_embd).tokens_per_s


def main() -> None:
    """Entry point."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--round-trips", type=float, nargs="*", default=[0, 0.2, 2, 20], help="ms that links add")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    arguments = parser.parse_args()
    path, header, seconds = arguments.model, read_header(arguments.model), arguments.seconds
    unsplit = measure("1 node", path, seconds, None, ())
    show([unsplit])
    for nodes in arguments.nodes:
        layers = deal(header.n_layer, nodes)

        def split(ports: Sequence[int], layers: Sequence[int] = layers) -> Split:
            return Split(shards=tuple(ShardPlace(port=p, layers=n) for p, n in zip(ports, layers, strict=True)))

        with shards(nodes - 1) as made, patch.object(llama_cpp_params, "_OUTPUT", ()), ExitStack() as stack:
            links = [stack.enter_context(TcpProxy(shard.port)) for shard in made]
            theirs = split([link.port for link in links])
            show([measure(f"{nodes} nodes as llama.cpp", path, seconds, theirs, links)])
        for trip_ms in arguments.round_trips:
            with shards(nodes - 1) as made, ExitStack() as stack:
                links = [stack.enter_context(TcpProxy(s.port, round_trip_s=trip_ms / 1000)) for s in made]
                name = f"{nodes} nodes, {trip_ms:g} ms"
                shown = measure(name, path, seconds, split([link.port for link in links]), links)
            said = forecast_of(header, layers, unsplit.alone, Link(1e9, trip_ms / 1000))
            show([Shown(name, shown.load_s, shown.alone, shown.together, shown.kb_per_step, said)])
        with shards(nodes - 1) as made, tunnels([shard.port for shard in made]) as ports:
            show([measure(f"{nodes} nodes, tunnel", path, seconds, split(ports), ())])


def show(rows: Sequence[Shown]) -> None:
    """One line each, as soon as it is known."""
    for row in rows:
        said = "" if row.forecast is None else f"   forecast {row.forecast:6.1f} ({row.alone / row.forecast - 1:+.0%})"
        sys.stdout.write(
            f"{row.name:24} load {row.load_s:5.2f} s   alone {row.alone:6.1f} tokens/s   {SLOTS} together "
            f"{row.together:6.1f}   {row.kb_per_step:5.1f} KB a step{said}\n"
        )
        sys.stdout.flush()


def _crossed(links: Sequence[TcpProxy]) -> int:
    return sum(link.num_sent + link.num_received for link in links)


if __name__ == "__main__":
    main()
