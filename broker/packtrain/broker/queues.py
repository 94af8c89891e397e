"""How long the queues are, and how long the oldest job in each has waited."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from redis import Redis

from packtrain.broker import keys
from packtrain.broker.ids import JobId, Route
from packtrain.broker.job_spec import Lane

LANES: tuple[Lane, Lane] = ("interactive", "bulk")
#: Jobs at the head of a queue among which the oldest is looked for. A user's own stand in the order of their coming, so
#: the oldest of all is among the first of as many users.
OLDEST_OF = 32


@dataclass(frozen=True, slots=True)
class Queue:
    """Jobs that wait on one route in one lane."""

    route: Route
    lane: Lane
    waiting: int
    oldest_ms: int  # that the oldest of the next has waited
    head: tuple[JobId, ...]  # the next


def look_at_queues(redis: Redis, routes: Iterable[Route], now_ms: int) -> list[Queue]:
    """The queues of these routes that hold any job. Two round trips; may raise `redis.RedisError`.

    Args:
        now_ms: The broker's clock.
    """
    places = [(route, lane) for route in routes for lane in LANES]
    pipe = redis.pipeline(transaction=False)
    for route, lane in places:
        pipe.zcard(keys.ready(route, lane))
        pipe.zrange(keys.ready(route, lane), 0, OLDEST_OF - 1)
    replies = pipe.execute()
    found = [(*place, size, head) for place, size, head in zip(places, replies[::2], replies[1::2], strict=True)]
    ids = [job_id for *_, head in found for job_id in head]
    for job_id in ids:
        pipe.hget(keys.job(job_id), "submitted_ms")
    since = {job_id: int(at) for job_id, at in zip(ids, pipe.execute(), strict=True) if at}
    return [
        Queue(
            route, lane, size, now_ms - min((since[each] for each in head if each in since), default=now_ms),
            tuple(map(JobId, head)),
        )
        for route, lane, size, head in found
        if size
    ]  # fmt: skip
