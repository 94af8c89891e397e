"""Are answers the same after a restart, on another node, by another number of threads, and by `verify`?

    python benchmarks/same_answers.py

20 jobs with prompts of 10 to 400 words by chance, half of them at temperature 0, half at 0.8, go through a whole fleet
four times, each time in another order and so in other company: by node `bench`; there again, after its instance was
unloaded and loaded; by an agent `other` with as many threads; and by an agent `single` with one. Only one node has the
model's file at a time, so that it is loaded there. Compared are the hash of the output tokens and, to the last bit, the
logprob of each token. Then the jobs of the first round are verified one after the other, alone, on the last node.

Ends with 1 when anything differs. `--numerics fast` shows what is otherwise: about half of the outputs. Where others
use the cores, too, GOMP_SPINCOUNT=0 helps: threads that spin for each other make it many times slower.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and queue.py there would be everybody's `queue`.
sys.path[0] = str(Path(__file__).parent.parent)

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.common import MODEL, arguments_parser, bench_fleet
from benchmarks.workloads import text
from packtrain.client import Packtrain, Result
from packtrain.client.cli.supervisor import Child
from packtrain.client.cli.up import RunningFleet

NUM_JOBS, NUM_NEW, SLOTS, CONTEXT = 20, 24, 8, 512
WORDS = (10, 400)
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One job."""

    prompt: str
    temperature: float
    seed: int


def make_asks() -> list[Ask]:
    """The same jobs each time."""
    rng = random.Random(11)
    lengths = [WORDS[0] + (WORDS[1] - WORDS[0]) * number // (NUM_JOBS - 1) for number in range(NUM_JOBS)]
    return [
        Ask(text(length, f"same answers {number}"), 0.8 * (number % 2), rng.randrange(2**31))
        for number, length in enumerate(lengths)
    ]


def answers(client: Packtrain, asks: Sequence[Ask], turn: int, *, deterministic: bool) -> list[Result]:
    """Results in the order of `asks`, which are submitted at once in the order of this turn."""
    order = random.Random(turn).sample(range(len(asks)), len(asks))
    jobs = {
        number: client.submit(
            MODEL, asks[number].prompt, raw=True, stream=False, deterministic=deterministic, logprobs=0,
            temperature=asks[number].temperature, seed=asks[number].seed, max_tokens=NUM_NEW, ignore_eos=True,
        )
        for number in order
    }  # fmt: skip
    return [jobs[number].result(TIMEOUT_S) for number in range(len(asks))]


def start_node(running: RunningFleet, name: str, threads: int) -> Path:
    """Start one more agent with a home of its own; its model folder, still empty."""
    home = running.home / name
    (home / "models").mkdir(parents=True)
    (home / "packtrain.toml").write_text((running.home / "packtrain.toml").read_text())
    env = {
        "PACKTRAIN_URL": running.url,
        "PACKTRAIN_HOME": str(home),
        "PACKTRAIN_NODE": name,
        "PACKTRAIN_CORES": str(threads),
        "PACKTRAIN_DRAIN_S": "1",
    }
    running.supervisor.start(Child(f"agent-{name}", (sys.executable, "-m", "packtrain.workers.agent_main"), env))
    return home / "models"


def unload(client: Packtrain) -> None:
    """End every instance, and wait until they are gone."""
    client.unload(MODEL)
    _until(lambda: all(i.state.is_terminal for i in client.instances()), "the instances to end")


def move(client: Packtrain, source: Path, target: Path, node: str) -> None:
    """Let `node` be the only one that offers the model, and nobody have it loaded."""
    (source / f"{MODEL}.gguf").rename(target / f"{MODEL}.gguf")
    _until(lambda: [n.node for n in client.nodes() if MODEL in n.models] == [node], f"{node} alone to offer the model")
    unload(client)


def _until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        if time.monotonic() > deadline:
            sys.exit(f"waited {TIMEOUT_S:.0f} s in vain for {what}")
        time.sleep(0.1)


def row(name: str, first: Sequence[Result], again: Sequence[Result]) -> bool:
    """Print a line of the table; True when all is equal."""
    receipts = [(a.receipt, b.receipt) for a, b in zip(first, again, strict=True)]
    outputs = sum(bool(a and b and a.output_sha256 == b.output_sha256) for a, b in receipts)
    logprobs = sum(a.logprobs == b.logprobs for a, b in zip(first, again, strict=True))
    classes = {receipt.numerics_class for pair in receipts for receipt in pair if receipt}
    threads = "/".join(sorted({str(receipt.threads) for _, receipt in receipts if receipt}))
    node = "/".join(sorted({result.node for result in again}))
    peak = max(result.batch_peak for result in again)
    num = len(first)
    print(f"| {name} | {node} | {threads} | {peak} | {outputs} of {num} | {logprobs} of {num} |", flush=True)
    return outputs == logprobs == num and len(classes) == 1


def main() -> None:
    """Measure and print a table."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--numerics", choices=["fast", "deterministic"], default="deterministic")
    options = parser.parse_args()
    deterministic = options.numerics == "deterministic"
    asks, begin = make_asks(), time.monotonic()
    with bench_fleet(options.model, threads=options.threads, slots=SLOTS, context=CONTEXT) as (running, client):
        home = running.home / "models"
        other, single = start_node(running, "other", options.threads), start_node(running, "single", 1)
        print("| round | node | threads | at once | equal outputs | equal logprobs |\n|---|---|---|---|---|---|")
        first = answers(client, asks, 0, deterministic=deterministic)
        same = [row("first", first, first)]
        unload(client)
        same += [row("instance restarted", first, answers(client, asks, 1, deterministic=deterministic))]
        move(client, home, other, "other")
        same += [row("another node", first, answers(client, asks, 2, deterministic=deterministic))]
        move(client, other, single, "single")
        same += [row("one thread", first, answers(client, asks, 3, deterministic=deterministic))]
        found = [client.verify(result.job_id, timeout=TIMEOUT_S) for result in first]
        equal = sum(v.is_equal and v.is_same_class for v in found)
        nodes = "/".join(sorted({v.node for v in found}))
        print(f"| `verify`, each alone | {nodes} | 1 | 1 | {equal} of {len(found)} | |")
        tokens = [result.usage.prompt_tokens for result in first]
        recipe = first[0].receipt.recipe if first[0].receipt else "?"
        print(
            f"\n{len(asks)} jobs, prompts of {min(tokens)} to {max(tokens)} tokens, {NUM_NEW} new each, "
            f"{SLOTS} slots, recipe {recipe}; {time.monotonic() - begin:.0f} s"
        )
    if not all(same) or equal < len(found):
        sys.exit(1)


if __name__ == "__main__":
    main()
