"""Readiness: when may we say that the fleet is up? When its parts have said so in the broker, in this run.

The broker keeps its data between runs, so what it holds at our start may be the last breath of an earlier run: a node's
beat lives for 10 s, a leader's key for 5. So the probe remembers what was there first, and waits for something newer.
"""

from __future__ import annotations

from redis.exceptions import RedisError

from packtrain.broker import keys
from packtrain.broker.api_keys import ApiKeys
from packtrain.broker.connection import connect, unavailable
from packtrain.broker.ids import NodeId
from packtrain.broker.invites import Invites
from packtrain.broker.registry import RedisRegistry


class FleetProbe:
    """Looks into one broker for the signs of one fleet. Made before the fleet's processes start; close it.

    Args:
        url: Broker of the fleet, which answers.
        node: The node that is about to start.
        is_shared: The broker is not ours alone: a coordinator elsewhere that leads already is as good as our own.

    Raises:
        BrokerUnavailable: The broker does not answer.
    """

    def __init__(self, url: str, node: NodeId, *, is_shared: bool) -> None:
        self._redis = connect(url, name="packtrain-up", retries=0)
        self._node = node
        self._is_shared = is_shared
        try:
            self._old_term = self._redis.get(keys.TERM)
            self._old_beat = self._redis.zscore(keys.NODES, node)
        except RedisError as error:
            self._redis.close()
            raise unavailable(url, error) from error

    def coordinator_leads(self) -> bool:
        """True when a coordinator leads: one of this run, unless the broker is shared."""
        try:
            if not self._redis.exists(keys.LEADER):
                return False
            return self._is_shared or self._redis.get(keys.TERM) != self._old_term
        except RedisError:
            return False

    def agent_beats(self) -> bool:
        """True when the node's agent has reported in this run and is alive."""
        try:
            beat = self._redis.zscore(keys.NODES, self._node)
            return beat is not None and beat != self._old_beat and bool(self._redis.exists(keys.node(self._node)))
        except RedisError:
            return False

    def machines_may_join(self, pid: int | None) -> bool:
        """True when the pairing service says so that runs as this process."""
        try:
            place = Invites(self._redis).place()
        except RedisError:
            return False
        return place is not None and place.pid == pid

    def has_api_keys(self) -> bool:
        """True when somebody has made one."""
        try:
            return bool(ApiKeys(self._redis).all())
        except RedisError:
            return False

    def num_models(self) -> int:
        """Models that the node offers; 0 while it has not said."""
        try:
            beats = {beat.node: beat for beat in RedisRegistry(self._redis).nodes()}
        except RedisError:
            return 0
        return len(beats[self._node].models) if self._node in beats else 0

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()
