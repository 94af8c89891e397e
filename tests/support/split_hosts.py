"""A shard and ends of tunnels on hosts of ours, without agents."""

from __future__ import annotations

import sys
from pathlib import Path

from packtrain.broker.fields import Numerics
from packtrain.workers.shards.messages import ShardConfig
from packtrain.workers.tunnel.certificate import Identity
from packtrain.workers.tunnel.handshake import Role
from packtrain.workers.tunnel.messages import TunnelConfig, TunnelReady
from tests.support.fleets import eventually
from tests.support.hosts import Host

Address = tuple[str, int]


def shard_on(host: Host, port: int, log: Path, *, numerics: Numerics = "fast") -> None:
    """A shard that listens at this port of its host's loopback."""
    config = ShardConfig(port=port, numerics=numerics)
    command = [sys.executable, "-m", "packtrain.workers.shard_main", config.model_dump_json()]
    shard = host.start(command, {"OPENBLAS_NUM_THREADS": "1"}, log)
    eventually(lambda: listens(shard.pid, port), "a shard")


def end_on(host: Host, role: Role, own: Identity, peer: Identity, *, at: Address, to: Address, log: Path) -> int:
    """One end of a tunnel; the port that it listens at."""
    config = TunnelConfig(
        role=role, host=at[0], port=at[1], target_host=to[0], target_port=to[1], peer=peer.certificate,
        certificate_file=str(own.certificate_file), key_file=str(own.key_file),
    )  # fmt: skip
    host.start([sys.executable, "-m", "packtrain.workers.tunnel_main", config.model_dump_json()], {}, log)
    told = eventually(lambda: next((x for x in log.read_text().splitlines() if x.startswith("{")), None), role)
    return TunnelReady.model_validate_json(told).port


def listens(pid: int, port: int) -> bool:
    """Whether somebody listens at a port, on the host of this process."""
    return f":{port:04X} 00000000:0000 0A" in Path(f"/proc/{pid}/net/tcp").read_text()
