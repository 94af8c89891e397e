"""Two hosts on a LAN of their own: network namespaces with a cable between them. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    """A namespace and its address on the LAN."""

    name: str
    address: str

    def command(self, *argv: str) -> list[str]:
        """The argument list that runs a program there."""
        return ["ip", "netns", "exec", self.name, *argv]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Both hosts; skips the test where they cannot be made."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    hosts = tuple(Host(f"ptlan{os.getpid()}{side}", f"10.77.9.{at}") for at, side in enumerate("ab", start=1))
    with ExitStack() as stack:
        for host in hosts:
            try:
                _ip("netns", "add", host.name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"this system allows no network namespaces: {error.stderr}")
            stack.callback(_ip, "netns", "del", host.name)
        a, b = hosts
        _ip("link", "add", "lan0", "netns", a.name, "type", "veth", "peer", "name", "lan0", "netns", b.name)
        for host in hosts:
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "lan0")
            _ip("-n", host.name, "link", "set", "lan0", "up")
        yield a, b
