"""Addresses: where other nodes reach a server of ours, and which nodes are on this very machine."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil


def files_url(host: str, port: int, broker_url: str) -> str:
    """What to tell other nodes about a server that listens at `host` and `port`.

    Of one that listens everywhere it has the address by which this machine reaches the broker, or, where the broker
    is on this machine, by which it reaches the world, or any that it has. A machine without a network has loopback.
    """
    host = _reachable_host(host, broker_url)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_everywhere(host: str) -> bool:
    """Whether a server at `host` listens at all addresses, so that `files_url` may change."""
    return host in ("0.0.0.0", "::")  # noqa: S104


def loopback_id() -> str:
    """Equal for processes whose 127.0.0.1 is the same: of one boot of one machine, and one network of it."""
    seen = [socket.gethostname()]
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        seen = [boot, str(os.stat("/proc/self/ns/net").st_ino)]
    except OSError:  # not Linux, where no process has a network of its own
        pass
    return hashlib.sha256("\0".join(seen).encode()).hexdigest()[:16]


def _reachable_host(host: str, broker_url: str) -> str:
    if not is_everywhere(host):
        return host
    broker = urlsplit(broker_url)
    for target in ((broker.hostname or "127.0.0.1", broker.port or 6379), ("192.0.2.1", 9)):
        try:
            # Connecting a UDP socket sends nothing; it only chooses the way.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect(target)
                address = str(probe.getsockname()[0])
        except OSError:
            continue
        if not address.startswith("127."):
            return address
    return next(_own_addresses(), "127.0.0.1")


def _own_addresses() -> Iterator[str]:
    """IPv4 addresses of this machine that others may reach: on a LAN that leads nowhere no way to the world has one."""
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family == socket.AF_INET and not each.address.startswith(("127.", "169.254.")):
                yield str(each.address)
