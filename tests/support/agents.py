"""Node agents of one fleet for tests, each with a home of its own, and commands to them as a coordinator gives them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.celery_app import Doorbell, make_app
from packtrain.broker.connection import connect
from packtrain.broker.fields import Numerics
from packtrain.broker.ids import NodeId
from packtrain.broker.orders import NodeCommand, ShardOrder
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.states import InstanceState
from tests.support.fleets import eventually


@dataclass
class Agents:
    """A fleet without a coordinator: tests load and unload by hand."""

    url: str
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.registry = RedisRegistry(connect(self.url, name="test"))
        self.bells = Doorbell(make_app(self.url, name="test"))

    def home(self, node: str) -> Path:
        return self.folder / node

    def models(self, node: str) -> Path:
        """The folder of its model files."""
        folder = self.home(node) / "models"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write_scripted(self, node: str, name: str, *, pad: int = 0, **script: Any) -> Path:
        """A scripted model for a node, so many bytes larger than it need be."""
        path = self.models(node) / f"{name}.scripted.json"
        path.write_bytes(json.dumps(script).encode() + b" " * pad)
        return path

    def start(self, node: str, **env: str) -> None:
        """Start the agent of a node and wait until it reports."""
        before = self.registry.node(NodeId(node))
        self.models(node)
        environment = {
            **os.environ, "PACKTRAIN_URL": self.url, "PACKTRAIN_HOME": str(self.home(node)), "PACKTRAIN_NODE": node,
            "PACKTRAIN_LEASE_MS": "2000", "PACKTRAIN_DRAIN_S": "1", **env,
        }  # fmt: skip
        with (self.folder / f"{node}.log").open("ab") as log:
            self.processes[node] = process = subprocess.Popen(
                [sys.executable, "-m", "packtrain.workers.agent_main"], env=environment, stderr=log
            )

        def beats() -> bool:
            beat = self.registry.node(NodeId(node))
            return bool(beat and beat.pid == process.pid and (not before or beat.pid != before.pid))

        eventually(beats, f"a beat of {node}")

    def start_coordinator(self, **env: str) -> None:
        """Have somebody place models, too."""
        home = str(self.folder / "coordinator")
        environment = {**os.environ, "PACKTRAIN_URL": self.url, "PACKTRAIN_HOME": home, **env}
        with (self.folder / "coordinator.log").open("ab") as log:
            self.processes["coordinator"] = subprocess.Popen(
                [sys.executable, "-m", "packtrain.broker.coordinator_main"], env=environment, stderr=log
            )

    def kill(self, node: str) -> None:
        """End an agent without a warning."""
        self.processes[node].kill()
        self.processes[node].wait()

    def beat(self, node: str) -> NodeBeat:
        beat = self.registry.node(NodeId(node))
        assert beat
        return beat

    def load(self, model: str, node: str, *, fetch_from: str = "", numerics: Numerics = "fast", term: int = 1) -> str:
        """Command a load; the new instance."""
        instance = f"{model}-{next(self._numbers)}"
        self.bells.command(
            NodeId(node),
            NodeCommand(
                id=f"load-{instance}", term=term, verb="load", instance=instance, model=model, n_slots=2, n_ctx=512,
                reserved_bytes=2**20, fetch_from=fetch_from, numerics=numerics, reason="a test",
            ),
        )  # fmt: skip
        return instance

    def load_split(self, model: str, layers: dict[str, int], *, n_layer: int) -> list[str]:
        """Command a group: the layers of each node, the head first. Its instances in that order."""
        head, *others = layers
        names = [f"{model}-{next(self._numbers)}" for _ in layers]
        common = {"term": 1, "model": model, "n_slots": 2, "n_ctx": 512, "numerics": "deterministic",
                  "reserved_bytes": 2**28, "reason": "a test"}  # fmt: skip
        self.registry.put_instances(
            [
                InstanceBeat(
                    instance=name, model=model, node=node, state=InstanceState.REQUESTED, group=names[0],
                    layers=layers[node], reserved_bytes=2**28,
                )
                for name, node in zip(names, layers, strict=True)
            ]
        )  # fmt: skip
        orders = []
        for name, node in zip(names[1:], others, strict=True):
            command = {"group": names[0], "layers": layers[node], "peer": self.beat(head).certificate}
            told = NodeCommand.model_validate(
                {"id": f"shard-{name}", "verb": "shard", "instance": name, "cache_key": "k", **command, **common}
            )
            self.bells.command(NodeId(node), told)
            certificate = self.beat(node).certificate
            orders.append(ShardOrder(instance=name, node=node, layers=layers[node], certificate=certificate))
        assert sum(layers.values()) == n_layer
        told = NodeCommand.model_validate(
            {"id": f"load-{names[0]}", "verb": "load", "instance": names[0], "layers": layers[head], **common}
        )
        self.bells.command(NodeId(head), told.model_copy(update={"shards": tuple(orders)}))
        return names

    def unload(self, instance: str, node: str, *, term: int = 1) -> None:
        """Command an unload."""
        model = instance.rpartition("-")[0]
        command = NodeCommand(
            id=f"unload-{instance}", term=term, verb="unload", instance=instance, model=model, reason="a test"
        )
        self.bells.command(NodeId(node), command)

    def instance(self, instance: str) -> InstanceBeat | None:
        """Its last beat."""
        return next((beat for beat in self.registry.instances() if beat.instance == instance), None)

    def until(self, instance: str, *states: InstanceState, reason: str = "", timeout_s: float = 30) -> InstanceBeat:
        """The beat of an instance once it is in one of these states, with this in its reason."""

        def look() -> InstanceBeat | None:
            beat = self.instance(instance)
            return beat if beat and beat.state in states and reason in beat.reason else None

        try:
            return eventually(look, f"{instance} to be {states}", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.instance(instance)}") from None


@contextmanager
def agents(url: str, folder: Path) -> Iterator[Agents]:
    """A fleet whose agents end with the block."""
    fleet = Agents(url, folder)
    try:
        yield fleet
    finally:
        for process in fleet.processes.values():
            process.terminate()
        for process in fleet.processes.values():
            process.wait(30)
        fleet.bells.close()
