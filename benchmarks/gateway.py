"""What HTTP costs: the gateway beside the Python client, on the same fleet with a model that costs nothing, in one run.

    latency   one request after the other, taking turns: a whole answer, and the first text of a stream
    rate      32 at once: requests per second, and the CPU time of the process that serves them
    streams   200 readers at once, 60 tokens each at 25 steps per second: CPU time per event of the gateway

    python -m benchmarks.gateway [--requests 400] [--rounds 3]

The reader of the HTTP answers is a bare socket, so that no client library is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import spread
from packtrain.client import AsyncPacktrain
from tests.support.fleets import scripted_fleet
from tests.support.gateways import gateway
from tests.support.raw_http import Connection

AT_ONCE = 32
NOOP: dict[str, Any] = {"model": "noop", "prompt": "x", "max_tokens": 1}
READERS, TOKENS = 200, 60
MODELS = {
    "noop": {"n_slots": 16, "n_ctx": 64, "keep_alive_s": -1},
    "text": {"n_slots": READERS, "n_ctx": 128, "step_ms": 40, "keep_alive_s": -1},
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as folder:
        home = Path(folder)
        with scripted_fleet(home, MODELS) as fleet, gateway(fleet.url, home) as door:
            for model in MODELS:
                fleet.client.generate(model, "x", max_tokens=1)
                fleet.instance(model)
            asyncio.run(run(fleet.url, door.url, door.process.pid, arguments.requests, arguments.rounds))


async def run(broker: str, url: str, pid: int, requests: int, rounds: int) -> None:
    """Measure and print."""
    served, own = psutil.Process(pid), psutil.Process()
    async with AsyncPacktrain(broker) as fleet, Connection.to(url) as http:

        async def python_whole() -> None:
            await fleet.generate("noop", "x", max_tokens=1)

        async def python_first() -> None:
            async with await fleet.stream("noop", "x", max_tokens=1) as texts:
                async for _ in texts:
                    pass

        async def http_first() -> None:
            async for _ in http.stream(**NOOP):
                pass

        print(f"milliseconds, {requests} requests one after the other (p50 / p99):")
        for what, python, over_http in (
            ("a whole answer", python_whole, lambda: http.complete(**NOOP)),
            ("a stream to its end", python_first, http_first),
        ):
            ours, theirs = await in_turns(python, over_http, requests)
            added = [h - p for h, p in zip(quantiles(theirs), quantiles(ours), strict=True)]
            print(f"  {what}: Python {shown(quantiles(ours))}, HTTP {shown(quantiles(theirs))}, added {shown(added)}")

        async def http_one(count: int) -> None:
            async with Connection.to(url) as connection:
                for _ in range(count):
                    await connection.complete(**NOOP)

        async def python_one(count: int) -> None:
            for _ in range(count):
                await python_whole()

        rates: dict[str, list[float]] = {"Python": [], "HTTP": []}
        costs: dict[str, list[float]] = {"Python": [], "HTTP": []}
        for _ in range(rounds):
            for name, one, process in (("Python", python_one, own), ("HTTP", http_one, served)):
                seconds, cpu_s = await at_once(one, AT_ONCE, max(1, requests // AT_ONCE), process)
                total = AT_ONCE * max(1, requests // AT_ONCE)
                rates[name].append(total / seconds)
                costs[name].append(1000 * cpu_s / total)
        print(f"{AT_ONCE} at once, {rounds} rounds: requests per second, CPU milliseconds of the serving process each:")
        for name in rates:
            print(f"  {name}: {spread(rates[name])}, {spread(costs[name], 2)}")

        events = 0

        async def read(_stream: int) -> None:
            nonlocal events
            async with Connection.to(url) as connection:
                async for _event in connection.stream(model="text", prompt="!long x", max_tokens=TOKENS):
                    events += 1

        before = served.memory_info().rss
        seconds, cpu_s = await at_once(read, READERS, 1, served)
        print(
            f"{READERS} streams of {TOKENS} tokens at once: {events} events in {seconds:.1f} s, "
            f"{1e6 * cpu_s / events:.0f} CPU microseconds each, "
            f"resident {before / 2**20:.0f} MiB before and {served.memory_info().rss / 2**20:.0f} after"
        )


async def in_turns(
    python: Callable[[], Awaitable[object]], over_http: Callable[[], Awaitable[object]], count: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of each call of the two, which take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(count):
        for do, found in zip((python, over_http), times, strict=True):
            begin = time.perf_counter()
            await do()
            found.append(1000 * (time.perf_counter() - begin))
    return times


async def at_once(
    do: Callable[[int], Awaitable[None]], users: int, each: int, process: psutil.Process
) -> tuple[float, float]:
    """Seconds until all are through, and CPU seconds of a process meanwhile."""
    begin, cpu = time.perf_counter(), process.cpu_times()
    await asyncio.gather(*(do(each) for _ in range(users)))
    after = process.cpu_times()
    return time.perf_counter() - begin, after.user + after.system - cpu.user - cpu.system


def quantiles(values: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    return statistics.median(values), statistics.quantiles(values, n=100)[98]


def shown(pair: Sequence[float]) -> str:
    return f"{pair[0]:.1f} / {pair[1]:.1f}"


if __name__ == "__main__":
    main()
