"""The Celery app that Flower looks through (`celery -A packtrain.broker.flower_app:app flower`); what we mend in it.

Flower asks workers once, at its own start, which queues there are, but instances come and go: its page of queues would
lack most of them. So we tell it those of the moment.
"""

from __future__ import annotations

import logging

from flower.views import BaseHandler
from flower.views.monitor import Metrics
from redis.exceptions import RedisError
from tornado.web import authenticated

from packtrain.broker import keys
from packtrain.broker.celery_app import make_app
from packtrain.broker.connection import connect
from packtrain.broker.ids import ModelId, NodeId
from packtrain.broker.jobs import routes_of
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.settings import load_settings

logger = logging.getLogger(__name__)

_url = load_settings().broker_url()
app = make_app(_url, name="flower", events=True)
# It chooses its client by the URL's scheme, which a transport of our own replaces by its name.
app.conf.update(broker_transport=None)

_redis = connect(_url, name="flower.queues", retries=0)
_asks_flower_itself = BaseHandler.get_active_queue_names


def queue_names(handler: BaseHandler) -> list[str]:
    """Queues that somebody consumes or that jobs wait for, in order."""
    registry = RedisRegistry(_redis)
    try:
        nodes = [keys.node_queue(NodeId(beat.node)) for beat in registry.nodes()]
        loaded = [
            route
            for beat in registry.instances()
            if not (beat.state.is_terminal or beat.is_shard)
            for route in routes_of(ModelId(beat.model), beat.numerics)
        ]
        waiting = RedisJobs(_redis).waiting()
    except RedisError as error:  # away, or this user may not read our keys
        logger.warning("Cannot ask for queues: %s", error, extra={"event": "flower.queues"})
        return list(_asks_flower_itself(handler))
    return sorted({*nodes, *(keys.model_queue(route) for route in {*loaded, *waiting})})


BaseHandler.get_active_queue_names = queue_names
# Flower 2.2 asks nobody for a login there, and it names workers and tasks.
Metrics.get = authenticated(Metrics.get)
