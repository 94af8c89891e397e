"""Thousands of short jobs on one instance, some of them stopped, cancelled, left or expired by chance. Ends with 1 when

    a job does not end, or ends in a state that nothing asked for
    a lease, a waiting job or a used slot is left at the end, or the instance is not the one it began with
    a process of ours has grown by more than --max-growth-mib between warm-up and end

The same --seed hands in the same jobs; when they are cancelled or left depends on the clock.

    python benchmarks/soak.py --jobs 5000
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and queue.py there would be everybody's `queue`.
sys.path[0] = str(Path(__file__).parent.parent)

import json
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.common import MODEL, arguments_parser, bench_fleet
from benchmarks.workloads import text
from packtrain.broker import keys
from packtrain.broker.connection import connect
from packtrain.broker.errors import PacktrainError, ResultTimeout
from packtrain.broker.states import JobState
from packtrain.client import InstanceState, Packtrain
from packtrain.client.cli.up import RunningFleet

SLOTS = 16
CONTEXT = 512
IN_FLIGHT = 48  # three times the slots, so that jobs also wait
JOB_TIMEOUT_S = 300.0
IDLE_TIMEOUT_S = 15.0  # an agent reports every 2 s
SAMPLES = 50  # of memory, evenly over the jobs
#: Shares of the jobs. Caches, arenas and connections fill until WARM_UP; from there to BASELINE is what END is held to.
WARM_UP, BASELINE, END = 0.2, 0.4, 0.8
MIB = 2**20

#: What jobs do, how often (weights), and the states they may end in.
KINDS: dict[str, tuple[int, frozenset[JobState]]] = {
    "plain": (40, frozenset({JobState.SUCCEEDED})),
    "stop": (20, frozenset({JobState.SUCCEEDED})),
    "cancel": (20, frozenset({JobState.SUCCEEDED, JobState.CANCELLED})),
    "leave": (10, frozenset({JobState.SUCCEEDED, JobState.CANCELLED})),
    "expire": (10, frozenset({JobState.SUCCEEDED, JobState.EXPIRED})),
}
SCHEMA_KIND = "schema"
SCHEMA_WEIGHT = 20
SCHEMAS: tuple[dict[str, Any], ...] = (
    {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 1, "maxItems": 3},
    {"enum": ["red", "green", "blue"]},
)


@dataclass(frozen=True, slots=True)
class Plan:
    """One job, and what its client does with it."""

    number: int
    kind: str
    prompt: str
    options: dict[str, Any]
    after_s: float  # until it is cancelled, of kind `cancel`


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended; `problem` is empty when all is well."""

    plan: Plan
    job_id: str
    state: JobState
    tokens: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident bytes by process, when so many jobs had ended."""

    done: int
    resident: dict[str, int]


@dataclass(slots=True)
class Soak:
    """What is known so far."""

    ended: list[Ended] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    #: A job is stuck, or a process has ended: hand in no more.
    gives_up: threading.Event = field(default_factory=threading.Event)


def plan(number: int, seed: int, schemas: bool) -> Plan:
    """The job with this number, by chance from the seed."""
    chance = random.Random(f"{seed} {number}")
    weights = {kind: weight for kind, (weight, _) in KINDS.items()} | ({SCHEMA_KIND: SCHEMA_WEIGHT} if schemas else {})
    kind = chance.choices(list(weights), list(weights.values()))[0]
    options: dict[str, Any] = {
        "max_tokens": chance.randint(1, 24),
        "temperature": chance.choice((0.0, 0.8, 1.5)),
        "seed": chance.randrange(2**31),
        "raw": chance.random() < 0.5,
        "lane": chance.choice(("interactive", "bulk")),
    }
    if kind == "stop":
        options["stop"] = chance.sample((".", ",", " the", " and", "\n", "e"), chance.randint(1, 4))
    elif kind == "expire":
        options["expires_in"] = chance.uniform(0.01, 3)
    elif kind == SCHEMA_KIND:
        schema = {"name": "soak", "schema": chance.choice(SCHEMAS)}
        options |= {"response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": 48}
    return Plan(number, kind, text(chance.randint(1, 60), f"soak {seed} {number}"), options, chance.uniform(0, 2))


def do(client: Packtrain, job_plan: Plan, soak: Soak) -> None:
    """Hand in a job, do what its plan says, wait for its end and note it."""
    if soak.gives_up.is_set():
        return
    job = client.submit(MODEL, job_plan.prompt, stream=job_plan.kind == "leave", **job_plan.options)
    problem = answer = ""
    try:
        if job_plan.kind == "cancel":
            time.sleep(job_plan.after_s)
            job.cancel()
        elif job_plan.kind == "leave":
            for _ in job.stream():
                break
            job.cancel()
        answer = job.result(JOB_TIMEOUT_S).text
    except ResultTimeout as error:
        problem = str(error)
        soak.gives_up.set()
    except PacktrainError:
        pass  # how a job ends is judged by its state
    status = job.status()
    allowed = KINDS[job_plan.kind][1] if job_plan.kind in KINDS else {JobState.SUCCEEDED}
    if not problem and status.state not in allowed:
        problem = f"ended as {status.state}: {status.outcome and status.outcome.error}"
    if not problem and job_plan.kind == SCHEMA_KIND and status.outcome and status.outcome.finish_reason == "stop":
        problem = _fault_in_json(answer)
    tokens = status.outcome.usage.completion_tokens if status.outcome else 0
    soak.ended.append(Ended(job_plan, job.id, status.state, tokens, problem))


def _fault_in_json(answer: str) -> str:
    try:
        json.loads(answer)
    except ValueError as error:
        return f"is not JSON: {error}: {answer[:80]!r}"
    return ""


def growth(samples: Sequence[Sample], jobs: int) -> dict[str, float]:
    """MiB by which each process grew: median of the last fifth of the jobs less median of the second fifth."""
    before = [s.resident for s in samples if WARM_UP <= s.done / jobs < BASELINE]
    after = [s.resident for s in samples if s.done / jobs >= END]
    return {
        name: (statistics.median(r[name] for r in after) - statistics.median(r[name] for r in before)) / MIB
        for name in samples[0].resident
    }


def sample(running: RunningFleet, instance_pid: int, done: int) -> Sample:
    """Resident memory now. The broker is not among them: it keeps the records of ended jobs for a day."""
    pids = {"instance": instance_pid, **{name: running.pids[name] for name in ("agent", "coordinator")}}
    return Sample(done, {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()})


def ready_pids(client: Packtrain) -> dict[str, int]:
    """Process ids of the instances that serve."""
    return {i.instance: i.pid for i in client.instances() if i.state is InstanceState.READY}


def left_over(client: Packtrain, url: str) -> str:
    """What an idle fleet should not hold, once it has had time to let go of it; empty when there is nothing."""
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    with connect(url, name="soak") as redis:
        while True:
            leases = int(redis.zcard(keys.LEASES))
            waiting = sum(client.waiting().values())
            used = sum(instance.slots_used for instance in client.instances())
            if not (leases or waiting or used):
                return ""
            if time.monotonic() > deadline:
                return f"{leases} leases, {waiting} waiting jobs, {used} used slots are left"
            time.sleep(0.5)


def run(client: Packtrain, running: RunningFleet, plans: Sequence[Plan]) -> tuple[Soak, list[str], float]:
    """Do all jobs; what was noted, what is wrong, and seconds."""
    client.generate(MODEL, "warm up", max_tokens=2)
    while not (instances := ready_pids(client)):
        time.sleep(0.1)  # it serves a moment before its agent has said so
    (instance_pid,) = instances.values()
    soak = Soak()
    wrong: list[str] = []
    begin = time.perf_counter()
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        pending = [pool.submit(do, client, job_plan, soak) for job_plan in plans]
        for count, future in enumerate(as_completed(pending), 1):
            future.result()
            if count * SAMPLES // len(plans) > (count - 1) * SAMPLES // len(plans):
                try:
                    soak.samples.append(sample(running, instance_pid, count))
                except psutil.NoSuchProcess as gone:
                    wrong.append(f"process {gone.pid} has ended after {count} jobs")
                    soak.gives_up.set()
                    break
                sizes = ", ".join(f"{name} {size / MIB:.0f}" for name, size in soak.samples[-1].resident.items())
                print(f"{count:6} jobs, {time.perf_counter() - begin:5.0f} s; MiB: {sizes}", flush=True)
    seconds = time.perf_counter() - begin
    wrong += [f"job {e.job_id} ({e.plan.kind}, number {e.plan.number}): {e.problem}" for e in soak.ended if e.problem]
    wrong += [f"job {e.job_id} is still {e.state}" for e in soak.ended if not e.state.is_terminal]
    if len(soak.ended) < len(plans):
        wrong.append(f"{len(plans) - len(soak.ended)} jobs were not handed in after that")
    if left := left_over(client, running.url):
        wrong.append(left)
    if (now := ready_pids(client)) != instances:
        wrong.append(f"instances were {instances} and are {now}")
    return soak, wrong, seconds


def main() -> None:
    """Entry point."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--schemas", action="store_true", help="some jobs ask for JSON by a schema")
    parser.add_argument("--max-growth-mib", type=float, default=16.0, help="of any process, from warm-up to end")
    arguments = parser.parse_args()
    plans = [plan(number, arguments.seed, arguments.schemas) for number in range(arguments.jobs)]
    with bench_fleet(arguments.model, threads=arguments.threads, slots=SLOTS, context=CONTEXT) as (running, client):
        soak, wrong, seconds = run(client, running, plans)
    states = Counter((e.plan.kind, e.state) for e in soak.ended)
    print("\n| kind | ended as | jobs |\n|---|---|---|")
    for (kind, state), count in sorted(states.items()):
        print(f"| {kind} | {state} | {count} |")
    tokens = sum(e.tokens for e in soak.ended)
    print(f"\n{len(soak.ended)} jobs and {tokens} tokens in {seconds:.0f} s: {len(soak.ended) / seconds:.1f} jobs/s")
    if not soak.gives_up.is_set():
        grown = growth(soak.samples, arguments.jobs)
        print("grown since warm-up, MiB: " + ", ".join(f"{name} {size:+.1f}" for name, size in grown.items()))
        wrong += [
            f"{name} grew by {size:.1f} MiB, more than {arguments.max_growth_mib:g}"
            for name, size in grown.items()
            if size > arguments.max_growth_mib
        ]
    print("\n".join(["", *wrong]) if wrong else "\nno job stuck, no slot left in use, no leak")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
