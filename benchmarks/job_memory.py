"""What the record of an ended job weighs in the broker until it expires, by the length of its prompt and its answer.

A fleet with a scripted model (the answer is the prompt backwards, a token for each character) runs jobs of one length;
the figure is what `used_memory` has grown by, less than a job's share of the rest, over the number of jobs. What a job
weighs while it waits is measured by claim.py.

    python benchmarks/job_memory.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)

import tempfile

from redis import Redis

from packtrain.broker.connection import connect
from packtrain.client import Packtrain
from tests.support.fleets import scripted_fleet

JOBS = 300
TOKENS = (50, 200, 800)
SLOTS = 8


def grown(client: Packtrain, redis: Redis, num_tokens: int) -> float:
    """Bytes of one ended job with a prompt and an answer of so many tokens."""
    client.generate("m", "warm", raw=True)
    before = int(redis.info("memory")["used_memory"])
    prompts = [f"{number:06d}".ljust(num_tokens, "x") for number in range(JOBS)]
    for result in client.map("m", prompts, raw=True):
        assert result.usage.completion_tokens >= num_tokens
    return (int(redis.info("memory")["used_memory"]) - before) / JOBS


def main() -> int:
    """Run and print a table."""
    print("| prompt and answer, tokens each | bytes of an ended job | of these in a gigabyte |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        models = {"m": {"n_slots": SLOTS, "n_ctx": 2 * max(TOKENS) + 64}}
        with scripted_fleet(Path(folder), models) as fleet, connect(fleet.url, name="bench") as redis:
            for num_tokens in TOKENS:
                weight = grown(fleet.client, redis, num_tokens)
                print(f"| {num_tokens} | {weight:,.0f} | {2**30 / weight:,.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
