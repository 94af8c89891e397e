"""A fleet of several hosts: the head with broker and coordinator, a node on each other one, a client on one more.

Its processes are those that `packtrain up` and `packtrain node` run. Nobody restarts them but the test: what a
supervisor would do is left out on purpose, so that a fault is mended by the rest of the fleet or not at all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis import Redis, RedisError

from packtrain.broker import keys
from packtrain.broker.beats import InstanceBeat
from packtrain.broker.connection import connect
from packtrain.broker.ids import InstanceId
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.server import BrokerServer
from packtrain.broker.states import InstanceState
from packtrain.client import Packtrain
from tests.support.fleets import eventually
from tests.support.hosts import Host, hosts, why_not

#: Shorter than a fleet has it, so that tests need not wait so long; not so short that a busy machine lets leases lapse.
LEASE_MS = 5000


@dataclass(slots=True)
class Node:
    """A host with its agent."""

    host: Host
    home: Path
    env: dict[str, str]
    agent: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start its agent."""
        arguments = [sys.executable, "-m", "packtrain.workers.agent_main"]
        self.agent = self.host.start(arguments, self.env, self.home / "agent.log")

    def said(self, text: str) -> bool:
        """Whether the agent or an instance of it has written this."""
        return text in (self.home / "agent.log").read_text()


@dataclass(slots=True)
class HostFleet:
    """A running fleet; made by `host_fleet`."""

    folder: Path
    head: Host
    laptop: Host  # of the client
    nodes: dict[str, Node]
    server: BrokerServer
    url: str  # as hosts know it
    outer_url: str  # as this process knows it; ends on the head itself, so that no cable is between
    env: dict[str, str]
    client: Packtrain
    redis: Redis  # by `outer_url`
    data: Path  # of the broker
    disk_mib: int = 0
    broker: subprocess.Popen[bytes] | None = None
    coordinators: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_broker(self) -> None:
        """Start it, again on the data that it has; with `disk_mib` on a disk of that size, which ends with it."""
        command = list(self.server.command())
        if self.disk_mib:
            mount = f'mount -t tmpfs -o size={self.disk_mib}m tmpfs "$0" && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", mount, str(self.data), *command]
        self.broker = self.head.start(command, {}, self.folder / "broker.log")
        eventually(self.answers, "the broker to answer", 20)

    def answers(self) -> bool:
        """Whether the broker does."""
        try:
            return bool(self.redis.ping())
        except RedisError:
            return False

    def start_coordinator(self, host: Host | None = None) -> subprocess.Popen[bytes]:
        """One more coordinator, on the head or elsewhere."""
        arguments = [sys.executable, "-m", "packtrain.broker.coordinator_main"]
        env = {**self.env, "PACKTRAIN_NODE": f"c{len(self.coordinators)}"}
        process = (host or self.head).start(arguments, env, self.folder / f"{env['PACKTRAIN_NODE']}.log")
        self.coordinators.append(process)
        return process

    def leader(self) -> subprocess.Popen[bytes] | None:
        """The coordinator that leads."""
        name = str(self.redis.get(keys.LEADER))
        return next((c for c in self.coordinators if f"-{c.pid}-" in name), None)

    def term(self) -> int:
        """How often somebody has been elected."""
        return int(str(self.redis.get(keys.TERM) or 0))

    def alive(self) -> set[str]:
        """Nodes that report."""
        return {beat.node for beat in RedisRegistry(self.redis).nodes()}

    def instances(self, model: str = "", node: str = "", state: InstanceState | None = None) -> list[InstanceBeat]:
        """Instances as the registry has them."""
        found = RedisRegistry(self.redis).instances()
        return [
            i
            for i in found
            if (not model or i.model == model) and (not node or i.node == node) and (state is None or i.state is state)
        ]

    def ready(self, model: str, *, node: str = "", not_on: str = "") -> InstanceBeat:
        """A READY instance; waits for it."""

        def look() -> InstanceBeat | None:
            found = self.instances(model, node, InstanceState.READY)
            return next((i for i in found if i.node != not_on), None)

        return eventually(look, f"a READY instance of {model} {node and f'on {node}'}", 60)

    def beat(self, instance: str) -> InstanceBeat | None:
        """What is known of an instance."""
        return {i.instance: i for i in RedisRegistry(self.redis).instances()}.get(InstanceId(instance))


@contextmanager
def host_fleet(
    folder: Path,
    models: Mapping[str, Mapping[str, Any]],
    *names: str,
    scripts: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    disk_mib: int = 0,
    config: str = "",
    env: Mapping[str, str] | None = None,
) -> Iterator[HostFleet]:
    """A fleet that offers scripted models on nodes of these names, each on a host of its own.

    Args:
        models: What each node offers: model to the content of its file.
        scripts: The same for single nodes, over `models`.
        disk_mib: Size of the broker's disk; 0: the machine's own.
        config: packtrain.toml of each node.
        env: Of every process, over what is set here.

    The test is skipped where hosts cannot be made.
    """
    if reason := why_not():
        pytest.skip(reason)
    with hosts("head", "laptop", *names) as (head, laptop, *others):
        server = BrokerServer(folder / "broker", port=0)
        server.prepare()
        data = folder / "broker" / "data"
        data.mkdir()
        conf = server.conf_file.read_text()
        conf = conf.replace("bind 127.0.0.1", "bind 0.0.0.0").replace(f'dir "{server.folder}"', f'dir "{data}"')
        server.conf_file.write_text(conf)
        url = server.url.replace("127.0.0.1", head.address)
        common = {"PACKTRAIN_URL": url, "PACKTRAIN_LEASE_MS": str(LEASE_MS), "PACKTRAIN_SCRIPTED": "1",
                  "PACKTRAIN_DRAIN_S": "5", **(env or {})}  # fmt: skip
        nodes = {}
        for host in others:
            home = folder / host.name
            (home / "models").mkdir(parents=True)
            for model, script in {**models, **(scripts or {}).get(host.name, {})}.items():
                (home / "models" / f"{model}.scripted.json").write_text(json.dumps(script))
            mine = {"PACKTRAIN_HOME": str(home), "PACKTRAIN_NODE": host.name, "PACKTRAIN_MEMORY": str(2 * 2**30)}
            (home / "packtrain.toml").write_text(config)
            nodes[host.name] = Node(host, home, {**common, **mine, **(env or {})})
        outer = _loopback(server, head.relay(server.port, on=head))
        redis = connect(outer, name="test", retries=0)
        client = Packtrain(_loopback(server, head.relay(server.port, on=laptop)))
        fleet = HostFleet(folder, head, laptop, nodes, server, url, outer, common, client, redis, data, disk_mib)
        with client:
            fleet.start_broker()
            fleet.start_coordinator()
            for node in nodes.values():
                node.start()
            eventually(lambda: fleet.alive() == set(names) and fleet.leader(), "all nodes to report", 40)
            yield fleet
        redis.close()


def _loopback(server: BrokerServer, port: int) -> str:
    return server.url.replace(f":{server.port}/", f":{port}/")
