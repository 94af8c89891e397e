"""`RedisJobs`: the real job store. Each method is one script call, or one read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

from redis import Redis

from packtrain.broker import errors, jobs, keys
from packtrain.broker.chunks import Chunk, Event, parse_event
from packtrain.broker.ids import InstanceId, JobId, NodeId, Route
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.outcome import Cause, JobStatus, Outcome
from packtrain.broker.rates import Rate
from packtrain.broker.scripts import Scripts
from packtrain.broker.states import JobState
from packtrain.broker.tally import NO_PACE, Pace

#: Entries that one read takes from one stream.
EVENTS_BATCH = 1000


class RedisJobs:
    """A `jobs.JobStore` on Redis or Valkey. Safe to share between threads; every call may raise `redis.RedisError`.

    Args:
        redis: A client made by `connection.connect`; its socket timeout bounds every call but `events`.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)

    def submit(
        self,
        job_id: JobId,
        spec: JobSpec,
        *,
        max_waiting: int,
        max_waiting_user: int | None = None,
        keep_ms: int = keys.ENDED_TTL_MS,
        may_move: bool = True,
        traceparent: str = "",
    ) -> jobs.Submitted:
        call = jobs.submit(
            job_id,
            spec,
            max_waiting=max_waiting,
            max_waiting_user=max_waiting_user,
            keep_ms=keep_ms,
            may_move=may_move,
            traceparent=traceparent,
        )
        try:
            return self._scripts.run(call)
        except errors.UnknownModel:
            known = cast(list[str], self._redis.zrange(keys.MODELS, 0, -1))
            raise errors.UnknownModel(model=spec.model, known=known) from None

    def claim(
        self,
        routes: Sequence[Route],
        instance: InstanceId,
        node: NodeId,
        *,
        lease_ms: int,
        numerics_class: str = "",
        prefixes: Iterable[str] = (),
        bulk: bool = True,
    ) -> jobs.Claim | None:
        call = jobs.claim(
            routes, instance, node, lease_ms=lease_ms, numerics_class=numerics_class, prefixes=prefixes, bulk=bulk
        )
        return self._scripts.run(call)

    def unring(self, route: Route) -> bool:
        return self._scripts.run(jobs.unring(route))

    def emit(self, chunks: Sequence[tuple[JobId, int, Chunk]]) -> list[jobs.EmitReply]:
        return self._scripts.run_many([jobs.emit(job_id, epoch, chunk) for job_id, epoch, chunk in chunks])

    def renew(self, held: Iterable[tuple[JobId, int]], *, lease_ms: int) -> dict[JobId, jobs.RenewVerdict]:
        return self._scripts.run(jobs.renew(held, lease_ms=lease_ms))

    def finish(
        self, job_id: JobId, epoch: int, outcome: Outcome, last: Chunk | None = None, *, pace: Pace = NO_PACE
    ) -> bool:
        return self._scripts.run(jobs.finish(job_id, epoch, outcome, last, pace=pace))

    def release(self, job_id: JobId, epoch: int) -> bool:
        return self._scripts.run(jobs.release(job_id, epoch))

    def fall_back(self, job_id: JobId, epoch: int, cause: Cause) -> Route | None:
        return self._scripts.run(jobs.fall_back(job_id, epoch, cause))

    def movable(self, route: Route) -> list[jobs.Movable]:
        return self._scripts.run(jobs.movable(route))

    def move(self, moves: Sequence[jobs.Move]) -> list[bool]:
        return self._scripts.run_many([jobs.move(move) for move in moves])

    def cancel(self, job_id: JobId, *, forget: bool = False) -> JobState | None:
        return self._scripts.run(jobs.cancel(job_id, forget=forget))

    def reject(self, route: Route, error: errors.PacktrainError) -> int:
        return self._scripts.run(jobs.reject(route, error))

    def strand(self, serving: Mapping[Route, Collection[str]]) -> int:
        return self._scripts.run(jobs.strand(serving))

    def begin_anew(self, classes: Mapping[Route, Collection[tuple[str, str]]]) -> list[jobs.Reaped]:
        return self._scripts.run(jobs.begin_anew(classes))

    def reap(self, instance: InstanceId | None = None, cause: Cause | None = None) -> list[jobs.Reaped]:
        return self._scripts.run(jobs.reap(instance, cause))

    def status(self, job_id: JobId) -> JobStatus | None:
        return jobs.parse_status(job_id, cast(dict[str, str], self._redis.hgetall(keys.job(job_id))))

    def statuses(self, job_ids: Collection[JobId]) -> dict[JobId, JobStatus | None]:
        """The records of many, or None, in one round trip."""
        pipe = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipe.hgetall(keys.job(job_id))
        return {
            job_id: jobs.parse_status(job_id, fields) for job_id, fields in zip(job_ids, pipe.execute(), strict=True)
        }

    def spec(self, job_id: JobId) -> JobSpec | None:
        """What was asked for, or None."""
        found = cast(str | None, self._redis.hget(keys.job(job_id), "spec"))
        return None if found is None else JobSpec.model_validate_json(found)

    def events(self, after: Mapping[JobId, str], *, block_ms: int | None = None) -> list[Event]:
        if not after:
            return []
        cursors: Any = {keys.out(job_id): last for job_id, last in after.items()}
        return parse_streams(self._redis.xread(cursors, count=EVENTS_BATCH, block=block_ms))

    def place(self, job_id: JobId) -> jobs.Place | None:
        return self._scripts.run(jobs.place(job_id))

    def rate(self, route: Route) -> Rate | None:
        found = cast(dict[str, str], self._redis.hgetall(keys.rate(route)))
        return parse_rate(found) if found else None

    def waiting(self) -> dict[Route, int]:
        routes = [Route(route) for route in sorted(cast(set[str], self._redis.smembers(keys.WAITING)))]
        pipe = self._redis.pipeline(transaction=False)
        for route in routes:
            pipe.zcard(keys.ready(route, "interactive"))
            pipe.zcard(keys.ready(route, "bulk"))
        sizes = pipe.execute()
        return {route: a + b for route, a, b in zip(routes, sizes[::2], sizes[1::2], strict=True) if a + b}

    def ready(self, routes: Sequence[Route]) -> tuple[int, int]:
        pipe = self._redis.pipeline(transaction=False)
        for lane in ("interactive", "bulk"):
            for route in routes:
                pipe.zcard(keys.ready(route, lane))
        sizes = pipe.execute()
        return sum(sizes[: len(routes)]), sum(sizes[len(routes) :])

    def recent(self, limit: int) -> list[JobStatus]:
        """The newest jobs first, at most `limit`."""
        ids = cast(list[str], self._redis.zrevrange(keys.RECENT, 0, limit - 1))
        return [status for status in self.statuses([JobId(job_id) for job_id in ids]).values() if status]


def parse_rate(fields: Mapping[str, str]) -> Rate:
    """What `finish.lua` has measured."""
    return Rate(int(fields["jobs"]), float(fields["gap_ms"]), float(fields["run_ms"]), int(fields["last_ms"]))


def parse_streams(reply: Any) -> list[Event]:
    """What XREAD returned (a list or, under RESP3, a mapping), as events in the order of each stream."""
    rows = reply.items() if isinstance(reply, Mapping) else reply or ()
    events = []
    for key, entries in rows:
        job_id = JobId(key.removeprefix(keys.OUT_PREFIX))
        # RESP3 wraps the entries of one stream in one more list.
        flat = entries[0] if isinstance(reply, Mapping) else entries
        events += [parse_event(job_id, entry_id, fields) for entry_id, fields in flat]
    return events
