"""Tokens per second for 1, 4, 16 and 32 jobs at once, side by side in one run:

    fleet    client → Redis → Celery → instance → engine → Redis → client
    engine   the same engine alone, in one process, no queue
    naive    what one would write first: a Celery task that calls `llama_cpp.Llama` once

All three hold the same model file, threads and context at the same time and take turns, so that a noisy machine hits
them alike. A job produces 32 to 96 tokens, the same job the same number in each. Shown: the median of the rounds, and
ratios.

    python benchmarks/throughput.py --model ~/.cache/packtrain/models/smollm2.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and queue.py there would be everybody's `queue`.
ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)

import multiprocessing
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from benchmarks.common import MODEL, arguments_parser, bench_fleet, cpu_name, run_at_once, spread
from benchmarks.workloads import length
from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams

CONCURRENCY = (1, 4, 16, 32)
JOBS = {1: 4, 4: 8, 16: 32, 32: 32}
SLOTS = 16
CONTEXT = 512
TOPICS = ("rain", "bread", "bridges", "owls", "salt", "mirrors", "rivers", "clocks")

Measure = Callable[[int, int], tuple[int, float]]  # (jobs, at once) -> tokens, seconds


def prompt(number: int) -> str:
    """Short and different for each job."""
    return f"Write a short text about {TOPICS[number % len(TOPICS)]}, number {number}."


def options(number: int) -> dict[str, object]:
    """Sampling as people use it, with a known length."""
    return {"max_tokens": length(number), "temperature": 0.8, "ignore_eos": True, "seed": number}


@contextmanager
def fleet_system(model: Path, threads: int) -> Iterator[tuple[Measure, str]]:
    """A whole fleet; also gives its broker's URL."""
    with bench_fleet(model, threads=threads, slots=SLOTS, context=CONTEXT) as (running, client):
        client.generate(MODEL, "warm up", max_tokens=2)

        def do(number: int) -> int:
            result = client.generate(MODEL, prompt(number), **options(number))  # type: ignore[arg-type]
            return result.usage.completion_tokens

        def measure(jobs: int, users: int) -> tuple[int, float]:
            tokens, seconds = run_at_once(do, range(jobs), users)
            return sum(tokens), seconds

        yield measure, running.url


def engine_process(model: str, threads: int, pipe: Connection) -> None:
    """The engine alone: answers (jobs, at once) with (tokens, seconds)."""
    from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
    from packtrain.workers.engine.engine import Engine
    from packtrain.workers.engine.sequence import Ended, SequenceRequest, Tokens

    backend = LlamaCppBackend(Path(model), model=MODEL, n_slots=SLOTS, n_ctx=CONTEXT, n_threads=threads)
    engine = Engine(backend, clock=time.monotonic)
    threading.Thread(target=engine.run, daemon=True).start()

    def run(jobs: int, at_once: int) -> tuple[int, float]:
        begin = time.perf_counter()
        free = threading.Semaphore(at_once)
        tokens: list[int] = []
        done = threading.Event()

        def on_end(ended: Ended) -> None:
            tokens.append(ended.num_output)
            free.release()
            if len(tokens) == jobs:
                done.set()

        def on_tokens(_: Tokens) -> None:
            pass

        for number in range(jobs):
            free.acquire()
            text = backend.render_chat({"messages": [{"role": "user", "content": prompt(number)}]})
            params = SamplingParams.model_validate(options(number))
            prompt_tokens = tuple(backend.tokenize(text, add_special=False, parse_special=True))
            engine.submit(
                SequenceRequest(JobId(str(number)), prompt_tokens, params, number, length(number), on_tokens, on_end)
            )
        done.wait()
        return sum(tokens), time.perf_counter() - begin

    run(1, 1)
    pipe.send("ready")
    while (ask := pipe.recv()) is not None:
        pipe.send(run(*ask))


@contextmanager
def engine_system(model: Path, threads: int) -> Iterator[Measure]:
    """The engine alone, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=engine_process, args=(str(model), threads, theirs), daemon=True)
    process.start()
    ours.recv()

    def measure(jobs: int, at_once: int) -> tuple[int, float]:
        ours.send((jobs, at_once))
        tokens, seconds = ours.recv()
        return tokens, seconds

    yield measure
    ours.send(None)
    process.join(20)


@contextmanager
def naive_system(model: Path, threads: int, url: str) -> Iterator[Measure]:
    """A Celery worker whose task calls `Llama` once; `Llama` is not thread-safe, so it has one thread."""
    env = {**os.environ, "NAIVE_URL": url, "NAIVE_MODEL": str(model), "NAIVE_THREADS": str(threads)}
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.naive_worker", "worker"]
    command += ["-P", "solo", "-l", "ERROR", "--without-gossip", "--without-mingle", "-Q", "naive", "-n", "naive@bench"]
    worker = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ.update({key: env[key] for key in ("NAIVE_URL", "NAIVE_MODEL", "NAIVE_THREADS")})
    from benchmarks.naive_worker import generate

    def measure(jobs: int, _at_once: int) -> tuple[int, float]:  # one at a time is all it can do
        begin = time.perf_counter()
        pending = [generate.delay(prompt(number), length(number), number) for number in range(jobs)]
        return sum(task.get(timeout=600) for task in pending), time.perf_counter() - begin

    try:
        generate.delay("warm up", 2, 0).get(timeout=120)
        yield measure
    finally:
        worker.terminate()
        worker.wait(30)


def main() -> None:
    """Entry point."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model, threads = arguments.model, arguments.threads
    rates: dict[tuple[str, int], list[float]] = {}
    with (
        fleet_system(model, threads) as (fleet, url),
        engine_system(model, threads) as engine,
        naive_system(model, threads, url) as naive,
    ):
        systems = {"fleet": fleet, "engine": engine, "naive": naive}
        for number in range(arguments.rounds):
            for at_once in CONCURRENCY:
                for name, measure in systems.items():
                    tokens, seconds = measure(JOBS[at_once], at_once)
                    rates.setdefault((name, at_once), []).append(tokens / seconds)
                    print(
                        f"round {number + 1}: {at_once:2} at once, {name:6} {tokens / seconds:6.1f} tok/s", flush=True
                    )
    report(rates, model, threads)


def report(rates: dict[tuple[str, int], list[float]], model: Path, threads: int) -> None:
    """Print medians and ratios as a Markdown table."""
    median = {key: statistics.median(values) for key, values in rates.items()}
    print(f"\n{model.name}, {SLOTS} slots of {CONTEXT} tokens, {threads} threads on {cpu_name()};")
    print(f"32 to 96 tokens per job; tokens/s, median of {len(rates['fleet', 1])} rounds (lowest - highest)\n")
    print("| at once | fleet | engine alone | naive worker | fleet / engine | fleet / naive |")
    print("|---|---|---|---|---|---|")
    for at_once in CONCURRENCY:
        cells = [spread(rates[system, at_once]) for system in ("fleet", "engine", "naive")]
        fleet = median["fleet", at_once]
        ratios = f"{fleet / median['engine', at_once]:.2f} | {fleet / median['naive', at_once]:.2f}"
        print(f"| {at_once} | {' | '.join(cells)} | {ratios} |")


if __name__ == "__main__":
    main()
