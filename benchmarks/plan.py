"""What one plan costs for a large fleet: seconds from a snapshot to commands, in states a fleet comes through.

cold      nothing is loaded and every model is waited for: as many loads as there are models
steady    every node holds three instances at work; nothing to do
swaps     the same, idle, and models that are not loaded are waited for: room is made for each of them
full      the same, all of it waited for, and others wait too long: work is driven out for each of them
hopeless  the same, but nobody may be driven out yet: every node is looked at in vain
groups    nothing is loaded, 16 nodes hold parts of models with each other, and ten models are too large for any alone

python -m benchmarks.plan
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Mapping

from packtrain.broker.beats import InstanceBeat, NodeBeat, NodeLink
from packtrain.broker.ids import InstanceId, ModelId, NodeId, Route
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.offer_book import NodeOffers
from packtrain.broker.placement import MIB, Snapshot, missing_since, plan, unserved_since
from packtrain.broker.states import InstanceState

GIB = 1024 * MIB
NOW = 10_000_000_000
PER_NODE = 3


def make_fleet(num_nodes: int, num_models: int, seed: int) -> Snapshot:
    """Nodes of 16 to 64 GiB that all have all files, models of 1 to 12 GiB, nothing loaded."""
    rng = random.Random(seed)
    models = {
        ModelId(f"m{n:03}"): ModelInfo(
            id=f"m{n:03}", required_bytes=rng.randint(1, 12) * GIB, weights_bytes=GIB, file_bytes=GIB, n_slots=8
        )
        for n in range(num_models)
    }
    sizes = [rng.choice([16, 24, 32, 64]) * GIB for _ in range(num_nodes)]
    nodes = [
        NodeBeat(
            node=f"n{n:04}", memory_total=size, memory_free=size, memory_budget=size * 4 // 5, models=tuple(models)
        )
        for n, size in enumerate(sizes)
    ]
    # As they come from the registry: equal offers are one object; what a node has measured, a tenth, is its own.
    offers = {
        name: NodeOffers({NodeId(node.node): info.model_copy() if rng.random() < 0.1 else info for node in nodes})
        for name, info in models.items()
    }
    return Snapshot(now_ms=NOW, nodes=nodes, models=models, offers=offers)


def fill(fleet: Snapshot, seed: int, *, slots_used: int, loaded: int) -> Snapshot:
    """Three instances on each node, of the first `loaded` models; the last one takes what is left."""
    rng = random.Random(seed)
    names = list(fleet.models)[:loaded]
    instances = []
    for node in fleet.nodes:
        left = node.memory_budget
        for n in range(PER_NODE):
            held = left if n == PER_NODE - 1 else left * 2 // 5
            left -= held
            since = NOW - rng.randint(60_000, 3_600_000)
            instances.append(
                InstanceBeat(
                    instance=InstanceId(f"{node.node}-{n}"), model=rng.choice(names), node=node.node,
                    state=InstanceState.READY, n_slots=8, slots_used=slots_used, reserved_bytes=held,
                    resident_bytes=held, requested_ms=since - rng.randint(1000, 60_000), ready_ms=since,
                    last_used_ms=NOW - rng.randint(15_000, 60_000), job_s=1.0,
                )
            )  # fmt: skip
    return Snapshot(now_ms=NOW, nodes=fleet.nodes, instances=instances, models=fleet.models, offers=fleet.offers)


def with_groups(fleet: Snapshot) -> Snapshot:
    """Sixteen nodes take part in splits; models 0 to 9 take 120 GiB in 80 layers, every other one 500."""
    together = [node.node for node in fleet.nodes[:16]]

    def taking_part(node: NodeBeat) -> NodeBeat:
        others = [name for name in together if name != node.node]
        links = {name: NodeLink(bytes_per_s=1e8, round_trip_s=0.001, at_ms=NOW) for name in others}
        return node.model_copy(update={"split": True, "certificate": "PEM", "build": "b", "links": links})

    nodes = [taking_part(node) if node.node in together else node for node in fleet.nodes]
    models, offers = dict(fleet.models), dict(fleet.offers)
    for number, name in enumerate(list(models)[:10]):
        size = (500 if number % 2 else 120) * GIB
        layers = {"n_layer": 80, "layer_bytes": (size // 80,) * 80, "n_embd": 8192}
        models[name] = info = models[name].model_copy(
            update={"required_bytes": size, "weights_bytes": size, **layers}
        )  # fmt: skip
        offers[name] = NodeOffers(dict.fromkeys(offers[name], info.offer()))
    return Snapshot(now_ms=NOW, nodes=nodes, models=models, offers=offers)


def states(num_nodes: int, num_models: int, seed: int) -> Mapping[str, Callable[[], Snapshot]]:
    """Makers of the states, by name."""
    fleet = make_fleet(num_nodes, num_models, seed)
    names = list(fleet.models)
    half = num_models // 2
    old = NOW - 120_000

    def waiting(base: Snapshot, models: list[ModelId], unserved: list[ModelId]) -> Snapshot:
        return Snapshot(
            now_ms=NOW, nodes=base.nodes, instances=base.instances, models=base.models, offers=base.offers,
            waiting={Route(name): 5 for name in models}, unserved_since={Route(name): old for name in unserved},
        )  # fmt: skip

    return {
        "cold": lambda: waiting(fleet, names, []),
        "steady": lambda: waiting(fill(fleet, seed, slots_used=4, loaded=num_models), names, []),
        "swaps": lambda: waiting(fill(fleet, seed, slots_used=0, loaded=half), names[half:], []),
        "full": lambda: waiting(fill(fleet, seed, slots_used=8, loaded=half), names, names[half:]),
        "hopeless": lambda: waiting(fill(fleet, seed, slots_used=8, loaded=half), names, []),
        "groups": lambda: waiting(with_groups(fleet), names, []),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{arguments.nodes} nodes, {arguments.models} models, {PER_NODE} instances a node; CPU ms")
    print(f"{'state':10} {'loads':>6} {'unloads':>8} {'waits':>6} {'median':>8} {'least':>8} {'most':>8}")
    for name, make in states(arguments.nodes, arguments.models, arguments.seed).items():
        snapshot = make()
        took = []
        for _ in range(arguments.rounds):
            begin = time.process_time()
            # All that a tick computes of a snapshot.
            missing_since(snapshot, {})
            unserved_since(snapshot, {})
            result = plan(snapshot)
            took.append((time.process_time() - begin) * 1000)
        counts = f"{len(result.loads):6} {len(result.unloads):8} {len(result.waits):6}"
        print(f"{name:10} {counts} {statistics.median(took):8.1f} {min(took):8.1f} {max(took):8.1f}")


if __name__ == "__main__":
    main()
