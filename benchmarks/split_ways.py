"""Ways from a head to its shards, for `benchmarks.split`: a proxy that adds a round trip, the tunnel, a narrow cable.

Each carries some megabytes to a drain first, as nodes measure their links, so that a forecast knows what it forecasts.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from packtrain.broker.placement.split import Link
from packtrain.workers.shards.process import ShardProcess
from packtrain.workers.tunnel.certificate import new_identity
from tests.support.fleets import eventually
from tests.support.hosts import Host, hosts
from tests.support.split_hosts import end_on, listens, shard_on
from tests.support.tcp_proxy import TcpProxy
from tests.support.tunnels import end

PROBE_BYTES = 8 * 2**20  # as LINK_BYTES
SHARD_PORT, EXIT_PORT, PROBE_PORT = 50_100, 50_101, 50_102
#: Reads all that comes, and answers with a byte at the end of a probe.
DRAIN = """if True:
    import socket, sys
    with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
        while True:
            came, _ = listener.accept()
            left = int(sys.argv[3])
            while left > 0 and (data := came.recv(1 << 18)):
                left -= len(data)
            came.sendall(b"x")
"""
#: The other end of it: seconds that a probe took.
FILL = """if True:
    import socket, sys, time
    with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as to:
        begin = time.perf_counter()
        to.sendall(bytes(int(sys.argv[3])))
        to.recv(1)
        print(time.perf_counter() - begin, flush=True)
"""


@dataclass(frozen=True)
class Ways:
    """To all shards of a split, in order."""

    ports: Sequence[int]  # at the head's loopback
    link: Link  # what each is, as measured
    crossed: Callable[[], int] = lambda: 0
    head: Host | None = None  # where the head must run
    keep_caches: Callable[[], None] = lambda: None  # after a load


@contextmanager
def shards(count: int, caches: Path | None = None) -> Iterator[list[ShardProcess]]:
    """So many on this machine, with folders of tensors in this one."""
    with ExitStack() as stack:
        made = [ShardProcess(cache_folder=caches and caches / str(number), n_threads=1) for number in range(count)]
        for shard in made:
            stack.callback(shard.close)
        for shard in made:
            shard.wait()
        yield made


@contextmanager
def proxied(count: int, round_trip_s: float, caches: Path | None = None) -> Iterator[Ways]:
    """Through proxies that add a round trip."""
    with shards(count, caches) as made, ExitStack() as stack:
        links = [stack.enter_context(TcpProxy(shard.port, round_trip_s=round_trip_s)) for shard in made]
        drain = stack.enter_context(_drain())
        with TcpProxy(drain, round_trip_s=round_trip_s) as probe:
            link = Link(_bytes_per_s(probe.port, round_trip_s), round_trip_s)
        yield Ways(
            [way.port for way in links],
            link,
            lambda: sum(way.num_sent + way.num_received for way in links),
            keep_caches=lambda: _keep(made),
        )


@contextmanager
def tunnelled(count: int) -> Iterator[Ways]:
    """Through tunnels at loopback, both ends of each."""
    with shards(count) as made, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="packtrain-bench-")))
        near, far = new_identity(folder / "near", "near"), new_identity(folder / "far", "far")
        drain = stack.enter_context(_drain())
        led = []
        for target in [*(shard.port for shard in made), drain]:
            far_end = end("exit", far, near, target)
            stack.callback(far_end.close)
            near_end = end("entry", near, far, far_end.port)
            stack.callback(near_end.close)
            led.append(near_end.port)
        yield Ways(led[:-1], Link(_bytes_per_s(led[-1], 0), 0.0))


@contextmanager
def limited(count: int, bits_per_s: int) -> Iterator[Ways]:
    """Through tunnels between hosts whose cables carry so much. Needs what `tests.support.hosts` needs."""
    names = [f"shard{number}" for number in range(count)]
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as base, hosts("head", *names) as (head, *others):
        folder, led = Path(base), list[int]()
        near = new_identity(folder / "near", "near")
        for host in others:
            far = new_identity(folder / host.name, host.name)
            shard_on(host, SHARD_PORT, folder / f"{host.name}.log")
            inner, outer = ("127.0.0.1", SHARD_PORT), (host.address, EXIT_PORT)
            end_on(host, "exit", far, near, at=outer, to=inner, log=folder / f"{host.name}-exit.log")
            log = folder / f"{host.name}-entry.log"
            led.append(end_on(head, "entry", near, far, at=("127.0.0.1", 0), to=outer, log=log))
            host.limit(bits_per_s)
        probe = [sys.executable, "-c", DRAIN, others[0].address, str(PROBE_PORT), str(PROBE_BYTES)]
        drain = others[0].start(probe, {}, folder / "drain.log")
        eventually(lambda: listens(drain.pid, PROBE_PORT), "the drain", 30)
        told = folder / "fill.log"
        command = [sys.executable, "-c", FILL, others[0].address, str(PROBE_PORT), str(PROBE_BYTES)]
        head.start(command, {}, told).wait(60)
        yield Ways(led, Link(PROBE_BYTES / float(told.read_text()), 0.0), head=head)


def _keep(made: Sequence[ShardProcess]) -> None:
    for shard in made:
        shard.keep_cache()


@contextmanager
def _drain() -> Iterator[int]:
    """A port that takes probes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    came, _ = listener.accept()
                except OSError:
                    return
                left = PROBE_BYTES
                while left > 0 and (data := came.recv(1 << 18)):
                    left -= len(data)
                came.sendall(b"x")

        threading.Thread(target=run, daemon=True).start()
        yield int(listener.getsockname()[1])


def _bytes_per_s(port: int, round_trip_s: float) -> float:
    with socket.create_connection(("127.0.0.1", port)) as to:
        begin = time.perf_counter()
        to.sendall(bytes(PROBE_BYTES))
        to.recv(1)
        return PROBE_BYTES / max(1e-6, time.perf_counter() - begin - round_trip_s)
