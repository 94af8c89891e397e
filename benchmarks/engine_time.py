"""Where the engine's time goes: the engine alone, neither queue nor fleet, on the jobs of versus_llama_server.py.

    mixed    32 jobs, prompts of 10 to 200 tokens that begin differently, 32 to 96 tokens each, 16 at once
    prefix   64 jobs that share a prefix of about 400 tokens, 32 tokens each, 16 at once

Seconds within llama.cpp, apart for steps with prefill and steps that only decode, copies of prefixes, and all the rest:
planning, sampling, text.

    python benchmarks/engine_time.py --rounds 3
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and queue.py there would be everybody's `queue`.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from benchmarks.common import MODEL, arguments_parser, cpu_name, spread
from benchmarks.versus_llama_server import CONTEXT, SLOTS, workloads_for
from benchmarks.workloads import SAMPLING, Ask
from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import Sampled, StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.sequence import SequenceRequest, Tokens
from packtrain.workers.load_options import LoadOptions

PREFILL, DECODE, COPY = "steps with prefill", "steps that decode", "copies"


class TimedBackend(LlamaCppBackend):
    """The backend, with a watch."""

    def __init__(self, path: Path, *, n_threads: int, options: LoadOptions) -> None:
        self.reset()  # before it steps, which it does in a self-test
        super().__init__(path, model=MODEL, n_slots=SLOTS, n_ctx=CONTEXT, n_threads=n_threads, options=options)

    def reset(self) -> None:
        """Begin anew."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.rows: dict[str, int] = defaultdict(int)
        self.calls: dict[str, int] = defaultdict(int)

    def _count(self, name: str, rows: int, begin: float) -> None:
        self.seconds[name] += time.perf_counter() - begin
        self.rows[name] += rows
        self.calls[name] += 1

    def step(self, rows: Sequence[StepRows], should_stop: Callable[[], bool] | None) -> list[Sampled]:
        """As the backend's own."""
        begin = time.perf_counter()
        sampled = super().step(rows, should_stop)
        has_prefill = any(len(row.tokens) > 1 for row in rows)
        self._count(PREFILL if has_prefill else DECODE, sum(len(row.tokens) for row in rows), begin)
        return sampled

    def copy(self, source: int, targets: Sequence[int], num_tokens: int) -> None:
        """As the backend's own."""
        begin = time.perf_counter()
        super().copy(source, targets, num_tokens)
        self._count(COPY, len(targets), begin)

    def move(self, source: int, target: int) -> None:
        """As the backend's own."""
        begin = time.perf_counter()
        super().move(source, target)
        self._count(COPY, 1, begin)


def run(
    engine: Engine, backend: LlamaCppBackend, asks: Sequence[Ask], at_once: int, name: str
) -> tuple[float, list[float]]:
    """Seconds until all jobs are done, and those from when each was handed over to its first token."""
    free, done = threading.Semaphore(at_once), threading.Semaphore(0)
    handed_over: dict[int, float] = {}
    waits: dict[int, float] = {}

    def leave() -> None:
        free.release()
        done.release()

    begin = time.perf_counter()
    for ask in asks:
        free.acquire()
        params = SamplingParams.model_validate(
            {"temperature": ask.temperature, "max_tokens": ask.max_tokens, "ignore_eos": True, **SAMPLING}
        )
        prompt = tuple(backend.tokenize(ask.prompt))
        job_id = JobId(f"{name}-{ask.number}")

        def on_tokens(_: Tokens, number: int = ask.number) -> None:
            waits.setdefault(number, time.perf_counter() - handed_over[number])

        handed_over[ask.number] = time.perf_counter()
        engine.submit(SequenceRequest(job_id, prompt, params, ask.number, ask.max_tokens, on_tokens, lambda _: leave()))
    for _ in asks:
        done.acquire()
    return time.perf_counter() - begin, list(waits.values())


def main() -> None:
    """Entry point."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--numerics", choices=("fast", "deterministic"), default="fast")
    parser.add_argument(
        "--flash-attention", action=argparse.BooleanOptionalAction, help="default: as llama.cpp has it, on"
    )
    parser.add_argument("--kv-type", default="f16", help="of the cache, for fast numerics")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    options = LoadOptions(
        numerics=arguments.numerics, flash_attention=arguments.flash_attention, kv_type=arguments.kv_type
    )
    backend = TimedBackend(arguments.model, n_threads=arguments.threads, options=options)
    engine = Engine(backend, clock=time.monotonic)
    threading.Thread(target=engine.run, daemon=True).start()
    workloads = workloads_for(arguments.model)
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(arguments.rounds):
        run(engine, backend, workloads.warm_up(SLOTS), SLOTS, f"warm {number}")
        for scenario, asks in {"mixed": workloads.mixed(32, 0.8), "prefix": workloads.prefix(64, 0.8)}.items():
            backend.reset()
            seconds, waits = run(engine, backend, asks, SLOTS, f"{scenario} {number}")
            tokens = sum(ask.max_tokens for ask in asks)
            values = {"seconds": seconds, "tokens/s": tokens / seconds, "jobs/s": len(asks) / seconds}
            values |= {"first token, s, mean": statistics.mean(waits), "first token, s, longest": max(waits)}
            values |= {f"{part}, s": backend.seconds[part] for part in (PREFILL, DECODE, COPY)}
            values["the rest, s"] = seconds - sum(backend.seconds.values())
            values |= {f"{part}, number": backend.calls[part] for part in (PREFILL, DECODE, COPY)}
            values |= {f"{part}, rows": backend.rows[part] for part in (PREFILL, DECODE)}
            for what, value in values.items():
                found[scenario, what].append(value)
            print(f"round {number + 1}: {scenario}: {seconds:.1f} s", flush=True)
    engine.stop()
    print(
        f"\n{arguments.model.name}, {arguments.numerics}, {SLOTS} slots, {arguments.threads} threads on {cpu_name()};"
    )
    print(f"median of {arguments.rounds} rounds (lowest - highest)\n\n| | mixed | prefix |\n|---|---|---|")
    for what in [what for scenario, what in found if scenario == "mixed"]:
        digits = 0 if what.endswith(("number", "rows")) else 2
        print(f"| {what} | {spread(found['mixed', what], digits)} | {spread(found['prefix', what], digits)} |")


if __name__ == "__main__":
    main()
