"""A fleet file: machines and models that need not exist, for `packtrain plan` and `packtrain simulate`.

[nodes.desk]
memory = "32GB"             # that models may use
count = 2                   # as many like it: desk-1 and desk-2
speed = 1.5                 # of its tokens, by the rates of the models; 1 where left out
labels = {gpu = "yes"}

[models.chat]
memory = "6GB"              # that an instance takes: `packtrain models show MODEL` says it
slots = 8
load = 12                   # seconds; left out: 2 s and 500 MB/s
tokens_per_s = 180          # of an instance at full batch: `packtrain ps` shows it
prefill_per_s = 2000        # prompt tokens
keep_alive = 300            # seconds; negative: never unload
pinned = false
min_replicas = 0
max_replicas = 0            # 0: one on each node
reserved_slots = 1          # that bulk jobs leave to interactive ones
nodes = {gpu = "yes"}       # only on nodes with these labels
jobs_per_min = 60           # that come, by chance; the rest is for `simulate` only
prompt_tokens = 400         # of a job, from half of that to one and a half
output_tokens = 150         # of a job, exponential
bulk = 0.5                  # part of the jobs that are bulk
users = 3
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.fields import SafeId
from packtrain.broker.ids import ModelId, NodeId
from packtrain.broker.messages import ModelInfo, NodeBeat
from packtrain.broker.offer_book import NodeOffers
from packtrain.broker.placement import Snapshot
from packtrain.broker.placement.worth import guessed_load_s
from packtrain.broker.simulation.fleet import SimFleet, SimModel, SimNode
from packtrain.client.cli.options import parse_size

MAX_NODES, MAX_MODELS = 10_000, 2_000


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except InvalidParameter as error:
        raise ValueError(str(error)) from None


Size = Annotated[int, BeforeValidator(_size), Field(strict=True, ge=1, le=2**60)]
Rate = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeSection(_Section):
    """One machine, or several that are alike."""

    memory: Size
    count: int = Field(1, strict=True, ge=1, le=MAX_NODES)
    speed: Rate = 1.0
    labels: dict[str, str] = Field(default_factory=dict)


class ModelSection(_Section):
    """One model, which every node has."""

    memory: Size
    slots: int = Field(8, strict=True, ge=1, le=256)
    load: Rate | None = None
    tokens_per_s: Rate = 100.0
    prefill_per_s: Rate = 1000.0
    keep_alive: float = Field(300, allow_inf_nan=False)
    pinned: bool = False
    min_replicas: int = Field(0, strict=True, ge=0, le=MAX_NODES)
    max_replicas: int = Field(0, strict=True, ge=0, le=MAX_NODES)
    reserved_slots: int = Field(0, strict=True, ge=0, le=255)
    nodes: dict[str, str] = Field(default_factory=dict)
    jobs_per_min: float = Field(0, ge=0, le=1e9, allow_inf_nan=False)
    prompt_tokens: int = Field(200, strict=True, ge=1, le=10**7)
    output_tokens: int = Field(100, strict=True, ge=1, le=10**7)
    bulk: float = Field(0, ge=0, le=1)
    users: int = Field(1, strict=True, ge=1, le=1_000_000)


class FleetFile(_Section):
    """The whole file."""

    nodes: dict[SafeId, NodeSection] = Field(min_length=1)
    models: dict[SafeId, ModelSection] = Field(min_length=1, max_length=MAX_MODELS)


def read_fleet(path: Path) -> SimFleet:
    """The fleet that a file describes.

    Raises:
        InvalidParameter: The file cannot be read or is wrong; the message names the place.
    """
    try:
        said = FleetFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InvalidParameter(f"{path} cannot be read ({error.strerror}); name a fleet file", field="file") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidParameter(f"{path}: {where}: {first['msg']}; correct this place", field="file") from None
    except ValueError as error:
        raise InvalidParameter(f"{path} is not TOML: {error}; correct this place", field="file") from None
    if (count := sum(node.count for node in said.nodes.values())) > MAX_NODES:
        raise InvalidParameter(
            f"{path} has {count} nodes, at most {MAX_NODES} can be planned; take fewer", field="file"
        )
    models = tuple(said.models)
    nodes = [
        SimNode(_beat(f"{name}-{number}" if node.count > 1 else name, node, models), node.speed)
        for name, node in said.nodes.items()
        for number in range(1, node.count + 1)
    ]
    return SimFleet(nodes, {ModelId(name): _model(name, model) for name, model in said.models.items()})


def to_snapshot(fleet: SimFleet) -> Snapshot:
    """The same with nothing loaded, as placement sees it."""
    names = [NodeId(node.beat.node) for node in fleet.nodes]
    models = {name: model.info for name, model in fleet.models.items()}
    offers = {name: NodeOffers(dict.fromkeys(names, info)) for name, info in models.items()}
    return Snapshot(now_ms=0, nodes=[node.beat for node in fleet.nodes], models=models, offers=offers)


def _beat(name: str, node: NodeSection, models: tuple[str, ...]) -> NodeBeat:
    return NodeBeat(
        node=name, memory_total=node.memory, memory_free=node.memory, memory_budget=node.memory, models=models,
        labels=node.labels,
    )  # fmt: skip


def _model(name: str, model: ModelSection) -> SimModel:
    info = ModelInfo(
        id=name, required_bytes=model.memory, n_slots=model.slots, keep_alive_s=model.keep_alive, pinned=model.pinned,
        min_replicas=model.min_replicas, max_replicas=model.max_replicas, reserved_slots=model.reserved_slots,
        nodes=model.nodes,
    )  # fmt: skip
    return SimModel(
        info, load_s=model.load or guessed_load_s(model.memory), tokens_per_s=model.tokens_per_s,
        prefill_per_s=model.prefill_per_s, jobs_per_min=model.jobs_per_min, prompt_tokens=model.prompt_tokens,
        output_tokens=model.output_tokens, bulk=model.bulk, users=model.users,
    )  # fmt: skip
