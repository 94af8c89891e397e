"""How long a simulation of a large fleet takes: jobs of the simulated clock per second of wall time.

Nodes of 16 to 64 GB that all have all files, models of 1 to 12 GB of which the first are asked for most, users of very
unequal appetite, an interactive stream and a bulk one of the same size. The rate is such that all slots together are
at work for the given part.

    python -m benchmarks.simulate                                   # 1,000 nodes, 200 models, 1,000,000 jobs
    python -m benchmarks.simulate --jobs 100000 --profile
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import resource
import time

from packtrain.broker.simulation import FleetFile, Simulation

USERS = 100
PROMPT, OUTPUT = 200, 100  # tokens, on average


def make_fleet(num_nodes: int, num_models: int, num_jobs: int, load: float, seed: int) -> FleetFile:
    """A fleet that is at work for this part."""
    rng = random.Random(seed)
    models = {}
    for n in range(num_models):
        size = rng.randint(1, 12)
        alone = 300 / size  # reads its weights once for each token, at 300 GB/s
        models[f"m{n:03}"] = {
            "memory": f"{size}GB", "slots": 8, "decode": {"alone": alone, "full": 4 * alone}, "prefill": 10 * alone,
        }  # fmt: skip
    nodes = [
        {"name": f"n{n:04}", "memory": f"{rng.choice([16, 24, 32, 64])}GB", "disk": "1GB"} for n in range(num_nodes)
    ]
    shares = {name: 1 / (n + 1) for n, name in enumerate(models)}
    # Seconds that a node is at work for a job, all slots of one instance being full.
    work = [PROMPT / m["prefill"] + OUTPUT / m["decode"]["full"] for m in models.values()]  # type: ignore[index, operator]
    mean = sum(w * s for w, s in zip(work, shares.values(), strict=True)) / sum(shares.values())
    rate = load * num_nodes / mean / 2
    stream = {
        "models": shares,
        "users": {f"u{n:02}": 1 / (n + 1) for n in range(USERS)},
        "rate": rate,
        "count": num_jobs // 2,
        "prompt": {"median": PROMPT * 0.75, "sigma": 0.75, "most": 3000},
        "output": {"uniform": [0, 2 * OUTPUT]},
    }
    return FleetFile.model_validate({
        "nodes": nodes, "models": models, "jobs": [stream, stream | {"lane": "bulk"}],
    })  # fmt: skip


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--load", type=float, default=0.6, help="part of the fleet that is at work")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    fleet = make_fleet(arguments.nodes, arguments.models, arguments.jobs, arguments.load, arguments.seed)
    simulation = Simulation(fleet, arguments.seed)
    profile = cProfile.Profile() if arguments.profile else None
    begin, cpu = time.perf_counter(), time.process_time()
    outcome = profile.runcall(simulation.run) if profile else simulation.run()
    took, cpu = time.perf_counter() - begin, time.process_time() - cpu
    print(
        f"{arguments.nodes} nodes, {arguments.models} models, {outcome.jobs:,} jobs: {took:.1f} s ({cpu:.1f} of CPU), "
        f"{outcome.jobs / took:,.0f} jobs/s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB"
    )
    print(
        f"simulated {outcome.makespan:,.0f} s: {outcome.succeeded:,} done, {outcome.loads} loads, "
        f"{outcome.swaps} swaps, {outcome.evictions} evictions, {outcome.plans} plans, {outcome.slots:.0%} of slots, "
        f"{outcome.memory:.0%} of memory"
    )
    for name, waits in {"all": outcome.waits, **outcome.by_lane}.items():
        print(f"{name:12} p50 {waits.p50:.2f} s, p95 {waits.p95:.2f}, p99 {waits.p99:.2f}, longest {waits.longest:.2f}")
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
