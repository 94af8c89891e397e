"""`packtrain nodes`: the machines of the fleet; set their budgets and labels, drain and resume them, while they run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from redis.exceptions import RedisError

from packtrain.broker import users
from packtrain.broker.connection import connect, unavailable
from packtrain.broker.errors import InvalidParameter, SetupError
from packtrain.broker.ids import NodeId
from packtrain.broker.node_wishes import NodeWish, parse_label
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.settings import load_settings
from packtrain.client import Packtrain
from packtrain.client.cli import views
from packtrain.client.cli.options import JSON, parse_size

#: Takes a budget back to what the node was started with.
AS_STARTED = "start"

NODE_ID = Annotated[str, typer.Argument(metavar="NODE", help="Id of a node, see `packtrain nodes`.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    nodes = typer.Typer(help="The nodes of the fleet; `set`, `drain`, `resume`, `revoke`.", invoke_without_command=True)
    nodes.callback()(list_nodes)
    nodes.command("set")(set_node)
    nodes.command("drain")(drain)
    nodes.command("resume")(resume)
    nodes.command("revoke")(revoke)
    app.add_typer(nodes, name="nodes")


def list_nodes(context: typer.Context, as_json: JSON = False) -> None:
    """List the nodes of the fleet: what each has, may use, and whether it takes work."""
    if context.invoked_subcommand:
        return
    with Packtrain() as fleet:
        rows = fleet.nodes()
    views.show(rows, views.nodes_table, empty="no node is up; start one with `packtrain node`", as_json=as_json)


def set_node(
    node: NODE_ID,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory that models may use, such as 12GB; `start`: as it was started."),
    ] = None,
    cores: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Cores that models may use; `start`: as it was started.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label for selectors; may be given several times.")
    ] = None,
    no_label: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Take a label away; may be given several times.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Set budgets and labels of a running node.

    They are kept, whatever it is started with later. With less memory than its instances hold, idle ones leave at once
    and busy ones drain.
    """
    if not (memory or cores or label or no_label):
        raise InvalidParameter("nothing to set; give --memory, --cores, --label or --no-label", field="node")
    labels: dict[str, str | None] = dict(labels_of(label))
    labels.update(dict.fromkeys(no_label or ()))
    with Packtrain() as fleet:
        wish = fleet.set_node(
            node,
            memory=None if memory is None else _bytes(memory),
            cores=None if cores is None else _count(cores),
            labels=labels,
        )
    _show(node, wish, as_json=as_json)


def drain(node: NODE_ID, as_json: JSON = False) -> None:
    """Let a node finish its jobs and take no more.

    It goes on so, also after a restart, until `packtrain nodes resume`.
    """
    with Packtrain() as fleet:
        _show(node, fleet.drain_node(node), as_json=as_json)


def resume(node: NODE_ID, as_json: JSON = False) -> None:
    """End the drain or quarantine of a node."""
    with Packtrain() as fleet:
        _show(node, fleet.resume_node(node), as_json=as_json)


def revoke(node: NODE_ID, as_json: JSON = False) -> None:
    """Throw out a machine that joined.

    Its password is refused and its connections end, at once. Its jobs go on elsewhere. It may come back by a new
    invitation only. To be run on the head.
    """
    url = load_settings().broker_url()
    redis = connect(url, name="revoke")
    try:
        if not users.revoke(redis, NodeId(node)):
            known = ", ".join(users.machines(redis)) or "no machine"
            raise SetupError(
                f"{node} has no password of its own ({known} has one); where it joined by a common one, change that: "
                "delete `broker/password` in the home of the head, start the head anew, and let all others join again"
            )
        RedisRegistry(redis).drop_node(NodeId(node))
    except RedisError as error:
        raise unavailable(url, error) from error
    finally:
        redis.close()
    if as_json:
        views.print_json({"node": node, "revoked": True})
    else:
        views.console().print(f"{node} is out: its password is refused from now on", soft_wrap=True)


def labels_of(texts: list[str] | None) -> dict[str, str]:
    """Labels as options give them.

    Raises:
        InvalidParameter
    """
    try:
        return dict(map(parse_label, texts or ()))
    except ValueError as error:
        raise InvalidParameter(str(error), field="labels") from None


def _bytes(text: str) -> int:
    if text == AS_STARTED:
        return 0
    if not (size := parse_size(text)):
        raise InvalidParameter("a node without memory takes no work; `packtrain nodes drain` says so", field="memory")
    return size


def _count(text: str) -> int:
    if text == AS_STARTED:
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise InvalidParameter(f"{text!r} is no number of cores; give 1 or more, or `start`", field="cores")
    return int(text)


def _show(node: str, wish: NodeWish, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(wish.model_dump_json() + "\n")
        return
    said = [f"memory {views.size(wish.memory)}"] if wish.memory else []
    said += [f"{wish.cores} cores"] if wish.cores else []
    said += [f"{key}={text}" if text is not None else f"no {key}" for key, text in sorted(wish.labels.items())]
    said += ["draining"] if wish.draining else []
    views.console().print(f"{node}: {', '.join(said) or 'as it was started'}", soft_wrap=True)
