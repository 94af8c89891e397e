"""The way to the fleet by Redis, for programs inside it that hold the broker's password."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from packtrain.broker import hops, keys, trace_context
from packtrain.broker.adapters import check_adapters
from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.blobs import RedisBlobs
from packtrain.broker.celery_app import MAX_BELLS, Doorbell, make_app
from packtrain.broker.chunks import Event
from packtrain.broker.connection import BLOCK_MS, connect, connect_async, masked, unavailable
from packtrain.broker.errors import (
    AdapterUnavailable,
    BrokerUnavailable,
    InvalidRequest,
    UnknownModel,
    UnknownNode,
)
from packtrain.broker.explain import Explanation, look
from packtrain.broker.ids import JobId, ModelId, NodeId, Route
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import Submitted
from packtrain.broker.model_info import ModelInfo, model_named
from packtrain.broker.node_wishes import NodeChange, NodeWish
from packtrain.broker.orders import Desired
from packtrain.broker.outcome import JobStatus
from packtrain.broker.pulls import PullRequest, PullStatus
from packtrain.broker.redis_jobs import EVENTS_BATCH, RedisJobs, parse_streams
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.senses import check_senses, may_move
from packtrain.broker.server import refuse_schema
from packtrain.broker.states import JobState
from packtrain.client.shared_reads import SharedReads


class RedisTransport:
    """A `Transport` on the broker itself. Safe to share between threads.

    Args:
        url: With its password.
        max_waiting: Jobs that may wait for one model before `QueueFull`.
        max_waiting_user: Those of one user; None: any number.
        keep_ms: How long the records of its jobs are kept after their end.
    """

    def __init__(self, url: str, *, max_waiting: int, max_waiting_user: int | None = None, keep_ms: int) -> None:
        self.url = masked(url)
        self.raw_url = url  # with its password
        self._max_waiting = max_waiting
        self._max_waiting_user = max_waiting_user
        self._keep_ms = keep_ms
        self._redis = connect(url, name="client")
        self._jobs = RedisJobs(self._redis)
        self._blobs = RedisBlobs(self._redis)
        self._registry = RedisRegistry(self._redis)
        self._bell = Doorbell(make_app(url, name="client"))
        self._is_of_our_schema = False  # once seen, for the data of a broker that runs

    def submit(self, job_id: JobId, spec: JobSpec) -> Submitted:
        if spec.adapters:  # the only jobs that pay for a look at the models
            try:
                check_adapters(spec, self.models())
            except AdapterUnavailable:
                if self.status(job_id) is None:  # else the same request again, from when the adapter was there
                    raise
        can_move = not spec.media or self._keep_media(job_id, spec)
        with self._reachable():
            submitted = self._jobs.submit(
                job_id, spec, max_waiting=self._max_waiting, max_waiting_user=self._max_waiting_user,
                keep_ms=self._keep_ms, may_move=can_move and not (spec.via and self._is_back(spec)),
                traceparent=trace_context.current(),
            )  # fmt: skip
        if submitted.is_new and submitted.ready <= MAX_BELLS:
            self._bell.ring(submitted.route)
        return submitted

    def _keep_media(self, job_id: JobId, spec: JobSpec) -> bool:
        """See that the model takes its media, and that they are in the broker before the job is.

        Returns:
            Whether all models that the job could be moved to take them, too.

        Raises:
            MediaUnsupported, MediaGone, BlobsFull
        """
        try:
            models = self.models()
            check_senses(spec, models)
            with self._reachable():
                self._blobs.keep(spec.media)
            return may_move(spec, models)
        except InvalidRequest:
            if self.status(job_id) is None:  # else the same request again, and the job has had its media
                raise
            return False

    def _is_back(self, spec: JobSpec) -> bool:
        """Whether this fleet has sent the job out before; then no other server may answer here.

        Raises:
            FleetLoop: Its model is one that another server answers for.
        """
        fleet = hops.fleet_id(self._registry.secret())
        if fleet not in spec.via:
            return False
        real = model_named(spec.model, self._registry.models())
        if real and real.remote:
            hops.trail_from(fleet, spec.via, model=spec.model)
        return True

    def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        with self._reachable():
            return self._jobs.events(after, block_ms=_block_ms(block_s))

    def status(self, job_id: JobId) -> JobStatus | None:
        with self._reachable():
            return self._jobs.status(job_id)

    def statuses(self, job_ids: Collection[JobId]) -> dict[JobId, JobStatus | None]:
        with self._reachable():
            return self._jobs.statuses(job_ids)

    def spec(self, job_id: JobId) -> JobSpec | None:
        with self._reachable():
            return self._jobs.spec(job_id)

    def explain(self, job_id: JobId) -> Explanation | None:
        with self._reachable():
            return look(self._jobs, self._registry, job_id)

    def cancel(self, job_id: JobId, *, forget: bool = False) -> JobState | None:
        with self._reachable():
            return self._jobs.cancel(job_id, forget=forget)

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

    def waits(self) -> dict[Route, str]:
        with self._reachable():
            return self._registry.waits() or {}

    def set_desired(self, model: ModelId, *, replicas: int, unload: bool) -> Desired:
        with self._reachable():
            known = {info.id: info for info in self._registry.models()}
            if model not in known:
                raise UnknownModel(model=model, known=list(known))
            real = ModelId(known[model].alias_of or model)
            before = self._registry.desired().get(real, Desired())
            now_ms = self._registry.now_ms()
            unload_before, asked = (now_ms, before.asked_ms) if unload else (before.unload_before_ms, now_ms)
            desired = Desired(replicas=replicas, unload_before_ms=unload_before, asked_ms=asked)
            self._registry.set_desired(real, desired)
            return desired

    def pull(self, node: NodeId, request: PullRequest) -> None:
        with self._reachable():
            known = [beat.node for beat in self._registry.nodes()]
        if node not in known:
            raise UnknownNode(node=node, known=known)
        try:
            self._bell.pull(node, request)
        except OperationalError as error:
            raise BrokerUnavailable(url=self.url, reason=str(error)) from error

    def pull_status(self, pull_id: str) -> PullStatus | None:
        with self._reachable():
            return self._registry.pull(pull_id)

    def change_node(self, node: NodeId, change: NodeChange) -> NodeWish:
        with self._reachable():
            up = [beat.node for beat in self._registry.nodes()]
            # One that is away may be changed, too, once something was wanted of it: a laptop that sleeps.
            if node not in up and self._registry.node_wish(node) == NodeWish():
                raise UnknownNode(node=node, known=up)
            return self._registry.change_node(node, change)

    def close(self) -> None:
        self._bell.close()
        self._redis.close()

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        with reachable(self.raw_url):
            if not self._is_of_our_schema:
                refuse_schema(self.raw_url, self._redis.get(keys.SCHEMA))
                self._is_of_our_schema = True
            yield


class AsyncRedisTransport:
    """An `AsyncTransport` beside this transport."""

    def __init__(self, blocking: RedisTransport) -> None:
        self.blocking = blocking
        self._redis = connect_async(blocking.raw_url, name="client")
        self._reads = SharedReads(self._read)

    async def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        return await self._reads.events(after, block_s=block_s) if after else []

    async def _read(self, after: Mapping[JobId, str], block_s: float) -> list[Event]:
        cursors: Any = {keys.out(job_id): last for job_id, last in after.items()}
        with reachable(self.blocking.raw_url):
            return parse_streams(await self._redis.xread(cursors, count=EVENTS_BATCH, block=_block_ms(block_s)))

    async def close(self) -> None:
        await self._reads.close()
        await self._redis.aclose()
        self.blocking.close()


@contextmanager
def reachable(url: str) -> Iterator[None]:
    """Turn the client library's errors into ours."""
    try:
        yield
    except RedisError as error:
        raise unavailable(url, error) from error


def _block_ms(block_s: float) -> int:
    return max(1, min(BLOCK_MS, int(block_s * 1000)))
