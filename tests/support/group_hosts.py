"""Three hosts that hold a model together, as people run them: `packtrain up --listen` on one, `packtrain node` on two.

Beside them a host that is no member. Clients reach the broker without a cable in between.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from redis import Redis

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.connection import connect
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.states import InstanceState
from packtrain.client import Packtrain
from tests.support.fleets import eventually
from tests.support.hosts import Host, hosts

PACKTRAIN = [sys.executable, "-c", "from packtrain.client.cli.main import main; main()"]
BROKER_PORT = 6390
#: What a model over several nodes consists of, by the module that each process runs.
PARTS = ("instance_main", "shard_main", "tunnel_main")
ON = (InstanceState.READY, InstanceState.HOLDING)


@dataclass(slots=True)
class GroupHosts:
    """The fleet; made by `group_hosts`."""

    folder: Path
    members: dict[str, Host]  # by node
    stranger: Host
    client: Packtrain
    redis: Redis

    def processes(self, *names: str, part: str = "") -> list[psutil.Process]:
        """Of instances, shards and tunnels on these hosts, or on all; of one of `PARTS`, if it is named."""
        found = []
        for name in names or self.members:
            for pid in self.members[name].pids():
                try:
                    process = psutil.Process(pid)
                    words = process.cmdline()
                except psutil.Error:
                    continue
                if any(
                    word == f"packtrain.workers.{each}" for word in words for each in PARTS if each in (part or each)
                ):
                    found.append(process)
        return found

    def instances(self) -> list[InstanceBeat]:
        """Heads and shards as the registry has them, without those that are over."""
        return [beat for beat in RedisRegistry(self.redis).instances() if not beat.state.is_terminal]

    def group(self, timeout_s: float, *, without: str = "") -> list[InstanceBeat]:
        """The members of a group that answers, the head first; waits for it.

        Args:
            without: The head of an earlier one.
        """

        def look() -> list[InstanceBeat] | None:
            found = [beat for beat in self.instances() if beat.state in ON and beat.group and beat.group != without]
            heads = [beat for beat in found if beat.instance == beat.group]
            members = [beat for beat in found if heads and beat.group == heads[0].group and beat is not heads[0]]
            return [heads[0], *members] if members else None

        return eventually(
            look, f"a group; there is {[(i.node, i.state, i.reason) for i in self.instances()]}", timeout_s
        )

    def logs(self) -> str:
        """The last that each host has said."""
        said = {name: (self.folder / name / "out.log").read_text(errors="replace") for name in self.members}
        return "\n".join(f"--- {name}\n{text[-4000:]}" for name, text in said.items())


def environment(home: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Of a process of packtrain on a host."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PACKTRAIN_")}
    return {**inherited, "PACKTRAIN_HOME": str(home), "PACKTRAIN_SPLIT": "1", **env}


@contextmanager
def group_hosts(
    folder: Path, model: Path, memory: Mapping[str, int], *, config: str, **env: str
) -> Iterator[GroupHosts]:
    """A fleet whose nodes have so much memory, bytes. The first node is the head's, and has the model's file.

    Args:
        config: packtrain.toml of the first node.
        env: Of all processes.
    """
    first, *others = memory
    with hosts("stranger", *memory) as (stranger, *members):
        by_name = dict(zip(memory, members, strict=True))

        def start(name: str, *arguments: str) -> None:
            home = folder / name
            host = by_name[name]
            options = ["--node", name, "--memory", str(memory[name]), "--cores", "1"]
            host.start([*PACKTRAIN, *arguments, *options], environment(home, env), home / "out.log")

        for name in memory:
            (folder / name / "models").mkdir(parents=True)
        os.symlink(model, folder / first / "models" / model.name)
        (folder / first / "packtrain.toml").write_text(config)
        start(first, "up", "--listen", "0.0.0.0", "--no-http", "--drain", "1")
        eventually(lambda: "The fleet is up" in (folder / first / "out.log").read_text(), "the fleet", 60)
        for name in others:
            invite = subprocess.run(
                by_name[first].command(*PACKTRAIN, "invite", "--json"),
                env=environment(folder / first, env), capture_output=True, check=True, timeout=60,
            )  # fmt: skip
            start(name, "node", "--join", str(json.loads(invite.stdout)["token"]))
            log = folder / name / "out.log"
            eventually(lambda log=log: "Joined" in log.read_text(), f"{name} to join", 60)  # type: ignore[misc]
        url = str(json.loads((folder / first / "fleet.json").read_text())["url"])
        port = by_name[first].relay(BROKER_PORT, on=by_name[first])
        url = url.replace(f":{BROKER_PORT}", f":{port}")
        redis = connect(url, name="test", retries=0)
        with Packtrain(url) as client:
            fleet = GroupHosts(folder, by_name, stranger, client, redis)

            def know_each_other() -> bool:
                beats = RedisRegistry(redis).nodes()
                return len(beats) == len(memory) and all(len(beat.links) == len(memory) - 1 for beat in beats)

            try:
                eventually(know_each_other, "all nodes to measure their links", 90)
                yield fleet
            except BaseException:
                sys.stderr.write(fleet.logs())
                raise
        redis.close()
