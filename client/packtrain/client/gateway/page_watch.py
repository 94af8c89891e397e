"""Looks at a whole fleet for its page: a few pipelines of reads, whatever the number of people who look."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from redis import Redis

from packtrain.broker import keys
from packtrain.broker.beats import InstanceBeat
from packtrain.broker.explain import explain
from packtrain.broker.history import Series, faults_of
from packtrain.broker.history_store import History
from packtrain.broker.ids import JobId, Route, model_of
from packtrain.broker.jobs import parse_status
from packtrain.broker.journal import RedisJournal
from packtrain.broker.outcome import JobStatus
from packtrain.broker.queues import Queue, look_at_queues
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.states import JobState
from packtrain.client.gateway.page_facts import (
    MAX_EVENTS,
    Facts,
    JobFacts,
    QueueFacts,
    events_of,
    in_order,
    instance_facts,
    model_facts,
    node_facts,
)

#: Jobs that are looked at: the newest, those that run, the next of all queues together.
NEWEST, RUNNING, NEXT = 100, 100, 80
#: Of these, how many of one queue.
NEXT_OF_ONE = 10
#: Waiting jobs that are told their place and reason; each takes a script call.
MAX_PLACES = 60
#: Spans of the curves, and what one point stands for, seconds.
SPANS = {15 * 60: 15, 3600: 30, 24 * 3600: 300}
#: Of a job's record. Not its spec, which holds the prompt, and of its outcome only what ended it.
_FIELDS = (
    "state", "model", "route", "user", "lane", "attempts", "epoch", "submitted_ms", "started_ms", "first_token_ms",
    "finished_ms", "instance", "node", "meant_for", "tokens", "cancel",
)  # fmt: skip


class Watch:
    """Looks by Redis. Safe to share between threads; every call blocks, and may raise `redis.RedisError`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._jobs = RedisJobs(redis)
        self._registry = RedisRegistry(redis)
        self._journal = RedisJournal(redis)
        self._history = History(redis)

    def look(self) -> Facts:
        """The fleet now, as an administrator sees it; without batches and links."""
        now_ms = self._registry.now_ms()
        nodes, models, instances = self._registry.nodes(), self._registry.models(), self._registry.instances()
        by_id = {info.id: info for info in models}
        waits = self._registry.waits()
        queues = look_at_queues(self._redis, self._jobs.waiting(), now_ms)
        nexts = [queue.head[n] for n in range(NEXT_OF_ONE) for queue in queues if n < len(queue.head)]
        return Facts(
            at_ms=now_ms,
            is_led=waits is not None,
            tokens_per_s=sum(each.tokens_per_s for each in instances if not each.state.is_terminal),
            nodes=tuple(node_facts(node, instances, by_id) for node in nodes),
            instances=tuple(instance_facts(each) for each in instances if not each.state.is_terminal),
            queues=tuple(_queue_facts(queue, waits or {}) for queue in queues),
            jobs=in_order(self._look_at_jobs(now_ms, nexts[:NEXT], instances, waits)),
            models=model_facts(models, instances, {str(k): v for k, v in self._registry.desired().items()}),
            events=events_of(
                self._journal.read(MAX_EVENTS),
                {*self._history.faults(MAX_EVENTS), *faults_of(instances, now_ms)},
            ),
        )

    def history(self, span_s: int) -> Series:
        """Curves over one of `SPANS`."""
        return self._history.series(now_ms=self._registry.now_ms(), span_ms=span_s * 1000, step_ms=SPANS[span_s] * 1000)

    def _look_at_jobs(
        self,
        now_ms: int,
        heads: Sequence[JobId],
        instances: Sequence[InstanceBeat],
        waits: dict[Route, str] | None,
    ) -> list[JobFacts]:
        pipe = self._redis.pipeline(transaction=False)
        pipe.zrange(keys.LEASES, 0, RUNNING - 1)
        pipe.zrevrange(keys.RECENT, 0, NEWEST - 1)
        running, newest = pipe.execute()
        statuses = self._statuses(list(dict.fromkeys([*running, *heads, *newest])))
        codes = self._codes([each for each in statuses if each.state.is_terminal])
        rates = {
            route: self._jobs.rate(route)
            for route in {Route(each.route or each.model) for each in statuses if each.state is JobState.QUEUED}
        }
        asked = [JobId(each.id) for each in statuses if each.state is JobState.QUEUED][:MAX_PLACES]
        places = {job_id: self._jobs.place(job_id) for job_id in asked}

        def facts(status: JobStatus) -> JobFacts:
            found = JobFacts(
                **status.model_dump(
                    include={"id", "state", "model", "user", "lane", "submitted_ms", "started_ms", "first_token_ms",
                             "finished_ms", "attempts", "tokens", "cancel_requested"}
                ),
                node=status.node or "", instance=status.instance or "", reason=codes.get(status.id, ""),
            )  # fmt: skip
            place = places.get(JobId(status.id))
            if place is None:
                return found
            told = explain(status, place, rates[Route(status.route or status.model)], instances, waits, now_ms)
            return found.model_copy(update={"position": told.position, "eta_s": told.eta_s, "reason": told.reason})

        return [facts(status) for status in statuses]

    def _statuses(self, ids: Sequence[JobId]) -> list[JobStatus]:
        pipe = self._redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hmget(keys.job(job_id), _FIELDS)
        found = []
        for job_id, values in zip(ids, pipe.execute(), strict=True):
            fields = {name: value for name, value in zip(_FIELDS, values, strict=True) if value is not None}
            if "state" in fields and "model" in fields:
                status = parse_status(job_id, fields)
                assert status, "it has fields"
                found.append(status)
        return found

    def _codes(self, ended: Collection[JobStatus]) -> dict[str, str]:
        """What jobs ended by. Only the code: the words of an error may quote what somebody asked."""
        failed = [each.id for each in ended if each.state in (JobState.FAILED, JobState.DEAD, JobState.EXPIRED)]
        pipe = self._redis.pipeline(transaction=False)
        for job_id in failed:
            pipe.hget(keys.job(JobId(job_id)), "outcome")
        return {job_id: _code(cast("str | None", text)) for job_id, text in zip(failed, pipe.execute(), strict=True)}


def _queue_facts(queue: Queue, waits: Mapping[Route, str]) -> QueueFacts:
    return QueueFacts(
        route=queue.route, model=model_of(queue.route), lane=queue.lane, waiting=queue.waiting,
        oldest_ms=queue.oldest_ms, reason=waits.get(queue.route, ""),
    )  # fmt: skip


def _code(outcome: str | None) -> str:
    said: Any = json.loads(outcome or "{}").get("error") or {}
    return str(said.get("code", ""))
