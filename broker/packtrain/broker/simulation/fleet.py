"""What a simulation is told: nodes, models with their rates, and jobs that come by chance."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from packtrain.broker.ids import ModelId
from packtrain.broker.messages import ModelInfo, NodeBeat


@dataclass(frozen=True, slots=True)
class SimNode:
    """A machine."""

    beat: NodeBeat  # all its memory free
    speed: float = 1.0  # of its tokens, by the rates of the models


@dataclass(frozen=True, slots=True)
class SimModel:
    """A model, and how fast an instance of it is."""

    info: ModelInfo
    load_s: float
    tokens_per_s: float  # of an instance with all slots at work
    prefill_per_s: float  # prompt tokens
    jobs_per_min: float = 0.0
    prompt_tokens: int = 200  # of a job: from half of that to one and a half
    output_tokens: int = 100  # of a job: exponential, four times that at most
    bulk: float = 0.0  # part of the jobs that are bulk
    users: int = 1


@dataclass(frozen=True, slots=True)
class SimFleet:
    """All that there is."""

    nodes: Sequence[SimNode]
    models: Mapping[ModelId, SimModel]


@dataclass(slots=True, eq=False)
class SimJob:
    """A job. Times in ms of the virtual clock."""

    at_ms: float
    model: ModelId
    prompt_tokens: int
    output_tokens: int
    user: str = "u0"
    lane: str = "interactive"
    begun_ms: float = field(default=-1.0, init=False)


def arrivals(fleet: SimFleet, count: int, seed: int) -> Iterator[SimJob]:
    """This many jobs, in the order they come. They come independently of each other (a Poisson process)."""
    rng = random.Random(seed)
    models = [model for model in fleet.models.values() if model.jobs_per_min > 0]
    if not models:
        return
    weights = list(itertools.accumulate(model.jobs_per_min for model in models))
    per_ms = weights[-1] / 60_000
    now = 0.0
    for _ in range(count):
        now += rng.expovariate(per_ms)
        model = rng.choices(models, cum_weights=weights)[0]
        output = min(4 * model.output_tokens, round(rng.expovariate(1 / max(1, model.output_tokens))))
        yield SimJob(
            now,
            ModelId(model.info.id),
            max(1, round(model.prompt_tokens * rng.uniform(0.5, 1.5))),
            max(1, output),
            f"u{rng.randrange(model.users)}",
            "bulk" if rng.random() < model.bulk else "interactive",
        )
