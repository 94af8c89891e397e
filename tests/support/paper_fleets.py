"""Fleets on paper for tests: a test states only what it is about."""

from __future__ import annotations

from typing import Any

from packtrain.broker.simulation import FleetFile

GB = 1_000_000_000


def model(gb: float = 1, **fields: Any) -> dict[str, Any]:
    """Loaded in 4 s; one slot; 10 tokens/s; 100 tokens of a prompt in a second."""
    defaults = {"memory": round(gb * GB), "slots": 1, "load": 4, "decode": {"alone": 10}, "prefill": 100}
    return defaults | fields


def node(name: str = "n1", gb: float = 10, **fields: Any) -> dict[str, Any]:
    """All of its memory is its budget."""
    return {"name": name, "memory": round(gb * GB), "budget": round(gb * GB)} | fields


def burst(models: Any, count: int = 1, **fields: Any) -> dict[str, Any]:
    """Jobs of 100 and 50 tokens that come at once: 1 s of prefill and 5 s of decoding on `model`."""
    return {"models": models, "count": count, "prompt": 100, "output": 50} | fields


def paper_fleet(
    *jobs: dict[str, Any], models: dict[str, Any], nodes: list[dict[str, Any]] | None = None, **settings: Any
) -> FleetFile:
    """A fleet of one node of 10 GB, where not said otherwise; no time is lost at a stop."""
    return FleetFile.model_validate(
        {"settings": {"stop": 0} | settings, "nodes": nodes or [node()], "models": models, "jobs": list(jobs)}
    )
