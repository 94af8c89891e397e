"""Factories with defaults: a test states only what it is about."""

from __future__ import annotations

from typing import Any

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.ids import InstanceId, ModelId, NodeId, route_of
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.states import InstanceState
from packtrain.workers.receipts import Build, Computer

MODEL = ModelId("tiny")
ROUTE = route_of(MODEL)
DETERMINISTIC = route_of(MODEL, deterministic=True)
ROUTES = (ROUTE,)
INSTANCE = InstanceId("tiny-1")
NODE = NodeId("n1")
MIB = 1024 * 1024
COMPUTER = Computer(Build("scripted", "", ""), "0" * 64, "fast", "fast")


def spec(text: str = "hello", *, model: str = MODEL, **fields: Any) -> JobSpec:
    """A completion job, or one of another `kind` that takes a text."""
    return JobSpec(**{"kind": "complete", "model": model, "prompt": text, **fields})


def model_info(model: str = MODEL, **fields: Any) -> ModelInfo:
    """A model that needs 100 MiB."""
    return ModelInfo(**{"id": model, "required_bytes": 100 * MIB, "n_slots": 4, "n_ctx": 512, **fields})


def node_beat(node: str = NODE, **fields: Any) -> NodeBeat:
    """A node with a budget of 1000 MiB, all of it free."""
    defaults = {
        "node": node,
        "memory_total": 2000 * MIB,
        "memory_free": 1500 * MIB,
        "memory_budget": 1000 * MIB,
        "models": (MODEL,),
    }
    return NodeBeat(**{**defaults, **fields})


def instance_beat(instance: str = INSTANCE, **fields: Any) -> InstanceBeat:
    """A READY instance that holds 100 MiB."""
    defaults = {
        "instance": instance,
        "model": MODEL,
        "node": NODE,
        "state": InstanceState.READY,
        "n_slots": 4,
        "reserved_bytes": 100 * MIB,
        "resident_bytes": 100 * MIB,
    }
    return InstanceBeat(**{**defaults, **fields})
