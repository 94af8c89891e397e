"""What a claim and a submit cost the broker, and what a waiting job weighs, from a short queue to a very long one.

A broker of its own is filled with jobs of many users, each with a prompt of about 200 tokens. At each length jobs are
claimed, ended and submitted again, in rounds of 1,000; the cost is the server's own account of its time in the scripts
(`INFO commandstats`), the median of the rounds: no network, no client. On a machine that has other things
to do it says little: they empty the processor's caches. The memory is `used_memory`, less that of the empty broker.

    python benchmarks/claim.py                  # up to 1,000,000 jobs: 3 minutes, 10 on two busy cores; 2 GB
    python benchmarks/claim.py --up-to 100000
    python benchmarks/claim.py --pieces 7       # with glibc's allocator as it comes, see broker/server.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)

import argparse
import random
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from redis import Redis

from packtrain.broker import jobs, keys
from packtrain.broker import server as broker_server
from packtrain.broker.connection import connect
from packtrain.broker.ids import InstanceId, JobId, ModelId, NodeId, new_job_id, route_of
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import Submitted
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.outcome import Outcome
from packtrain.broker.prefixes import prefix_hashes
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.scripts import Call, Scripts, source
from packtrain.broker.server import BrokerServer
from packtrain.broker.states import JobState

MODEL, INSTANCE, NODE = ModelId("bench"), InstanceId("bench-1"), NodeId("bench")
USERS = 100
SAMPLES = 1_000  # of a round
ROUNDS = 5
BATCH = 500  # jobs of one user that are submitted in one call while the queue is filled
DIFFERENT = 2_000  # prompts
PROMPT_CHARS = 800  # about 200 tokens
WORDS = ["llama", "alpaca", "packs", "carries", "over", "the", "high", "pass", "again", "tonight", "slowly", "north"]


def specs() -> Iterator[JobSpec]:
    """Jobs as users would ask: each prompt another one, half of them begin alike."""
    draw = random.Random(7)
    for number in range(DIFFERENT):
        begin = "You are a careful guide. Answer in one short paragraph. " * 5 if number % 2 else ""
        text = begin + " ".join(draw.choices(WORDS, k=PROMPT_CHARS // 5))
        yield JobSpec(
            model=MODEL,
            messages=[{"role": "user", "content": text[:PROMPT_CHARS]}],
            params={"max_tokens": draw.randrange(16, 512), "temperature": 0.7},
            user=f"user-{draw.randrange(USERS)}",
            lane="bulk",
        )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--up-to", type=int, default=1_000_000)
    parser.add_argument("--pieces", type=int, help="freed pieces of each small size that the server's allocator keeps")
    arguments = parser.parse_args()
    if arguments.pieces is not None:
        broker_server.ALLOCATOR = f"GLIBC_TUNABLES=glibc.malloc.tcache_count={arguments.pieces}"  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as folder:
        server = BrokerServer(Path(folder), port=0, maxmemory="4gb")
        server.prepare()
        process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
        try:
            server.wait_ready(20)
            redis = connect(server.url, name="bench")
            print(f"{server.binary.kind} {server.binary.version}, prompts of {PROMPT_CHARS} characters, {USERS} users")
            print(broker_server.ALLOCATOR)
            run(redis, arguments.up_to)
        finally:
            process.terminate()
            process.wait(60)


def run(redis: Redis, up_to: int) -> None:
    """Fill, measure at each power of ten, print."""
    RedisRegistry(redis).put_models([ModelInfo(id=MODEL)])
    redis.config_set("auto-aof-rewrite-percentage", 0)
    scripts = Scripts(redis)
    made = [jobs.submit(JobId(""), spec, max_waiting=10**9) for spec in specs()]
    empty = used_memory(redis)
    print(f"{'waiting':>10} {'claim us':>9} {'with prefixes':>14} {'submit us':>10} {'bytes a job':>12}")
    queued, length = 0, 1_000
    while length <= up_to:
        fill(redis, made, length - queued)
        weight = (used_memory(redis) - empty) / length
        rounds = [measure(redis, scripts, made) for _ in range(ROUNDS)]
        plain, prefixed, submit = (statistics.median(costs) for costs in zip(*rounds, strict=True))
        print(f"{length:>10,} {plain:>9.1f} {prefixed:>14.1f} {submit:>10.1f} {weight:>12.0f}", flush=True)
        queued, length = length, length * 10


def fill(redis: Redis, made: Sequence[Call[Submitted]], number: int) -> None:
    """Submit so many jobs: `submit.lua` in a loop on the server, 500 jobs a call, so that it does not take hours."""
    loop = redis.register_script(
        f"local function submit(KEYS, ARGV)\n{source('submit')}\nend\n"
        f"for _, id in ipairs(KEYS) do ARGV[1] = id; submit({{'{keys.JOB_PREFIX}' .. id, '{keys.model(MODEL)}'}}, ARGV)"
        " end"
    )
    for begin in range(0, number, BATCH):
        call = made[begin // BATCH % len(made)]
        loop(keys=[new_job_id() for _ in range(min(BATCH, number - begin))], args=call.args)


def measure(redis: Redis, scripts: Scripts, made: Sequence[Call[Submitted]]) -> tuple[float, float, float]:
    """Microseconds of one claim, of one with prefixes held, and of one submit. The queue is as long afterwards."""
    store = RedisJobs(redis)
    held = sorted({prefix for spec in islice(specs(), 16) for prefix in prefix_hashes(spec)})
    costs = []
    for prefixes in ((), held):
        redis.config_resetstat()
        taken = [
            claim
            for _ in range(SAMPLES // 2)
            if (claim := store.claim((route_of(MODEL),), INSTANCE, NODE, lease_ms=600_000, prefixes=prefixes))
        ]
        costs.append(script_us(redis))
        assert len(taken) == SAMPLES // 2
        for claim in taken:
            assert store.finish(claim.job_id, claim.epoch, Outcome(state=JobState.SUCCEEDED, text="done"))
            redis.delete(keys.job(claim.job_id), keys.out(claim.job_id))
    redis.config_resetstat()
    for number in range(SAMPLES):
        call, job_id = made[number * 7 % len(made)], new_job_id()
        scripts.run(replace(call, keys=(keys.job(job_id), *call.keys[1:]), args=(job_id, *call.args[1:])))
    costs.append(script_us(redis))
    return costs[0], costs[1], costs[2]


def script_us(redis: Redis) -> float:
    """What one script has taken since the statistics were reset."""
    return float(redis.info("commandstats")["cmdstat_evalsha"]["usec_per_call"])


def used_memory(redis: Redis) -> int:
    """Bytes."""
    return int(redis.info("memory")["used_memory"])


if __name__ == "__main__":
    main()
