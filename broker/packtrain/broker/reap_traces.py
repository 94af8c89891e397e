"""Traces of jobs that were taken from instances, or ended by their deadline: nobody else is there to tell them."""

from __future__ import annotations

import logging
from functools import partial

from redis import Redis
from redis.exceptions import RedisError

from packtrain.broker.ids import InstanceId, JobId
from packtrain.broker.job_spans import of_reaped
from packtrain.broker.jobs import Reaped
from packtrain.broker.outcome import Cause
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.states import JobState
from packtrain.broker.trace_context import trace_of
from packtrain.broker.tracing import Tracing

logger = logging.getLogger(__name__)


def jobs_with_traces(redis: Redis, tracing: Tracing | None) -> RedisJobs:
    """The job store of who reaps."""
    return _TracedJobs(redis, tracing) if tracing else RedisJobs(redis)


class _TracedJobs(RedisJobs):
    def __init__(self, redis: Redis, tracing: Tracing) -> None:
        super().__init__(redis)
        self._tracing = tracing

    def reap(self, instance: InstanceId | None = None, cause: Cause | None = None) -> list[Reaped]:
        reaped = super().reap(instance, cause)
        try:
            self._tell([each.job_id for each in reaped])
        except RedisError as error:  # the jobs are reaped: they must be rung for
            logger.warning("Spans are lost: %s", error, extra={"event": "tracing.failed"})
        return reaped

    def _tell(self, job_ids: list[JobId]) -> None:
        if not job_ids:
            return
        seconds, micros = self._redis.time()
        now_ms = seconds * 1000 + micros // 1000
        for job_id, status in self.statuses(job_ids).items():
            if status and status.state is not JobState.RUNNING:  # else another instance has claimed it already
                self._tracing.send(trace_of(job_id, status.traceparent), partial(of_reaped, status, now_ms))
