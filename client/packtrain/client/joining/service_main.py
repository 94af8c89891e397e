"""Composition root of the pairing service: a process beside the broker, run by `packtrain up --listen`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial

from redis import Redis
from redis.exceptions import RedisError

from packtrain.broker import keys, lifeline, logs
from packtrain.broker.access import user_of
from packtrain.broker.connection import connect
from packtrain.broker.errors import PacktrainError, SetupError
from packtrain.broker.ids import NodeId, default_node_id
from packtrain.broker.invites import Invites, PairingPlace
from packtrain.broker.settings import load_settings, split_address
from packtrain.broker.users import admit
from packtrain.client.joining.discovery import announced, own_addresses
from packtrain.client.joining.http_server import PairingServer
from packtrain.client.joining.messages import BrokerPlace, place_of
from packtrain.client.joining.service import Pairing

logger = logging.getLogger(
    "packtrain.client.joining.service_main"
)  # __name__ is __main__, of which only warnings are logged

#: A label of DNS has 63 bytes, and another fleet of this name may take a few.
MAX_NAME = 50
#: Three signs may be lost before others think that it is gone.
SIGN_S = keys.PAIRING_TTL_MS / 1000 / 4


def run(listen: str, port: int, name: str, url: str, reached_at: str = "") -> None:
    """Serve until SIGTERM, or the end of who started it.

    Args:
        reached_at: `address:port` by which other machines reach the broker, and the address by which they reach this
            service, on its own port: of the host that a container runs on. They cannot find it by mDNS, then. Empty:
            our own address, and the broker as its URL says.

    Raises:
        SetupError: The port is taken.
    """
    redis = connect(url, name="pairing", retries=1)
    invites = Invites(redis)
    pairing = Pairing(invites, partial(_admitted, redis, place_of(url, name, reached_at)), time.monotonic)
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    lifeline.watch(ending.set)
    try:
        server = PairingServer(listen, port, pairing)
    except OSError as error:
        raise SetupError(
            f"cannot listen for joining machines on {listen} port {port} ({error.strerror}); choose another with "
            "`--join-port` (0 takes a free one)"
        ) from error
    threading.Thread(target=server.serve_forever, name="pairing", daemon=True).start()
    port = server.server_address[1]
    told: tuple[str, ...] | None = None
    with ExitStack() as stack:
        while True:
            # A head may get another address while it runs, or its first one long after its start.
            addresses = (split_address(reached_at)[0],) if reached_at else own_addresses(listen)
            if addresses != told:
                told = addresses
                stack.close()
                _be_found(stack, name, addresses, port, by_mdns=not reached_at)
            try:
                invites.announce(PairingPlace(name=name, addresses=addresses, port=port, pid=os.getpid()))
            except RedisError as error:
                logger.warning("Broker is away: %s", error, extra={"event": "broker.away"})
            if ending.wait(SIGN_S):
                return


def _admitted(redis: Redis, place: BrokerPlace, node: NodeId) -> BrokerPlace:
    """What a node is told: a user of its own where the server keeps users, else the one that we are."""
    password = admit(redis, node, db=int(place.db))
    if password is None:
        logger.warning(
            "This broker keeps no users for us (it has no `aclfile`): %s gets the password that we have, and "
            "cannot be revoked alone", node, extra={"event": "join.shared_password", "node": node},
        )  # fmt: skip
        return place
    return place.model_copy(update={"username": user_of(node), "password": password})


def _be_found(stack: ExitStack, name: str, addresses: tuple[str, ...], port: int, *, by_mdns: bool) -> None:
    where = ", ".join(addresses) or "no address yet"
    logger.info("Machines may join at %s, port %d", where, port, extra={"event": "join.ready"})
    if not addresses or not by_mdns:
        return
    try:
        stack.enter_context(announced(name, addresses, port))
    except OSError as error:
        logger.warning(
            "Cannot be found by mDNS (%s); machines join by `packtrain node --join TOKEN`", error,
            extra={"event": "join.unannounced"},
        )  # fmt: skip


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default=default_node_id()[:MAX_NAME])
    parser.add_argument("--reached-at", default="")
    asked = parser.parse_args()
    try:
        settings = load_settings()
        logs.configure(settings.log_level)
        run(asked.listen, asked.port, asked.name, settings.broker_url(), asked.reached_at)
    except PacktrainError as error:
        sys.stderr.write(f"packtrain pairing: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
