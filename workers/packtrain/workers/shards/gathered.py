"""A head of this node: its shards, wherever they are, and the ways to them.

Before its process begins, all shards must wait for it, and a tunnel lead to each; llama.cpp ends the process where one
does not answer. Making the tunnels takes a second, so a thread does it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.errors import PacktrainError
from packtrain.broker.ids import InstanceId
from packtrain.broker.orders import NodeCommand
from packtrain.broker.settings import split_address
from packtrain.workers.shards.membership import WAIT, Fate, fate_of_head
from packtrain.workers.shards.split import HOST, ShardPlace, Split
from packtrain.workers.tunnel.certificate import Identity
from packtrain.workers.tunnel.messages import TunnelConfig
from packtrain.workers.tunnel.process import TunnelProcess

logger = logging.getLogger(__name__)


class GatheredHead:
    """One head, from its order until its process is gone. Belongs to the agent's loop.

    Args:
        beat: Of it, until its process begins.
        command: Its order.
        identity: Of this node.
        since: When it came, monotonic seconds.
    """

    def __init__(self, beat: InstanceBeat, command: NodeCommand, identity: Identity, *, since: float) -> None:
        self.beat = beat.model_copy(update={"group": command.instance, "layers": command.layers})
        self.command = command
        #: Whether its process was asked for.
        self.has_begun = False
        self._since = since
        self._identity = identity
        self._lock = threading.Lock()  # guards what follows
        self._ways: dict[str, TunnelProcess] = {}  # by node
        self._failure = ""
        self._is_closed = False
        self._maker: threading.Thread | None = None

    def look(
        self, shards: Mapping[InstanceId, InstanceBeat], missing_s: Mapping[InstanceId, float], now: float
    ) -> Fate | Split:
        """What it shall do; the split that it can begin with, once.

        Args:
            shards: What is known of its shards.
            missing_s: For how long nothing has been known of the others.
        """
        with self._lock:
            ways, failure = dict(self._ways), self._failure
        orders = self.command.shards
        waited_s = 0.0 if self.has_begun else now - self._since
        fate = fate_of_head(orders, shards, missing_s=missing_s, waited_s=waited_s)
        if fate.shall in ("drain", "end"):
            return fate
        if failure:
            return Fate("end", failure)
        for node, way in ways.items():
            if (code := way.exit_code()) is not None:
                return Fate("end", f"the tunnel to {node} ended with code {code}: {way.last_words()}")
        if self.has_begun or fate.shall == "wait":
            return fate
        if self._maker is None:
            self._maker = threading.Thread(
                target=self._lead, args=(dict(shards),), name=f"ways of {self.beat.instance}", daemon=True
            )
            self._maker.start()
        if self._maker.is_alive() or len(ways) < len(orders):
            return WAIT
        self.has_begun = True
        return Split(
            shards=tuple(ShardPlace(port=ways[each.node].port, layers=each.layers, name=each.node) for each in orders)
        )

    def close(self) -> None:
        """End the ways. One that is only beginning ends as soon as it has begun."""
        with self._lock:
            self._is_closed = True
            ways = list(self._ways.values())
        for way in ways:
            way.close()

    def _lead(self, shards: Mapping[InstanceId, InstanceBeat]) -> None:
        for order in self.command.shards:
            host, port = split_address(shards[InstanceId(order.instance)].address)
            config = TunnelConfig(
                role="entry", host=HOST, target_host=host, target_port=port, peer=order.certificate,
                certificate_file=str(self._identity.certificate_file), key_file=str(self._identity.key_file),
            )  # fmt: skip
            try:
                way = TunnelProcess(config)
            except (PacktrainError, OSError) as error:
                with self._lock:
                    self._failure = f"no tunnel to {order.node}: {error}"
                return
            with self._lock:
                if not self._is_closed:
                    self._ways[order.node] = way
                    continue
            way.close()
            return
