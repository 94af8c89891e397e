"""Commands about the fleet: `up down node coordinator ps load unload doctor demo`."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console

from packtrain.broker import coordinator_main
from packtrain.broker.errors import ModelLoadFailed, ModelTooLarge, SetupError, TryLater
from packtrain.broker.ids import ModelId, route_of
from packtrain.broker.placement import MAX_LOAD_FAILURES
from packtrain.broker.placement.split import USABLE
from packtrain.broker.settings import Settings, load_settings, secret_in
from packtrain.broker.states import InstanceState
from packtrain.client import InstanceBeat, ModelInfo, Packtrain
from packtrain.client.cli import demo as demo_
from packtrain.client.cli import doctor as doctor_
from packtrain.client.cli import views
from packtrain.client.cli.gateway_page import missing_for_gateway
from packtrain.client.cli.join_commands import CODE, FLEET, JOIN, join_fleet, need_joining
from packtrain.client.cli.node_commands import labels_of
from packtrain.client.cli.options import (
    CORES,
    FILES_ADDRESS,
    HOME,
    JSON,
    LABEL,
    MEMORY,
    MODELS,
    NODE,
    SPLIT,
    parse_size,
)
from packtrain.client.cli.up import UpOptions, run_down, run_up
from packtrain.client.gateway.settings import load_gateway_settings

#: `load` and `unload` look this often, seconds.
POLL_S = 0.3


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (up, down, node, coordinator, ps, load, unload, doctor, demo, version):
        app.command()(command)


def up(
    home: HOME = None,
    broker: Annotated[
        str | None, typer.Option("--broker", metavar="URL", help="A running broker; default: start one.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of our own broker; 0: a free one.")] = 6390,
    listen: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Let other machines join at this address of ours; 0.0.0.0: at any. Default: only this machine.",
        ),
    ] = "",
    tls: Annotated[
        bool,
        typer.Option("--tls", help="Encrypt all connections to our broker; machines that join trust its certificate."),
    ] = False,
    tls_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Name or address by which others reach it, where it is none of ours; several times."
        ),
    ] = None,
    join_port: Annotated[int, typer.Option(min=0, max=65535, help="Port at which they join; 0: a free one.")] = 6391,
    flower: Annotated[bool, typer.Option("--flower", help="Run Flower, too.")] = False,
    flower_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of Flower; 0: a free one.")] = 5555,
    http: Annotated[bool, typer.Option("--http/--no-http", help="Serve OpenAI's API over HTTP.")] = True,
    http_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of that, default 8080; 0: a free one.")
    ] = None,
    http_host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Address of that; beyond loopback only with API keys, see `keys`."),
    ] = None,
    models: MODELS = None,
    node: NODE = None,
    memory: MEMORY = None,
    cores: CORES = None,
    files_address: FILES_ADDRESS = None,
    label: LABEL = None,
    split: SPLIT = False,
    drain: Annotated[
        float | None, typer.Option(min=0, max=86_400, help="Seconds that running jobs may take at the end; default 30.")
    ] = None,
    broker_memory: Annotated[str, typer.Option(help="Memory of our own broker; jobs live there for a day.")] = "1gb",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON once the fleet is ready; all else goes to stderr.")
    ] = False,
) -> None:
    """Run a whole fleet on this machine until Ctrl-C.

    It starts a broker, a coordinator, a gateway for HTTP and this machine's node agent, says where they are once all
    are ready, and restarts what dies.
    """
    settings = _settings(home, node, models)
    _need_worker()
    if listen:
        need_joining()
    said = Console(stderr=as_json)
    if http and (missing := missing_for_gateway()):
        http = False
        said.print(f"no HTTP here: {missing}; `--no-http` does without", soft_wrap=True, markup=False, highlight=False)
    gateway = load_gateway_settings()
    options = UpOptions(
        home=settings.home,
        broker_url=broker or settings.url,
        port=port,
        listen=listen,
        tls=tls,
        tls_names=tuple(tls_name or ()),
        join_port=join_port,
        flower=flower,
        flower_port=flower_port,
        http_port=(gateway.port if http_port is None else http_port) if http else None,
        http_host=http_host or gateway.host,
        http_tls=gateway.tls_cert is not None,
        models=tuple(folder.absolute() for folder in settings.models),
        node=settings.node_id,
        drain_s=settings.drain_s if drain is None else drain,
        maxmemory=broker_memory,
        env={**_terms(memory, cores, label, split=split), **_files(settings, files_address, listen)},
        quiet=quiet,
    )
    raise typer.Exit(run_up(options, said, as_json=as_json))


def down(home: HOME = None, as_json: JSON = False) -> None:
    """Stop the fleet that `packtrain up` runs from this home. It drains first; asked again, it kills."""
    raise typer.Exit(run_down(_settings(home, None, None).home, Console(stderr=as_json), as_json=as_json))


def node(
    home: HOME = None,
    node: NODE = None,
    models: MODELS = None,
    memory: MEMORY = None,
    cores: CORES = None,
    files_address: FILES_ADDRESS = None,
    label: LABEL = None,
    split: SPLIT = False,
    join: JOIN = None,
    code: CODE = None,
    fleet: FLEET = None,
) -> None:
    """Run this machine's node agent alone.

    The first time it joins a fleet: it looks for one on the LAN and asks for the code that `packtrain invite` shows
    there; with --join it needs neither. Later it just starts. PACKTRAIN_URL, where it is set, names the fleet instead.
    """
    settings = _settings(home, node, models)
    _need_worker()
    join = join or _join_of_file(settings)
    if join or code or not settings.known_url():
        settings = settings.model_copy(update={"url": join_fleet(settings, join, code, fleet)})
    env = {
        **os.environ,
        "PACKTRAIN_URL": settings.broker_url(),
        "PACKTRAIN_HOME": str(settings.home),
        "PACKTRAIN_NODE": settings.node,
        "PACKTRAIN_MODELS": os.pathsep.join(str(folder.absolute()) for folder in settings.models),
        **_terms(memory, cores, label, split=split),
        # Everywhere: the address by which we reach the broker may change, as on a laptop.
        **_files(settings, files_address, "0.0.0.0" if _is_elsewhere(settings.broker_url()) else ""),  # noqa: S104
    }
    # The client may not import the workers; the agent becomes this process.
    os.execve(sys.executable, [sys.executable, "-m", "packtrain.workers.agent_main"], env)  # noqa: S606


def coordinator() -> None:
    """Run a coordinator alone. Several may run, one leads. PACKTRAIN_URL names the fleet."""
    raise typer.Exit(coordinator_main.main())


def ps(
    every: Annotated[bool, typer.Option("--all", "-a", help="Also those that ended in the last ten minutes.")] = False,
    as_json: JSON = False,
) -> None:
    """Show what is loaded where, and what waits."""
    with Packtrain() as fleet:
        rows = [i for i in fleet.instances() if every or not i.state.is_terminal]
        waiting = fleet.waiting()
        nodes = fleet.nodes()
    empty = "nothing is loaded; a job loads its model, and so does `packtrain load MODEL`"
    views.show(rows, views.instances_table, empty=empty, as_json=as_json)
    if as_json:
        return
    out = views.console()
    for model, count in sorted(waiting.items()):
        out.print(f"{count} jobs wait for {model}")
    for beat in nodes:
        if beat.quarantine:
            out.print(f"nothing is loaded on {beat.node}: {beat.quarantine}", soft_wrap=True)


def load(
    model: Annotated[str, typer.Argument(help="Model id, see `packtrain models`.")],
    replicas: Annotated[int, typer.Option(min=1, max=1000, help="Instances, on different nodes where possible.")] = 1,
    wait: Annotated[bool, typer.Option(help="Wait until it is ready.")] = True,
    as_json: JSON = False,
) -> None:
    """Load a model and keep it loaded until it is unloaded. Prints its instances, as `ps` does."""
    with Packtrain() as fleet:
        ended = {i.instance for i in fleet.instances() if i.state.is_terminal}
        fleet.load(model, replicas=replicas)
        info = _real_model(fleet, model)

        def is_ready(mine: list[InstanceBeat]) -> bool:
            # What failed before was mended, or it would not be asked.
            mine = [i for i in mine if i.instance not in ended and not i.is_shard]
            failed = [i for i in mine if i.state is InstanceState.FAILED]
            known = fleet.nodes()
            nodes = [node for node in known if info.id in node.models]
            is_split = bool(info.split_over) or any(i.is_head for i in mine)
            # What failed on one node is tried on the next, and a group over other nodes.
            has_failed = {node.node for node in nodes} <= {i.node for i in failed}
            has_failed &= not is_split or len(failed) >= MAX_LOAD_FAILURES
            if not nodes:
                raise TryLater(f"no live node has {model!r}; it is loaded as soon as one comes back")
            largest = max(node.memory_budget for node in nodes)
            together = int(USABLE * sum(node.memory_budget for node in known if node.split))
            if info.required_bytes > max(largest, together) and not any(i.is_head for i in mine):
                raise ModelTooLarge(
                    f"{model!r} needs {views.size(info.required_bytes)}; no node may use more than "
                    f"{views.size(largest)}, and those that take part in splits give {views.size(together)} together; "
                    "set fewer slots or a smaller context in packtrain.toml, or start more nodes with --split"
                )
            if has_failed and all(i.state.is_terminal for i in mine):
                raise ModelLoadFailed(
                    f"{model!r} could not be loaded: {failed[-1].reason}; mend that and load it again"
                )
            return sum(i.state is InstanceState.READY for i in mine) >= replicas

        if wait:
            route = route_of(ModelId(info.id))
            _wait(fleet, info.id, f"loading {model}", is_ready, lambda: fleet.waits().get(route, ""))
        loaded = [i for i in fleet.instances() if i.model == info.id and not i.state.is_terminal]
    views.show(loaded, views.instances_table, empty=f"{model} is to be loaded", as_json=as_json)


def unload(
    model: Annotated[str, typer.Argument(help="Model id, see `packtrain ps`.")],
    wait: Annotated[bool, typer.Option(help="Wait until its memory is free.")] = True,
    as_json: JSON = False,
) -> None:
    """Unload a model once its running jobs have ended. Prints its instances, as `ps --all` does."""
    with Packtrain() as fleet:
        fleet.unload(model)
        info = _real_model(fleet, model)
        # Jobs that wait may bring it back at once; what is loaded now is what shall go.
        leaving = {i.instance for i in fleet.instances() if i.model == info.id and not i.state.is_terminal}

        def is_gone(mine: list[InstanceBeat]) -> bool:
            return all(i.state.is_terminal for i in mine if i.instance in leaving)

        if wait:
            _wait(fleet, info.id, f"unloading {model}", is_gone)
        left = [i for i in fleet.instances() if i.instance in leaving]
    views.show(left, views.instances_table, empty=f"{model} was not loaded", as_json=as_json)


def doctor(home: HOME = None, as_json: JSON = False) -> None:
    """Check this machine and its fleet. Each finding comes with a remedy."""
    raise typer.Exit(doctor_.run(_settings(home, None, None), as_json=as_json))


def demo(
    models: MODELS = None,
    model: Annotated[str, typer.Option(help="Model id.")] = "smollm2",
    jobs: Annotated[int, typer.Option(min=1, max=1000, help="Jobs at once.")] = 32,
) -> None:
    """Start a fleet, run jobs on it, stop it. It streams one answer, runs many at once, and shows what happened."""
    settings = _settings(None, None, models)
    _need_worker()
    folders = tuple(folder.absolute() for folder in settings.model_folders)
    raise typer.Exit(demo_.run(folders, model, jobs))


def version(as_json: JSON = False) -> None:
    """Print the version."""
    found = version_of("packtrain")
    sys.stdout.write(json.dumps({"version": found}) + "\n" if as_json else f"packtrain {found}\n")


def _settings(home: Path | None, node: str | None, models: list[Path] | None) -> Settings:
    overrides: dict[str, object] = {}
    if home:
        overrides["home"] = home
    if node:
        overrides["node"] = node
    settings = load_settings(**overrides)
    return settings.model_copy(update={"models": (*models, *settings.models)}) if models else settings


def _terms(memory: str | None, cores: int | None, labels: list[str] | None, *, split: bool) -> dict[str, str]:
    """On which this node takes part."""
    env = {}
    if memory:
        env["PACKTRAIN_MEMORY"] = str(parse_size(memory))
    if cores:
        env["PACKTRAIN_CORES"] = str(cores)
    if labels:
        env["PACKTRAIN_LABELS"] = ",".join(f"{key}={value}" for key, value in labels_of(labels).items())
    if split:
        env["PACKTRAIN_SPLIT"] = "1"
    return env


def _files(settings: Settings, address: str | None, reached_at: str) -> dict[str, str]:
    """Where this node's model files may be fetched: as said, else wherever other machines take part at all.

    Args:
        address: The option.
        reached_at: Address that other machines may reach us at; empty: there are none.
    """
    if address is None and reached_at and "files_address" not in settings.model_fields_set:
        address = f"[{reached_at}]:0" if ":" in reached_at else f"{reached_at}:0"
    return {} if address is None else {"PACKTRAIN_FILES_ADDRESS": load_settings(files_address=address).files_address}


def _join_of_file(settings: Settings) -> str | None:
    """What PACKTRAIN_JOIN_FILE says to join by. Its token is good for a while only, and not needed a second time.

    Raises:
        SetupError: It is needed, and is not there.
    """
    if settings.join_file is None:
        return None
    is_known = bool(settings.known_url())
    try:
        said = secret_in(settings.join_file)
    except ValueError as error:
        if is_known:
            return None
        raise SetupError(
            f"no fleet is known here, and {settings.join_file} (PACKTRAIN_JOIN_FILE) {error}; write what "
            "`packtrain invite` on the head prints there"
        ) from None
    return said if "://" in said or not is_known else None


def _is_elsewhere(url: str) -> bool:
    """True when the broker is on another machine, as far as its address tells."""
    host = urlsplit(url).hostname or "localhost"
    return host not in ("localhost", "::1") and not host.startswith("127.")


def _need_worker() -> None:
    missing = [
        name for name in ("llama_cpp", "llguidance", "psutil", "numpy") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise SetupError(
            f"this machine cannot run models: {', '.join(missing)} is not installed; "
            "install packtrain with its [worker] extra, as the README shows"
        )


def _real_model(fleet: Packtrain, model: str) -> ModelInfo:
    known = {info.id: info for info in fleet.models()}
    return known[known[model].alias_of or model]


def _wait(
    fleet: Packtrain,
    model: str,
    what: str,
    is_done: Callable[[list[InstanceBeat]], bool],
    why: Callable[[], str] = lambda: "",
) -> None:
    """Until it is done; says why it is not, where somebody knows."""
    console, told = Console(stderr=True), False
    with console.status(what) as status:
        while not is_done([i for i in fleet.instances() if i.model == model]):
            if reason := why():
                status.update(f"{what}: {reason}")
                if not told and not console.is_terminal:  # nobody sees the status
                    console.print(f"{what}: {reason}", soft_wrap=True, highlight=False)
                    told = True
            time.sleep(POLL_S)
