"""Ends of tunnels at loopback."""

from __future__ import annotations

from packtrain.workers.tunnel.certificate import Identity
from packtrain.workers.tunnel.handshake import Role
from packtrain.workers.tunnel.messages import TunnelConfig
from packtrain.workers.tunnel.process import TunnelProcess


def end(role: Role, own: Identity, peer: Identity, target: int, *, port: int = 0) -> TunnelProcess:
    """One end that leads to a port."""
    config = TunnelConfig(
        role=role, host="127.0.0.1", port=port, target_host="127.0.0.1", target_port=target, peer=peer.certificate,
        certificate_file=str(own.certificate_file), key_file=str(own.key_file),
    )  # fmt: skip
    return TunnelProcess(config)
