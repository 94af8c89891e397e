"""How near the memory estimate comes to what a process takes: six shapes of model, three contexts each.

    python benchmarks/memory.py

`estimated` is llama.cpp's own layout without a load (`no_alloc`), `header` the formula that stands until that is known;
both before any calibration. `measured` is another process that has loaded the model and filled every slot to its last
token: its private pages, the libraries, and what the layout reads from the mapped file. Everything counts, the Python
process as well; `model only` is the ratio without the process.

Then the same after calibration, against the same measurement: `same` has seen one load of this very kind, of which
nothing but the load itself was measured, no step computed; `others` has seen loads with the other two contexts.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and queue.py there would be everybody's `queue`.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import os
import tempfile
import time

from packtrain.broker.model_info import ModelMemory
from packtrain.workers.gguf import read_header
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.memory import estimate_memory
from packtrain.workers.memory_book import LoadKey, MemoryBook, Readings
from packtrain.workers.memory_probe import MemoryQuestion
from packtrain.workers.memory_prober import MemoryProber
from tests.support.memory_measure import Measured, measure, taken
from tests.support.sized_models import SHAPES

CONTEXTS = (512, 1024, 2048)
SLOTS = 2
MIB = 1024 * 1024
PROBE_TIMEOUT_S = 60


def estimated(path: Path, n_ctx: int) -> ModelMemory:
    """What the probe says."""
    prober = MemoryProber()
    question = MemoryQuestion(path=str(path), n_ctx=n_ctx, n_slots=SLOTS)
    prober.want({LoadKey(file="", n_ctx=n_ctx, n_slots=SLOTS): question})
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    while time.monotonic() < deadline:
        if answer := prober.poll():
            return answer[1]
        time.sleep(0.05)
    raise SystemExit(f"the probe of {path} has no answer")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="this shape only; may be given several times")
    shapes = parser.parse_args().shape or list(SHAPES)
    print(f"{SLOTS} slots, {os.cpu_count()} cores; MiB")
    print("| shape | context | estimated | measured | ratio | model only | header | after: same | after: others |")
    print("|---|---|---|---|---|---|---|---|---|")
    worst_before, worst_after = 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name in shapes:
            path = SHAPES[name].write(Path(folder) / "model.gguf")
            header = read_header(path)
            estimates = {n_ctx: estimated(path, n_ctx) for n_ctx in CONTEXTS}
            loads = {n_ctx: measure(path, n_ctx=n_ctx, n_slots=SLOTS, fill=False) for n_ctx in CONTEXTS}
            for n_ctx, estimate in estimates.items():
                full = measure(path, n_ctx=n_ctx, n_slots=SLOTS)
                real = taken(full, estimate)
                process = full.before.resident
                formula = estimate_memory(header, LoadOptions(), n_ctx=n_ctx, n_slots=SLOTS)
                same = _corrected(n_ctx, estimates, {n_ctx: loads[n_ctx]})
                others = _corrected(n_ctx, estimates, {c: load for c, load in loads.items() if c != n_ctx})
                ratio = estimate.estimated_bytes / real
                model_only = (estimate.estimated_bytes - process) / (real - process)
                print(
                    f"| {name} | {n_ctx} | {estimate.estimated_bytes / MIB:.1f} | {real / MIB:.1f} | {ratio:.3f} "
                    f"| {model_only:.3f} | {formula.estimated_bytes / real:.3f} | {same / real:.3f} "
                    f"| {others / real:.3f} |",
                    flush=True,
                )
                worst_before = max(worst_before, abs(ratio - 1))
                worst_after = max(worst_after, abs(same / real - 1), abs(others / real - 1))
    print(f"\nfarthest from measured: {worst_before:.1%} before calibration, {worst_after:.1%} after")


def _corrected(n_ctx: int, estimates: dict[int, ModelMemory], loads: dict[int, Measured]) -> int:
    """What is reserved for a load by a node that has seen these loads."""
    book = MemoryBook(None)
    for seen, load in loads.items():
        readings = Readings(load.before, load.loaded, load.loaded.private)
        book.note_readings(LoadKey(file="", n_ctx=seen, n_slots=SLOTS), readings, estimates[seen])
    return book.corrected(LoadKey(file="", n_ctx=n_ctx, n_slots=SLOTS), estimates[n_ctx]).required_bytes


if __name__ == "__main__":
    main()
