"""Composition root of the agent process: a Celery worker on queue node.<id>, and the agent's loop beside it.

    main thread   Celery consumer of node.<id>: commands from the coordinator
    loop thread   the agent: processes, deadlines, beats

Run by `packtrain node`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from celery import Celery
from redis.exceptions import RedisError

from packtrain.broker import keys, lifeline, logs
from packtrain.broker.celery_app import ECHO, NODE_COMMAND, NODE_PULL, Doorbell, make_app
from packtrain.broker.connection import connect, masked, unavailable
from packtrain.broker.errors import PacktrainError, SetupError
from packtrain.broker.orders import NodeCommand
from packtrain.broker.outcome import Cause
from packtrain.broker.processes import Presence
from packtrain.broker.pulls import PullRequest
from packtrain.broker.reap_traces import jobs_with_traces
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.server import await_broker
from packtrain.broker.settings import Settings, load_settings
from packtrain.broker.tracing import start_tracing
from packtrain.workers import machine
from packtrain.workers.agent import TICK_S, Agent, run_folder
from packtrain.workers.catalog_config import load_catalog_config
from packtrain.workers.celery_worker import HubBeat, run_worker
from packtrain.workers.consumer_watch import ConsumerWatch
from packtrain.workers.device_probe import DeviceWatch
from packtrain.workers.files.pulls import Pulls
from packtrain.workers.instance_process import end_orphans
from packtrain.workers.memory_book import MemoryBook
from packtrain.workers.memory_prober import MemoryProber
from packtrain.workers.node_catalog import GgufCatalog, NodeCatalog, ScriptedCatalog
from packtrain.workers.node_standing import NodeStanding
from packtrain.workers.remote.catalog import RemoteCatalog

logger = logging.getLogger("packtrain.workers.agent_main")  # __name__ is __main__, of which only warnings are logged

#: An agent that lost its parent ends within its drain; a new one of the same node waits this long for it, seconds.
HOLD_TIMEOUT_S = 20.0


def run(settings: Settings) -> None:
    """Run the agent until SIGTERM; returns when its instances are gone."""
    config = load_catalog_config(settings.home)
    settings = settings.model_copy(update={"split": settings.split or config.split})
    url = settings.broker_url()
    # Few tries per command: the loop must go on looking at its processes while the broker is away.
    redis = connect(url, name=f"agent.{settings.node}", retries=1)
    app = make_app(url, name=f"agent.{settings.node}", events=settings.events)
    await_broker(url)
    presence = Presence(url, "agent", settings.node)
    presence.begin()
    registry = RedisRegistry(redis)
    standing = NodeStanding(
        settings,
        registry.node_wish(settings.node_id),
        total_memory=machine.memory().total,
        all_cores=machine.cores(),
    )
    files: NodeCatalog = (
        ScriptedCatalog(settings)
        if settings.scripted
        else GgufCatalog(settings, lambda: granted_bytes(standing), memory_book(settings), MemoryProber())
    )
    catalog = RemoteCatalog(files, config)
    devices = None if settings.scripted else DeviceWatch(rates_with=standing.terms.cores if settings.split else 0)
    hub, bell = HubBeat(settings.stall_s), Doorbell(app)
    consumer = ConsumerWatch(lambda number: bell.echo(settings.node_id, number), lambda: hub.age_s, settings.stall_s)
    settings.home.joinpath("models").mkdir(parents=True, exist_ok=True)
    with held_alone(run_folder(settings), settings.node):
        # Not before: the agent that is being left may still hold the address of its files.
        tracing = start_tracing("packtrain-agent", node=settings.node_id)
        agent = Agent(
            settings, jobs_with_traces(redis, tracing), registry, bell, catalog, consumer, devices, standing,
            presence.beat.version,
        )  # fmt: skip
        try:
            _run(settings, agent, app, registry, catalog, hub, consumer)
        finally:
            presence.end()
            if tracing:
                tracing.close()


def _run(
    settings: Settings,
    agent: Agent,
    app: Celery,
    registry: RedisRegistry,
    catalog: NodeCatalog,
    hub: HubBeat,
    consumer: ConsumerWatch,
) -> None:
    for orphan in end_orphans(agent.run_folder):
        logger.warning("Ended %s, which an agent before left behind", orphan, extra={"event": "instance.orphan"})
        agent.give_back(Cause(instance=orphan, reason="was left behind by an agent that ended"))
    stopping = threading.Event()
    is_orphaned = threading.Event()
    is_deaf = threading.Event()

    def loop() -> None:
        while not stopping.wait(TICK_S):
            try:
                agent.tick()
            except Exception:  # a defect in one tick must not end the supervision of running instances
                logger.exception("A tick of the agent failed", extra={"event": "agent.tick_failed"})
            if agent.deaf_s > settings.stall_s:
                is_deaf.set()
                break
        # After a cut lifeline a new agent may already run under this node's name: then say nothing any more.
        agent.drain(keep_beating=lambda: not is_orphaned.is_set())
        if not is_orphaned.is_set():
            with suppress(RedisError):  # of a broker that is away, or refuses us since we were thrown out
                registry.drop_node(settings.node_id)
        if is_deaf.is_set() and not stopping.is_set():
            catalog.close()
            _begin_anew(settings.node)

    looping = threading.Thread(target=loop, name="agent")

    @app.task(name=NODE_COMMAND)  # type: ignore[untyped-decorator]
    def command(command: dict[str, Any]) -> None:
        agent.command(NodeCommand.model_validate(command))

    @app.task(name=ECHO)  # type: ignore[untyped-decorator]
    def echo(number: int) -> None:
        consumer.heard(number)

    pulls = Pulls(settings.node, registry.put_pull)

    @app.task(name=NODE_PULL)  # type: ignore[untyped-decorator]
    def pull(request: dict[str, Any]) -> None:
        pulls.start(PullRequest.model_validate(request))

    def parent_is_gone() -> None:
        is_orphaned.set()
        os.kill(os.getpid(), 15)

    lifeline.watch(parent_is_gone)
    logger.info("Agent of node %s at %s", settings.node, masked(settings.broker_url()), extra={"event": "agent.start"})
    looping.start()
    try:
        run_worker(
            app,
            name=f"agent@{settings.node}",
            queues=[keys.node_queue(settings.node_id)],
            threads=1,
            events=settings.events,
            hub=hub,
            facts=agent.facts,
            on_ready=lambda: logger.info("Taking commands", extra={"event": "agent.ready"}),
            on_stopping=lambda: None,
        )
    finally:
        pulls.close()
        stopping.set()
        looping.join()
        catalog.close()


def _begin_anew(node: str) -> None:
    """Become a new agent in this same process: its consumer hangs, and nothing in it can be trusted to end it."""
    logger.error("Node %s took no commands; its agent begins anew", node, extra={"event": "agent.anew"})
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "packtrain.workers.agent_main"])  # noqa: S606


def granted_bytes(standing: NodeStanding) -> int:
    """What there is for instances of this node: its budget, or less where other programs have the memory."""
    return min(standing.terms.memory, machine.memory().available)


def memory_book(settings: Settings) -> MemoryBook:
    """What earlier agents of this node learnt about the memory of models."""
    return MemoryBook(settings.home / "memory" / f"{settings.node}.json")


@contextmanager
def held_alone(folder: Path, node: str) -> Iterator[None]:
    """Hold this node of this home alone. One that is being left (an orphaned agent drains) is waited for.

    Raises:
        SetupError: Another agent runs it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + HOLD_TIMEOUT_S
    with open(folder / "lock", "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise SetupError(
                        f"an agent of node {node!r} already runs from {folder}; "
                        "give this one another --node, or another --home"
                    ) from None
                time.sleep(0.2)
        yield


def main() -> int:
    """Entry point; the exit code."""
    try:
        settings = load_settings()
        logs.configure(settings.log_level)
        try:
            run(settings)
        except RedisError as error:
            raise unavailable(settings.broker_url(), error) from error
    except PacktrainError as error:
        sys.stderr.write(f"packtrain node: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
