"""A Docker engine to test with: the one that runs here, or one started by hand that leaves nothing behind.

A hand-started engine lives in a network namespace of its own, which this process enters for good: all its bridges and
packet filters are gone with it, and its addresses cannot collide with anybody's. Its images stay in the cache, so that
a second run builds little.
"""

from __future__ import annotations

import ctypes
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CLONE_NEWNET = 0x40000000
START_S = 60.0
#: The engine ends its containers first.
STOP_S = 60.0
PACKAGES = "docker.io iptables iproute2 debootstrap"


class NoEngine(Exception):
    """There is none and none can be started; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One that answers. `env` is what its clients need."""

    docker: str  # program
    is_ours: bool
    env: Mapping[str, str] = field(default_factory=dict)

    def run(
        self, *words: str, check: bool = True, stdin: bytes | None = None, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """One command of docker.

        Raises:
            AssertionError: It failed; what it said is in the message.
        """
        done = subprocess.run(
            [self.docker, *words], env={**os.environ, **self.env}, input=stdin, capture_output=True, timeout=timeout_s
        )
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        assert not check or done.returncode == 0, f"docker {' '.join(words)}: {err[-2000:]}{out[-2000:]}"
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    @property
    def host_address(self) -> str:
        """Where containers of any network reach ports that are published on this machine."""
        (network,) = json.loads(self.run("network", "inspect", "bridge").stdout)
        net = network["IPAM"]["Config"][0]
        # Debian's engine tells the gateway only while a container is there; it is the first address.
        return str(net.get("Gateway") or next(ipaddress.ip_network(net["Subnet"]).hosts()))


def running_engine() -> Engine | None:
    """The one that docker finds here by itself."""
    docker = _client()
    if docker is None or subprocess.run([docker, "info"], capture_output=True, timeout=30).returncode:
        return None
    return Engine(docker, is_ours=False)


def _client() -> str | None:
    """A docker that can build: new ones need a plugin for that, Debian's does so by itself."""
    docker, debian = shutil.which("docker"), shutil.which("docker", path="/usr/bin")
    if docker and debian and subprocess.run([docker, "buildx", "version"], capture_output=True).returncode:
        return debian
    return docker


@contextmanager
def own_engine(data: Path) -> Iterator[Engine]:
    """Start an engine, and end it with the block.

    Args:
        data: Folder of its images, kept.

    Raises:
        NoEngine
    """
    if missing := _missing():
        raise NoEngine(missing)
    data.mkdir(parents=True, exist_ok=True)
    _leave_network()
    with tempfile.TemporaryDirectory(prefix="packtrain-engine-") as name:
        folder = Path(name)
        (folder / "daemon.json").write_text("{}")  # this machine's own is not ours to follow
        address = f"unix://{folder}/docker.sock"
        with open(folder / "dockerd.log", "wb") as log:
            daemon = subprocess.Popen(
                [
                    "dockerd", "--config-file", str(folder / "daemon.json"), "--data-root", str(data),
                    "--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid"), "--host", address,
                    "--storage-driver", "overlay2",
                ],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        engine = Engine(_client() or "docker", is_ours=True, env={"DOCKER_HOST": address, "DOCKER_CONFIG": str(folder)})
        try:
            _await(engine, daemon, folder / "dockerd.log")
            yield engine
        finally:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(STOP_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _missing() -> str:
    if os.geteuid() != 0:
        return "no Docker engine answers (`docker info`), and only root can start one by hand"
    programs = [name for name in ("dockerd", "iptables", "ip") if shutil.which(name) is None]
    if programs:
        return f"no Docker engine answers, and {', '.join(programs)} is missing: apt-get install {PACKAGES}"
    return ""


def _leave_network() -> None:
    """Give this process, and all that it starts from now on, a network of its own."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise NoEngine(f"no network namespace can be made here: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _await(engine: Engine, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while engine.run("info", check=False).returncode:
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise NoEngine(f"dockerd does not start: {log.read_text()[-1500:]}")
        time.sleep(0.3)
