"""Many models on few machines: what the fleet makes of a mixed stream, beside first come, first served.

    python -m benchmarks.fleet [--jobs 300] [--per-second 5]

Three hosts (network namespaces of this machine), each with a memory budget that holds two of five models: SmolLM2 in
five quantisations. Every job asks for a word that only its own prompt names, and is right if it says that word and its
receipt names the file of its model. The baseline is the same stream on the same hosts with a list in Redis, from which
each host takes the oldest job, and a cache of two models: what one would write first. Needs root or user namespaces,
and iproute2; takes some 4 minutes on two cores.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.common import arguments_parser
from tests.support import hosts
from tests.support.mixed_load import (
    BUDGET,
    Report,
    five_models,
    mixed_stream,
    run_first_come,
    run_on_fleet,
)

MIB = 2**20


def main() -> int:
    """Print the table; the exit code is 1 when something was wrong."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--per-second", type=float, default=5, help="jobs submitted a second")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if missing := hosts.why_not():
        print(missing, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as folder:
        models = five_models(Path(folder) / "models", options.model)
        stream = mixed_stream(models.names, options.jobs, options.seed)
        with models.fleet(Path(folder) / "fleet") as fleet:
            ours = run_on_fleet(fleet, stream, models, per_s=options.per_second)
            print("| | loads | wrong answers | longest wait, s | in all, s |\n|---|---|---|---|---|")
            print(f"| packtrain | {told(ours)} |", flush=True)
            first_come = run_first_come(fleet, stream, models, per_s=options.per_second)
            print(f"| first come, first served | {told(first_come)} |", flush=True)
    peaks = ", ".join(f"{name} {peak // MIB} MiB" for name, peak in sorted(ours.peaks.items()))
    print(f"most resident at one of {ours.samples} samples: {peaks}; budget {BUDGET // MIB} MiB")
    return 0 if is_good(ours) else 1


def told(report: Report) -> str:
    """What is compared, as cells."""
    return f"{report.loads} | {len(report.wrong)} | {report.longest_wait_s:.1f} | {report.seconds:.0f}"


def is_good(report: Report) -> bool:
    """Whether every job was right, and no host over its budget."""
    return not report.wrong and all(peak <= BUDGET for peak in report.peaks.values())


if __name__ == "__main__":
    sys.exit(main())
