"""What the benchmarks share: a fleet for one model, jobs at once by threads, CPU seconds, and how figures are shown."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from packtrain.broker.ids import NodeId
from packtrain.client import Packtrain
from packtrain.client.cli.up import RunningFleet, UpOptions, running_fleet

MODEL = "bench"  # its name in the fleet
CACHE = Path(os.environ.get("PACKTRAIN_CACHE") or "~/.cache/packtrain").expanduser()

_J = TypeVar("_J")
_R = TypeVar("_R")


def arguments_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows `--model` and `--threads` already."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=_model_file, default=str(CACHE / "models" / "smollm2.gguf"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser


def _model_file(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.exists():
        sys.exit(f"{path} is not there; run `make model`, or name a GGUF file by --model")
    return path


@contextmanager
def bench_fleet(
    model: Path, *, threads: int, slots: int, context: int, options: str = ""
) -> Iterator[tuple[RunningFleet, Packtrain]]:
    """A whole fleet that offers `model` as `MODEL`, with `context` tokens in each slot. Nothing is loaded yet.

    Args:
        options: Further lines of the model's section in packtrain.toml.
    """
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as folder:
        home = Path(folder)
        (home / "models").mkdir()
        os.symlink(model.absolute(), home / "models" / f"{MODEL}.gguf")
        (home / "packtrain.toml").write_text(f"[models.{MODEL}]\nslots = {slots}\ncontext = {context}\n{options}\n")
        env = {"PACKTRAIN_CORES": str(threads)}
        up = UpOptions(home=home, port=0, node=NodeId("bench"), quiet=True, drain_s=1, env=env)
        with running_fleet(up) as running, Packtrain(running.url) as client:
            yield running, client


def run_at_once(do: Callable[[_J], _R], jobs: Sequence[_J], users: int) -> tuple[list[_R], float]:
    """Let `users` threads take the jobs one after another; results in the order of the jobs, and seconds."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(users) as pool:
        results = list(pool.map(do, jobs))
    return results, time.perf_counter() - begin


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system seconds so far of these processes and all that they started and still runs."""
    family = {child for pid in pids for child in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))}
    return sum(times.user + times.system for times in (process.cpu_times() for process in family))


def cpu_name() -> str:
    """The processor as lscpu calls it."""
    cpu = shutil.which("lscpu") and subprocess.run(["lscpu"], capture_output=True, text=True).stdout
    return next((line.split(":", 1)[1].strip() for line in (cpu or "").splitlines() if "Model name" in line), "?")


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median (lowest - highest)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"
