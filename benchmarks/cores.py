"""Tokens per second of two instances that work at the same time on the same cores, against one that has them all:

    alone     one instance at work, the other idle
    dealt     both at work, the agent deals the cores to them
    undealt   both at work, each with as many threads as there are cores: two nodes that know nothing of each other

The three take turns in one run, so that a noisy machine hits them alike. Each instance at work runs the same jobs, of
32 to 96 tokens. Shown: the median of the rounds, and ratios to `alone`.

    python benchmarks/cores.py --model ~/.cache/packtrain/models/smollm2.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and queue.py there would be everybody's `queue`.
ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from benchmarks.throughput import options, prompt
from packtrain.broker.ids import NodeId
from packtrain.client import Packtrain
from packtrain.client.cli.up import UpOptions, running_fleet

SLOTS = 8
CONTEXT = 512
AT_ONCE = (1, 8)
JOBS = {1: 4, 8: 24}

Target = tuple[Packtrain, str]  # a fleet, and one of its models


@contextmanager
def fleet(model: Path, names: Sequence[str], threads: int) -> Iterator[Packtrain]:
    """A fleet of one node that has loaded the same file under each of these names."""
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as folder:
        home = Path(folder)
        (home / "models").mkdir()
        settings = ""
        for name in names:
            # Copies: two names of one file would be one model.
            (home / "models" / f"{name}.gguf").write_bytes(model.read_bytes())
            settings += f"[models.{name}]\nslots = {SLOTS}\ncontext = {CONTEXT}\nkeep_alive = -1\npinned = true\n"
        (home / "packtrain.toml").write_text(settings)
        up = UpOptions(
            home=home, port=0, node=NodeId("bench"), quiet=True, drain_s=1, env={"PACKTRAIN_CORES": str(threads)}
        )
        with running_fleet(up) as running, Packtrain(running.url) as client:
            for name in names:
                client.generate(name, "warm up", max_tokens=2)
            yield client


def measure(targets: Sequence[Target], jobs: int, at_once: int) -> float:
    """Tokens per second of all targets together, each with as many jobs of its own."""
    tokens: list[int] = []

    def user(target: Target, numbers: Iterator[int], lock: threading.Lock) -> None:
        client, model = target
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            result = client.generate(model, prompt(number), **options(number))  # type: ignore[arg-type]
            tokens.append(result.usage.completion_tokens)

    users = []
    for target in targets:
        shared = (target, iter(range(jobs)), threading.Lock())
        users += [threading.Thread(target=user, args=shared) for _ in range(at_once)]
    begin = time.perf_counter()
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    return sum(tokens) / (time.perf_counter() - begin)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("PACKTRAIN_CACHE") or "~/.cache/packtrain").expanduser()
    parser.add_argument("--model", type=Path, default=cache / "models" / "smollm2.gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-once", type=int, nargs="+", choices=AT_ONCE, default=AT_ONCE, help="jobs of one instance")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    if not arguments.model.exists():
        sys.exit(f"{arguments.model} is not there; run `make model`")
    rates: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        dealt, first, second = (
            stack.enter_context(fleet(arguments.model, names, arguments.threads)) for names in ("ab", "a", "b")
        )
        systems: dict[str, list[Target]] = {
            "alone": [(dealt, "a")],
            "dealt": [(dealt, "a"), (dealt, "b")],
            "undealt": [(first, "a"), (second, "b")],
        }
        for number in range(arguments.rounds):
            for at_once in arguments.at_once:
                for name, targets in systems.items():
                    rate = measure(targets, JOBS[at_once], at_once)
                    rates.setdefault((name, at_once), []).append(rate)
                    print(f"round {number + 1}: {at_once} at once each, {name:7} {rate:6.1f} tok/s", flush=True)
    report(rates, arguments.model, arguments.threads)


def report(rates: dict[tuple[str, int], list[float]], model: Path, threads: int) -> None:
    """Print medians and ratios as a Markdown table."""
    print(f"\n{model.name}, {SLOTS} slots of {CONTEXT} tokens, {threads} cores; tokens/s of all instances at work")
    print(f"together, median of {max(map(len, rates.values()))} rounds (lowest - highest)\n")
    print("| at once, each | alone | dealt | undealt | dealt / alone | undealt / alone |")
    print("|---|---|---|---|---|---|")
    for at_once in sorted({at_once for _, at_once in rates}):
        runs = [rates[name, at_once] for name in ("alone", "dealt", "undealt")]
        cells = [f"{statistics.median(run):.0f} ({min(run):.0f} - {max(run):.0f})" for run in runs]
        alone, *others = map(statistics.median, runs)
        ratios = [f"{rate / alone:.2f}" for rate in others]
        print(f"| {at_once} | {' | '.join([*cells, *ratios])} |")


if __name__ == "__main__":
    main()
