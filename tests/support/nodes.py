"""Further nodes for tests: agents of their own beside the fleet that `packtrain up` runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from packtrain.broker.beats import NodeBeat
from packtrain.client import Packtrain
from tests.support.fleets import LEASE_MS, eventually

AGENT = (sys.executable, "-m", "packtrain.workers.agent_main")


@dataclass(frozen=True)
class Node:
    """An agent's process and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def signal_all(self, number: int) -> None:
        """Signal the agent and all its instances, as a machine that sleeps stops them all."""
        agent = psutil.Process(self.process.pid)
        for process in [agent, *agent.children(recursive=True)]:
            process.send_signal(number)


@contextmanager
def scripted_node(
    url: str, home: Path, name: str, models: dict[str, dict[str, Any]], argv: Sequence[str] = AGENT, **env: str
) -> Iterator[Node]:
    """An agent of node `name` that offers scripted models; its instances end with it."""
    folder = home / "models"
    folder.mkdir(parents=True, exist_ok=True)
    for model, script in models.items():
        (folder / f"{model}.scripted.json").write_text(json.dumps(script))
    ours = {
        "PACKTRAIN_URL": url,
        "PACKTRAIN_HOME": str(home),
        "PACKTRAIN_NODE": name,
        "PACKTRAIN_SCRIPTED": "1",
        "PACKTRAIN_DRAIN_S": "5",
        "PACKTRAIN_LEASE_MS": str(LEASE_MS),
    }
    log = home / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, env={**os.environ, **ours, **env}, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    node = Node(process, log)
    try:
        yield node
    finally:
        node.signal_all(signal.SIGCONT)
        process.terminate()
        process.wait(30)


def beat_of(fleet: Packtrain, node: str) -> NodeBeat:
    """The beat of a node that is up; waits for it."""
    return eventually(lambda: next((b for b in fleet.nodes() if b.node == node), None), f"a beat of {node}")
