"""What parking brings: how long an interactive job waits for its first token while bulk jobs fill every slot.

Three ways to lay out the same instance of 4 slots, each with a fleet of its own: nothing is done, one slot is reserved
for interactive jobs, bulk jobs are parked for them. Bulk jobs of 96 tokens each lie in the queue; from when all slots
are at work until the last of them ends, one interactive job after the other is asked, with a pause between them. What
the bulk jobs lose shows in their tokens per second, beside those of a first lot without interactive jobs.

    python benchmarks/parking.py --threads 1
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and queue.py there would be everybody's `queue`.
sys.path[0] = str(Path(__file__).parent.parent)

import statistics
import time

from benchmarks.common import MODEL, arguments_parser, bench_fleet
from packtrain.client import Job, JobState, Packtrain

SLOTS, CONTEXT = 4, 512
BULK_TOKENS, TALK_TOKENS = 96, 16
PAUSE_S = 1.0
WAYS = {
    "nothing": "reserved_slots = 0\nparking = false",
    "1 slot reserved": "reserved_slots = 1\nparking = false",
    "parking": "reserved_slots = 0",
}


def submit_bulk(client: Packtrain, count: int, lot: str) -> list[Job]:
    """Bulk jobs that begin differently, and run to their last token."""
    return [
        client.submit(
            MODEL, f"{lot} {number}: a long story about a llama", lane="bulk", raw=True, stream=False, ignore_eos=True,
            max_tokens=BULK_TOKENS, seed=number,
        )
        for number in range(count)
    ]  # fmt: skip


def first_token_s(client: Packtrain, number: int) -> float:
    """Ask, read to the end; seconds to the first piece of text."""
    begin = time.perf_counter()
    pieces = iter(client.stream(MODEL, f"Question {number}: why is the sky blue?", max_tokens=TALK_TOKENS))
    next(pieces)
    first = time.perf_counter() - begin
    for _ in pieces:
        pass
    return first


def rate(jobs: list[Job], begin: float) -> float:
    """Tokens per second of bulk jobs, until the last one's end."""
    for job in jobs:
        job.result()
    return len(jobs) * BULK_TOKENS / (time.perf_counter() - begin)


def main() -> None:
    """Entry point."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--bulk", type=int, default=8, help="bulk jobs of each lot")
    arguments = parser.parse_args()
    print("| | idle: first token, ms | beside bulk: median | most | asked | bulk alone, tokens/s | beside | of alone |")
    print("|---|---|---|---|---|---|---|---|")
    for way, options in WAYS.items():
        with bench_fleet(arguments.model, threads=arguments.threads, slots=SLOTS, context=CONTEXT, options=options) as (
            _,
            client,
        ):
            first_token_s(client, 0)  # loads it
            idle = [first_token_s(client, number) for number in range(1, 4)]
            begin = time.perf_counter()
            alone = rate(submit_bulk(client, arguments.bulk, "First"), begin)
            begin = time.perf_counter()
            bulk = submit_bulk(client, arguments.bulk, "Second")
            while sum(job.status().state is JobState.RUNNING for job in bulk) < SLOTS - (way == "1 slot reserved"):
                time.sleep(0.02)
            waits: list[float] = []
            while any(not job.status().state.is_terminal for job in bulk):
                waits.append(first_token_s(client, 100 + len(waits)))
                time.sleep(PAUSE_S)
            finished = [at for job in bulk if (at := job.status().finished_ms)]
            submitted = min(job.status().submitted_ms for job in bulk)
            beside = len(bulk) * BULK_TOKENS / ((max(finished) - submitted) / 1000)
        print(
            f"| {way} | {statistics.median(idle) * 1000:.0f} | {statistics.median(waits) * 1000:.0f} "
            f"| {max(waits) * 1000:.0f} | {len(waits)} | {alone:.0f} | {beside:.0f} | {beside / alone:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
