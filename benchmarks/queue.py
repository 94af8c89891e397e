"""What the queue itself costs, with a model that costs nothing: our doorbell, claim, engine step and finish beside a
bare Celery no-op task. Same broker, same Celery configuration, same threads pool, in one run, taking turns.

    rate      jobs lie ready while the worker is stopped; then it runs, and we time until all have ended
    latency   jobs come one by one, every 10 ms; from submit to the start of the work, p50 and p99

    python benchmarks/queue.py
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and this very file would be everybody's `queue`.
ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

from redis import Redis

from packtrain.broker import keys
from packtrain.broker.celery_app import make_app
from packtrain.broker.connection import connect
from packtrain.broker.ids import ModelId, NodeId, route_of
from packtrain.client import InstanceState, Packtrain
from packtrain.client.cli.up import UpOptions, running_fleet

SLOTS = 16
PAUSE_S = 0.01
STARTS = "bench:starts"  # what the bare task leaves: its delays, seconds


def drained(is_empty: Callable[[], bool], pid: int) -> float:
    """Let a stopped worker run until there is nothing left; seconds."""
    begin = time.perf_counter()
    os.kill(pid, signal.SIGCONT)
    while not is_empty():
        time.sleep(0.005)
    return time.perf_counter() - begin


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as folder:
        home = Path(folder)
        (home / "models").mkdir()
        script = json.dumps({"n_slots": SLOTS, "n_ctx": 64, "keep_alive_s": -1})
        (home / "models" / "noop.scripted.json").write_text(script)
        up = UpOptions(home=home, port=0, node=NodeId("bench"), quiet=True, drain_s=1, env={"PACKTRAIN_SCRIPTED": "1"})
        with running_fleet(up) as running, Packtrain(running.url) as client:
            run(client, running.url, arguments.jobs, arguments.rounds)


def run(client: Packtrain, url: str, num_jobs: int, rounds: int) -> None:
    """Measure and print."""
    redis = connect(url, name="bench")
    client.generate("noop", "x", max_tokens=1)
    while not (ready := [i for i in client.instances() if i.state is InstanceState.READY]):
        time.sleep(0.1)  # it serves a moment before its agent has said so
    instance = ready[0]
    model = ModelId("noop")
    env = {**os.environ, "BARE_URL": url}
    bare = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare_worker"],
        env=env,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    app = make_app(url, name="bench")

    def send_bare() -> None:
        app.send_task("bare.noop", kwargs={"sent": time.time()}, queue="bare", ignore_result=True)

    def ours_empty() -> bool:
        return not redis.zcard(keys.ready(route_of(model), "interactive")) and not redis.zcard(keys.LEASES)

    def bare_empty() -> bool:
        return not redis.llen("bare") and not redis.hlen("unacked")

    try:
        while not redis.llen(STARTS):  # until its worker has started
            send_bare()
            time.sleep(0.3)
        rates: dict[str, list[float]] = {"ours": [], "bare": []}
        for number in range(rounds):
            os.kill(instance.pid, signal.SIGSTOP)
            for _ in range(num_jobs):
                client.submit("noop", "x", raw=True, max_tokens=1)
            rates["ours"].append(num_jobs / drained(ours_empty, instance.pid))
            # Bells of jobs that a neighbouring slot took are spare: they are answered before the next turn.
            while redis.llen(keys.model_queue(route_of(model))) or redis.hlen("unacked"):
                time.sleep(0.05)
            os.kill(bare.pid, signal.SIGSTOP)
            for _ in range(num_jobs):
                send_bare()
            rates["bare"].append(num_jobs / drained(bare_empty, bare.pid))
            print(f"round {number + 1}: ours {rates['ours'][-1]:.0f}/s, bare {rates['bare'][-1]:.0f}/s", flush=True)
        redis.delete(STARTS)
        ours, first_text = our_latency(client, rounds * 200)
        bare_delays = bare_latency(redis, send_bare, rounds * 200)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        ratio = medians["ours"] / medians["bare"]
        print(f"\nno-op jobs per second of one instance, {SLOTS} slots, median of {rounds} rounds of {num_jobs} jobs:")
        print(f"  ours {medians['ours']:.0f}, bare Celery {medians['bare']:.0f}: ratio {ratio:.2f}")
        print(f"\nmilliseconds, {rounds * 200} jobs, one every {PAUSE_S * 1000:.0f} ms (p50 / p99):")
        print(f"  submit to claim            {show(ours)}   (the broker's clock, whole milliseconds)")
        print(f"  bare Celery: send to start {show(bare_delays)}")
        print(f"  submit to first text seen  {show(first_text)}   (doorbell, claim, engine, stream, client)")
    finally:
        os.kill(instance.pid, signal.SIGCONT)
        os.kill(bare.pid, signal.SIGCONT)
        bare.terminate()
        bare.wait(20)
        redis.close()


def our_latency(client: Packtrain, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds from submit to claim, and from submit to the first text that the client sees."""
    starts, firsts = [], []
    for _ in range(count):
        begin = time.perf_counter()
        job = client.submit("noop", "x", raw=True, max_tokens=1)
        for _ in job.stream():
            firsts.append((time.perf_counter() - begin) * 1000)
            break
        starts.append(job.result().timings.queue_ms)
        time.sleep(PAUSE_S)
    return starts, firsts


def bare_latency(redis: Redis, send: Callable[[], None], count: int) -> list[float]:
    """Milliseconds from send to the first line of a bare task."""
    for _ in range(count):
        send()
        time.sleep(PAUSE_S)
    while redis.llen(STARTS) < count:
        time.sleep(0.05)
    return [float(delay) * 1000 for delay in redis.lrange(STARTS, 0, -1)]


def show(values: list[float]) -> str:
    """p50 / p99."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):6.1f} / {ordered[int(len(ordered) * 0.99)]:6.1f}"


if __name__ == "__main__":
    main()
