"""What llama.cpp's steps give on this machine, with neither queue nor scheduling: the ceiling of the engine.

Prefill rows per second, and tokens per second when 1, 4 and 16 sequences decode in one batch, greedy; and what it
costs when 8 sequences are no neighbours.

    python benchmarks/steps.py --model ~/.cache/packtrain/models/smollm2.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and queue.py there would be everybody's `queue`.
sys.path[0] = str(Path(__file__).parent.parent)

import time

from benchmarks.common import arguments_parser, spread
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.load_options import LoadOptions

SLOTS = 16
PROMPT = 40  # rows of each prompt
STEPS = 24
GREEDY = SamplingParams(temperature=0)
DECODES = {
    "1": range(1), "4": range(4), "16": range(16), "8 neighbours": range(8), "8 in every other slot": range(0, 16, 2),
}  # fmt: skip


def prefill(backend: LlamaCppBackend) -> tuple[dict[int, int], float]:
    """Fill every slot with a prompt, eight at a time; the token after each, and rows per second."""
    for seq_id in range(SLOTS):
        backend.truncate(seq_id, 0)
        backend.open(seq_id, GREEDY, 0, (), 0)
    begin = time.perf_counter()
    tokens: list[int] = []
    for first in range(0, SLOTS, 8):
        rows = [StepRows(s, 0, [100 + 7 * s + i for i in range(PROMPT)], True) for s in range(first, first + 8)]
        tokens += [s.token for s in backend.step(rows, lambda: False)]
    return dict(enumerate(tokens)), SLOTS * PROMPT / (time.perf_counter() - begin)


def decode(backend: LlamaCppBackend, last: dict[int, int], slots: range) -> float:
    """Tokens per second when these slots decode together."""
    begin = time.perf_counter()
    for step in range(STEPS):
        rows = [StepRows(s, PROMPT + step, [last[s]], True) for s in slots]
        tokens = (sampled.token for sampled in backend.step(rows, lambda: False))
        last.update(zip(slots, tokens, strict=True))
    return len(slots) * STEPS / (time.perf_counter() - begin)


def main() -> None:
    """Entry point."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--numerics", choices=["fast", "deterministic"], default="fast")
    arguments = parser.parse_args()
    backend = LlamaCppBackend(
        arguments.model, model="m", n_slots=SLOTS, n_ctx=512, n_threads=arguments.threads,
        options=LoadOptions(numerics=arguments.numerics),
    )  # fmt: skip
    rates: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for name, slots in DECODES.items():
            last, rows_per_s = prefill(backend)
            rates.setdefault("prefill, rows/s", []).append(rows_per_s)
            rates.setdefault(f"decode {name}, tokens/s", []).append(decode(backend, last, slots))
            for seq_id in range(SLOTS):
                backend.close(seq_id)
    print("| steps alone | median (lowest - highest) |\n|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {spread(values)} |")
    backend.shutdown()


if __name__ == "__main__":
    main()
