"""kombu's Redis transport, with a channel that outlives its connection without harm.

When a connection is lost, kombu first makes it forget its parameters; then messages that were not acknowledged are put
back by its channel, and workers acknowledge by it what they still finish. While the broker is down both need a new
connection, look for the parameters, and find None: an AttributeError, which Celery 5.7 takes for fatal. So a crash of
the broker would end the consumer of every busy instance, and cost it its loaded model. Said as what it is, a lost
connection, Celery logs it and goes on: the message comes again, a spare bell.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError

from packtrain.broker.pinning import PinnedConnection


class LastingChannel(kombu_redis.Channel):
    """A channel whose connection may be gone for good."""

    connection_class_ssl = PinnedConnection

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        if self.connection.client is None:
            raise ConnectionError("this channel's connection was lost")
        params: dict[str, Any] = super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call]
        return params


class LastingTransport(kombu_redis.Transport):
    """For `broker_transport`."""

    Channel = LastingChannel
