"""Links: how wide and how long the way to other nodes is, measured through their file servers.

Only between nodes that may hold a model together (PACKTRAIN_SPLIT): each measures all others every few minutes, one
after another. The round trip is that of the handshake of TCP, which kernels answer, so no program's pace is in it. The
bandwidth is that of a few megabytes without their first quarter, in which TCP still feels its way.
"""

from __future__ import annotations

import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from redis.exceptions import RedisError

from packtrain.broker.beats import NodeBeat, NodeLink
from packtrain.workers.files.secret import FleetSecret
from packtrain.workers.files.server import LINK_BYTES
from packtrain.workers.files.tokens import sign

logger = logging.getLogger(__name__)

#: Looks for nodes that came, and measures a link again, this often, seconds.
LOOK_S, AGAIN_S = 5.0, 240.0
#: The nodes with the first names only: each costs its share of everybody's network.
MAX_LINKS = 16
NUM_HANDSHAKES = 5
TIMEOUT_S = 10.0
#: A slow link is read no longer than this, seconds.
READ_S = 2.0
_PIECE_BYTES = 64 * 1024


class Unmeasured(Exception):
    """A link cannot be measured now."""


class LinkMeter:
    """A thread that measures, from `start` to `close`.

    Args:
        node: This one.
        nodes: The fleet's; may raise `RedisError`.
        secret: What tokens are signed with.
        loopback: Of this node, as in its beats.
        clock_ms: The broker's.
    """

    def __init__(
        self,
        node: str,
        nodes: Callable[[], Sequence[NodeBeat]],
        *,
        secret: FleetSecret,
        loopback: str,
        clock_ms: Callable[[], int],
    ) -> None:
        self._node = node
        self._nodes = nodes
        self._secret = secret
        self._loopback = loopback
        self._clock_ms = clock_ms
        #: By node; a new dictionary at each change, so that it can be read from any thread.
        self.links: dict[str, NodeLink] = {}
        self._due: dict[str, float] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="links", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End soon; what is being measured is not waited for."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            with suppress(RedisError):  # what was measured stands
                self._look()
            self._closing.wait(LOOK_S)

    def _look(self) -> None:
        others = [n for n in self._nodes() if n.node != self._node and n.split and n.serves_files_to(self._loopback)]
        others = sorted(others, key=lambda n: n.node)[:MAX_LINKS]
        known = {n.node for n in others}
        self.links = {node: link for node, link in self.links.items() if node in known}
        self._due = {node: at for node, at in self._due.items() if node in known}
        for other in others:
            if self._closing.is_set() or time.monotonic() < self._due.get(other.node, 0.0):
                continue
            self._due[other.node] = time.monotonic() + AGAIN_S
            try:
                link = measure(other, self._secret, self._clock_ms)
            except Unmeasured as reason:
                logger.warning("Link to %s: %s", other.node, reason, extra={"event": "link.unmeasured"})
                self.links = {node: link for node, link in self.links.items() if node != other.node}
                continue
            logger.info(
                "Link to %s: %.1f MB/s, round trip %.2f ms", other.node, link.bytes_per_s / 1e6,
                link.round_trip_s * 1000, extra={"event": "link.measured"},
            )  # fmt: skip
            self.links = {**self.links, other.node: link}


def measure(other: NodeBeat, secret: FleetSecret, clock_ms: Callable[[], int]) -> NodeLink:
    """The link to another node. Blocks for up to some seconds.

    Raises:
        Unmeasured: It does not answer, or not as it should.
        RedisError: The fleet's secret cannot be read.
    """
    where = urlsplit(other.files_url)
    address = (where.hostname or "", where.port or 80)
    path = f"/link/{LINK_BYTES}"
    token = sign(secret.known(), other.node, path, clock_ms() / 1000)
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    try:
        round_trip_s = min(_handshake_s(address) for _ in range(NUM_HANDSHAKES))
        connection.request("GET", path, headers={"Authorization": token})
        with connection.getresponse() as reply:
            if reply.status != http.HTTPStatus.OK:
                if reply.status == http.HTTPStatus.FORBIDDEN:
                    secret.read_again()
                raise Unmeasured(f"it answers {reply.status} {reply.reason}; see that both run the same version")
            bytes_per_s = _rate(reply)
    except (OSError, http.client.HTTPException) as error:
        raise Unmeasured(f"it does not answer ({error or type(error).__name__})") from error
    finally:
        connection.close()
    return NodeLink(bytes_per_s=bytes_per_s, round_trip_s=round_trip_s, at_ms=clock_ms())


def _handshake_s(address: tuple[str, int]) -> float:
    begin = time.perf_counter()
    with socket.create_connection(address, timeout=TIMEOUT_S):
        return time.perf_counter() - begin


def _rate(reply: http.client.HTTPResponse) -> float:
    count, counted_from, begin, first = 0, LINK_BYTES // 4, time.perf_counter(), 0.0
    start = 0
    while piece := reply.read1(_PIECE_BYTES):
        now = time.perf_counter()
        count += len(piece)
        if not first and (count >= counted_from or now - begin > READ_S / 2):
            first, start = now, count
        if now - begin > READ_S:
            break
    took = time.perf_counter() - first
    if not first or count <= start or took <= 0:
        raise Unmeasured(f"it sent {count} bytes, too few to tell")
    return (count - start) / took
