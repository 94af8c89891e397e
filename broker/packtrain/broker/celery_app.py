"""Celery: doorbells to instances and commands to agents. It carries no prompts, and nothing that matters if it is lost.

A doorbell says "a job waits for model M". It is rung after the job record is written; whoever hears it claims the best
ready job. Redis pops a message before it records it as unacknowledged, so Celery may lose one (a worker killed in
between) or deliver one twice (a connection cut): a lost bell is rung again by the coordinator, a spare one finds
nothing to claim. That is why `visibility_timeout` needs no tuning to the length of jobs. One bell may serve several
short jobs, see `workers/runner.py`.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from celery import Celery
from kombu.exceptions import OperationalError

from packtrain.broker import keys
from packtrain.broker.connection import tls_options
from packtrain.broker.ids import NodeId, Route
from packtrain.broker.orders import NodeCommand
from packtrain.broker.pulls import PullRequest

logger = logging.getLogger(__name__)

RING: Final = "packtrain.ring"
NODE_COMMAND: Final = "packtrain.node"
NODE_PULL: Final = "packtrain.pull"
#: An agent says something to itself, to see that it hears.
ECHO: Final = "packtrain.echo"
#: A job rings only while no more than this many wait: a slot that hears a bell serves jobs for a while, and rings again
#: itself when some are left. So a million jobs lie in Redis without a million messages beside them.
MAX_BELLS = 256
#: A command not taken by then is dropped: the coordinator plans anew from what it sees.
COMMAND_EXPIRES_S = 10


def make_app(url: str, *, name: str, events: bool = False) -> Celery:
    """The Celery app of one process. Values are explained in docs/architecture.md, "Celery's settings".

    Args:
        url: Broker of the fleet.
        name: Shown by Redis' CLIENT LIST.
        events: Send task events; Flower needs them, they cost about a third of the no-op rate.
    """
    app = Celery("packtrain", broker=url.partition("?")[0], set_as_current=False)
    if tls := tls_options(url):  # kombu alone would not look at the certificate, and Flower looks here only
        app.conf.broker_use_ssl = tls
    app.conf.update(
        broker_transport="packtrain.broker.lasting_transport:LastingTransport",
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=True,
        task_acks_on_failure_or_timeout=True,  # a doorbell is never poison
        worker_prefetch_multiplier=1,  # exactly one bell per slot: none is hoarded
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_create_missing_queues=True,
        task_default_queue="packtrain.default",
        task_publish_retry_policy={"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 1},
        worker_enable_prefetch_count_reduction=False,  # or slots stay empty for seconds after a reconnect
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the threads pool cannot
        worker_disable_rate_limits=True,
        worker_hijack_root_logger=False,
        worker_send_task_events=events,
        task_send_sent_event=events,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        broker_transport_options={
            "visibility_timeout": 3600,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            # Without these a half-open link blocks the consumer loop for ever.
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "client_name": name,
            "priority_steps": [0],  # one list per queue: order is in the ready set
        },
    )
    return app


class Doorbell:
    """Rings for models and sends commands to nodes. Thread-safe (kombu's producer pool)."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def ring(self, route: Route, count: int = 1) -> None:
        """Say `count` times that a job waits on `route`. When the broker is away that is only a warning, see above."""
        try:
            with self._app.producer_or_acquire() as producer:
                for _ in range(count):
                    self._send(RING, {"model": route}, keys.model_queue(route), producer=producer)
        except OperationalError as error:
            logger.warning(
                "Could not ring for %s (%s); the coordinator will", route, error, extra={"event": "bell.failed"}
            )

    def command(self, node: NodeId, command: NodeCommand) -> None:
        """Send a command to a node's agent.

        Raises:
            kombu.exceptions.OperationalError: The broker is away; the next tick sends it again.
        """
        payload = {"command": command.model_dump(mode="json")}
        self._send(NODE_COMMAND, payload, keys.node_queue(node), expires=COMMAND_EXPIRES_S)

    def pull(self, node: NodeId, request: PullRequest) -> None:
        """Ask a node's agent to pull a model file.

        Raises:
            kombu.exceptions.OperationalError: The broker is away.
        """
        # Agents of the version before refuse fields that they do not know.
        payload = {"request": request.model_dump(mode="json", exclude_defaults=True)}
        self._send(NODE_PULL, payload, keys.node_queue(node), expires=COMMAND_EXPIRES_S)

    def echo(self, node: NodeId, number: int) -> None:
        """Send an agent's message to itself. When the broker is away it is only not sent."""
        try:
            self._send(ECHO, {"number": number}, keys.node_queue(node), expires=COMMAND_EXPIRES_S)
        except OperationalError as error:
            logger.debug("Could not send an echo: %s", error, extra={"event": "echo.failed"})

    def close(self) -> None:
        """Free the connections."""
        self._app.close()

    def _send(self, task: str, kwargs: dict[str, Any], queue: str, **options: Any) -> None:
        self._app.send_task(task, kwargs=kwargs, queue=queue, ignore_result=True, **options)
