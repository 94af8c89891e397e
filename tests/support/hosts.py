"""Several hosts on this machine: network namespaces that hang on one switch, by cables that can be cut.

Each host is a network namespace with one interface and one address; a further one holds the switch, a bridge. Nothing
is named and nothing touches the interfaces of the machine: a namespace lives as long as a process in it, the first of
them a `cat` that ends when its stdin does. So when the test run ends, even by `kill -9`, the kernel clears all away.

Needs root, or else user namespaces; `ip` (iproute2), `unshare` and `nsenter` (util-linux). `why_not` says what is
missing. Hosts share the machine's disk, and not its loopback: from outside a host is reached by its `relay`.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from packtrain.broker import lifeline
from tests.support.fleets import eventually

#: Addresses exist in the namespaces only; RFC 2544 keeps this net for tests between devices.
NET = "198.18.0"
#: A station that is on no cable: what is sent to it is lost without a word.
NOBODY = "02:00:00:00:00:fe"


@dataclass(slots=True)
class Host:
    """One host; made by `hosts`. The kernel takes names of up to 12 characters."""

    name: str
    address: str
    holder: subprocess.Popen[bytes]  # keeps the namespace
    namespace: str  # as /proc names it, also when the holder is gone
    switch: subprocess.Popen[bytes]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        """The argument list that runs a program on this host. The program becomes the process that is started."""
        return [*_enter(self.holder), *arguments]

    def start(self, arguments: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Run a program of ours on this host until the end of the test run; its stdin is its lifeline."""
        with open(log, "ab") as out:
            process = subprocess.Popen(
                self.command(*arguments),
                env={**os.environ, **env, lifeline.VARIABLE: "1", "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def cut(self) -> None:
        """Pull the cable: nothing gets in or out, and nobody is told."""
        _ip(self.switch, f"link set to-{self.name} down")

    def heal(self) -> None:
        """Plug it in again."""
        _ip(self.switch, f"link set to-{self.name} up")

    def limit(self, bits_per_s: int) -> None:
        """Let its cable carry no more than this, each way."""
        for holder, interface in ((self.holder, "eth0"), (self.switch, f"to-{self.name}")):
            # A bucket of two milliseconds: what is less would not reach the rate, what is more would hide it.
            bucket = max(bits_per_s // 8 // 500, 16_000)
            shape = f"tc qdisc replace dev {interface} root tbf rate {bits_per_s}bit burst {bucket} latency 50ms"
            subprocess.run([*_enter(holder), *shape.split()], check=True, capture_output=True)

    def mute(self, other: Host) -> None:
        """Lose whatever this host sends to `other` from now on; what `other` sends arrives."""
        _ip(self.holder, f"neigh replace {other.address} lladdr {NOBODY} dev eth0 nud permanent")

    def unmute(self, other: Host) -> None:
        """Undo `mute`."""
        _ip(self.holder, f"neigh del {other.address} dev eth0")

    def pids(self) -> list[int]:
        """Every process on this host but the one that keeps it."""
        found = []
        for entry in Path("/proc").iterdir():
            # It may end while we look, and other users' are none of ours.
            with suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns" / "net") == self.namespace:
                    found.append(int(entry.name))
        return [pid for pid in found if pid != self.holder.pid]

    def signal_all(self, number: int) -> None:
        """A signal to every process of this host at once, as sleep, return and power-off are felt."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def vanish(self) -> None:
        """Lose power: the cable is dead and no process gets to say a word."""
        self.cut()
        while self.pids():
            self.signal_all(signal.SIGKILL)
            time.sleep(0.01)

    def relay(self, port: int, *, on: Host) -> int:
        """A port of this machine's loopback that leads to a port of this host, by the cable of the host `on`."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            arguments = ["-m", "tests.support.relay", str(listener.fileno()), self.address, str(port)]
            process = subprocess.Popen(
                on.command(sys.executable, *arguments),
                pass_fds=[listener.fileno()], stdin=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            on.started.append(process)
            return int(listener.getsockname()[1])


@contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """Hosts of these names, joined by a switch; all their processes are gone afterwards."""
    with ExitStack() as stack:
        switch = _namespace(stack, None)
        _ip(switch, "link add switch type bridge", "link set switch up")
        made = []
        for number, name in enumerate(names, 1):
            holder = _namespace(stack, switch)
            host = Host(name, f"{NET}.{number}", holder, os.readlink(f"/proc/{holder.pid}/ns/net"), switch)
            stack.callback(_end, host)
            _ip(
                switch,
                f"link add to-{name} type veth peer name eth0 netns {host.holder.pid}",
                f"link set to-{name} master switch up",
            )
            _ip(host.holder, f"addr add {host.address}/24 dev eth0", "link set eth0 up", "link set lo up")
            made.append(host)
        yield made


@functools.cache
def why_not() -> str:
    """Why hosts cannot be made here; empty: they can."""
    missing = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"several hosts need {', '.join(missing)}: apt-get install iproute2 util-linux"
    try:
        with hosts("a", "b") as (a, b):
            ping = "import socket; socket.create_server(('0.0.0.0', 7)).accept()"
            listener = b.start([sys.executable, "-c", ping], {}, Path(os.devnull))
            knock = f"import socket; socket.create_connection(('{b.address}', 7), 1)"
            eventually(
                lambda: subprocess.run(a.command(sys.executable, "-c", knock), capture_output=True).returncode == 0,
                "one host to reach the other", 10,
            )  # fmt: skip
            listener.wait(5)
    except (OSError, subprocess.SubprocessError, AssertionError) as error:
        said = getattr(error, "stderr", None) or b""
        return f"no network namespaces here, run as root or allow user namespaces ({error} {said.decode().strip()})"
    return ""


def _namespace(stack: ExitStack, parent: subprocess.Popen[bytes] | None) -> subprocess.Popen[bytes]:
    """A process in a network namespace of its own; without root, in the user namespace of `parent` or a new one."""
    unshare = ["unshare", "--net"]
    if os.geteuid() and parent is None:
        unshare += ["--user", "--map-root-user"]
    before = [*_enter(parent)[:-1]] if os.geteuid() and parent else []
    # In a session of its own: a Ctrl-C at the terminal is the test run's to handle.
    process = subprocess.Popen(
        [*before, *unshare, "cat"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    stack.callback(_let_go, process)
    outside = os.readlink("/proc/self/ns/net")

    def is_there() -> bool:
        if process.poll() is not None:
            assert process.stderr is not None
            raise subprocess.CalledProcessError(process.returncode, unshare, stderr=process.stderr.read())
        return os.readlink(f"/proc/{process.pid}/ns/net") != outside and _name(process.pid) == "cat"

    eventually(is_there, "a namespace", 10)
    return process


def _enter(holder: subprocess.Popen[bytes] | None) -> list[str]:
    assert holder is not None
    user = ["--user", "--preserve-credentials"] if os.geteuid() else []
    return ["nsenter", "--target", str(holder.pid), *user, "--net"]


def _ip(holder: subprocess.Popen[bytes], *commands: str) -> None:
    lines = "".join(f"{command}\n" for command in commands)
    subprocess.run([*_enter(holder), "ip", "-batch", "-"], input=lines.encode(), check=True, capture_output=True)


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _end(host: Host) -> None:
    while pids := host.pids():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in host.started:
            process.poll()
        time.sleep(0.01)
    for process in host.started:
        process.wait(10)
        assert process.stdin is not None
        process.stdin.close()


def _let_go(holder: subprocess.Popen[bytes]) -> None:
    for pipe in (holder.stdin, holder.stderr):
        if pipe:
            pipe.close()
    holder.wait(10)
