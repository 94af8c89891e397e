"""The way to the fleet by Redis, for programs inside it that hold the broker's password."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from redis.exceptions import RedisError

from packtrain.broker import jobs, keys
from packtrain.broker.adapters import check_adapters
from packtrain.broker.celery_app import MAX_BELLS, Doorbell, make_app
from packtrain.broker.connection import BLOCK_MS, connect, connect_async, masked, unavailable
from packtrain.broker.errors import UnknownModel
from packtrain.broker.ids import JobId, ModelId, NodeId, Route
from packtrain.broker.jobs import Event, Submitted
from packtrain.broker.messages import Desired, InstanceBeat, JobSpec, JobStatus, ModelInfo, NodeBeat
from packtrain.broker.redis_jobs import EVENTS_BATCH, RedisJobs, parse_streams
from packtrain.broker.registry import RedisRegistry, load_fact
from packtrain.broker.scripts import AsyncScripts
from packtrain.broker.states import JobState


class RedisTransport:
    """A `Transport` on the broker itself. Safe to share between threads.

    Args:
        url: With its password.
        max_waiting: Jobs that may wait for one model before `QueueFull`.
        keep_ms: How long the records of its jobs are kept after their end.
    """

    def __init__(self, url: str, *, max_waiting: int, keep_ms: int) -> None:
        self.url = masked(url)
        self._raw_url = url
        self._max_waiting = max_waiting
        self._keep_ms = keep_ms
        self._redis = connect(url, name="client")
        self._jobs = RedisJobs(self._redis)
        self._registry = RedisRegistry(self._redis)
        self._bell = Doorbell(make_app(url, name="client"))

    def submit(self, job_id: JobId, spec: JobSpec) -> Submitted:
        if spec.adapters:  # the only jobs that pay for a look at the models
            check_adapters(spec, self.models())
        with self._reachable():
            submitted = self._jobs.submit(job_id, spec, max_waiting=self._max_waiting, keep_ms=self._keep_ms)
        if submitted.is_new and submitted.ready <= MAX_BELLS:
            self._bell.ring(submitted.route)
        return submitted

    def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        with self._reachable():
            return self._jobs.events(after, block_ms=_block_ms(block_s))

    def status(self, job_id: JobId) -> JobStatus | None:
        with self._reachable():
            return self._jobs.status(job_id)

    def spec(self, job_id: JobId) -> JobSpec | None:
        with self._reachable():
            return self._jobs.spec(job_id)

    def cancel(self, job_id: JobId) -> JobState | None:
        with self._reachable():
            return self._jobs.cancel(job_id)

    def recent(self, limit: int) -> list[JobStatus]:
        with self._reachable():
            return self._jobs.recent(limit)

    def waiting(self) -> dict[Route, int]:
        with self._reachable():
            return self._jobs.waiting()

    def models(self) -> list[ModelInfo]:
        with self._reachable():
            return self._registry.models()

    def nodes(self) -> list[NodeBeat]:
        with self._reachable():
            return self._registry.nodes()

    def instances(self) -> list[InstanceBeat]:
        with self._reachable():
            return self._registry.instances()

    def set_desired(self, model: ModelId, *, replicas: int, unload: bool) -> Desired:
        with self._reachable():
            known = {info.id: info for info in self._registry.models()}
            if model not in known:
                raise UnknownModel(model=model, known=list(known))
            real = ModelId(known[model].alias_of or model)
            before = self._registry.desired().get(real, Desired())
            unload_before = self._registry.now_ms() if unload else before.unload_before_ms
            desired = Desired(replicas=replicas, unload_before_ms=unload_before)
            self._registry.set_desired(real, desired)
            return desired

    def close(self) -> None:
        self._bell.close()
        self._redis.close()

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        with reachable(self._raw_url):
            yield


class AsyncRedisTransport:
    """An `AsyncTransport` on the broker itself, for one event loop."""

    def __init__(self, url: str, *, max_waiting: int, keep_ms: int) -> None:
        self.url = masked(url)
        self._raw_url = url
        self._max_waiting = max_waiting
        self._keep_ms = keep_ms
        self._redis = connect_async(url, name="client")
        self._scripts = AsyncScripts(self._redis)
        self._bell = Doorbell(make_app(url, name="client"))

    async def submit(self, job_id: JobId, spec: JobSpec) -> Submitted:
        if spec.adapters:
            check_adapters(spec, await self.models())
        with reachable(self._raw_url):
            try:
                submitted = await self._scripts.run(
                    jobs.submit(job_id, spec, max_waiting=self._max_waiting, keep_ms=self._keep_ms)
                )
            except UnknownModel:
                known = cast(list[str], await self._redis.zrange(keys.MODELS, 0, -1))
                raise UnknownModel(model=spec.model, known=known) from None
        if submitted.is_new and submitted.ready <= MAX_BELLS:
            # kombu has no asyncio side; a message takes about a millisecond.
            await asyncio.to_thread(self._bell.ring, submitted.route)
        return submitted

    async def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        if not after:
            return []
        cursors: Any = {keys.out(job_id): last for job_id, last in after.items()}
        with reachable(self._raw_url):
            return parse_streams(await self._redis.xread(cursors, count=EVENTS_BATCH, block=_block_ms(block_s)))

    async def status(self, job_id: JobId) -> JobStatus | None:
        with reachable(self._raw_url):
            return jobs.parse_status(job_id, cast(dict[str, str], await self._redis.hgetall(keys.job(job_id))))

    async def cancel(self, job_id: JobId) -> JobState | None:
        with reachable(self._raw_url):
            return await self._scripts.run(jobs.cancel(job_id))

    async def models(self) -> list[ModelInfo]:
        return await self._all(keys.MODELS, lambda member: keys.model(ModelId(member)), ModelInfo)

    async def nodes(self) -> list[NodeBeat]:
        return await self._all(keys.NODES, lambda member: keys.node(NodeId(member)), NodeBeat)

    async def close(self) -> None:
        self._bell.close()
        await self._redis.aclose()

    async def _all(self, index: str, key: Any, cls: Any) -> list[Any]:
        with reachable(self._raw_url):
            members = sorted(await self._redis.zrange(index, 0, -1))
            rows = [(str(member), await self._redis.hgetall(key(member))) for member in members]
        return [fact for member, row in rows if row and (fact := load_fact(cls, member, cast(dict[str, str], row)))]


@contextmanager
def reachable(url: str) -> Iterator[None]:
    """Turn the client library's errors into ours."""
    try:
        yield
    except RedisError as error:
        raise unavailable(url, error) from error


def _block_ms(block_s: float) -> int:
    return max(1, min(BLOCK_MS, int(block_s * 1000)))
