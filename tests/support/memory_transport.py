"""A fleet in memory for tests of the clients: the job store's twin, and instances that tests play by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.chunks import Chunk, Event
from packtrain.broker.explain import Explanation, look
from packtrain.broker.ids import JobId, ModelId, NodeId, Route
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import Submitted
from packtrain.broker.memory_jobs import MemoryJobs
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.node_wishes import NodeChange, NodeWish, changed
from packtrain.broker.orders import Desired
from packtrain.broker.outcome import JobStatus, Outcome, Usage
from packtrain.broker.pulls import PullRequest, PullStatus
from packtrain.broker.registry import MemoryRegistry
from packtrain.broker.states import JobState
from tests.support.factories import INSTANCE, MODEL, NODE, ROUTES


def _now_ms() -> int:
    return int(time.time() * 1000)


class MemoryTransport:
    """A `Transport` on `MemoryJobs`, which offers the model `tiny`."""

    url = "memory://"

    def __init__(self) -> None:
        self.store = MemoryJobs(_now_ms, {MODEL: MODEL})
        self.registry = MemoryRegistry(_now_ms)
        self.submitted: list[JobId] = []
        self.desired: dict[ModelId, Desired] = {}
        self.pulls: dict[str, PullStatus] = {}
        self.is_closed = False

    def submit(self, job_id: JobId, spec: JobSpec) -> Submitted:
        self.submitted.append(job_id)
        return self.store.submit(job_id, spec, max_waiting=10_000)

    def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        return self.store.events(after, block_ms=int(block_s * 1000))

    def status(self, job_id: JobId) -> JobStatus | None:
        return self.store.status(job_id)

    def statuses(self, job_ids: Collection[JobId]) -> dict[JobId, JobStatus | None]:
        return {job_id: self.store.status(job_id) for job_id in job_ids}

    def spec(self, job_id: JobId) -> JobSpec | None:
        return None

    def explain(self, job_id: JobId) -> Explanation | None:
        return look(self.store, self.registry, job_id)

    def cancel(self, job_id: JobId, *, forget: bool = False) -> JobState | None:
        return self.store.cancel(job_id, forget=forget)

    def recent(self, limit: int) -> list[JobStatus]:
        found = (self.store.status(job_id) for job_id in reversed(self.submitted[-limit:]))
        return [status for status in found if status]

    def waiting(self) -> dict[Route, int]:
        return self.store.waiting()

    def models(self) -> list[ModelInfo]:
        return [ModelInfo(id=MODEL)]

    def nodes(self) -> list[NodeBeat]:
        return [NodeBeat(node=NODE)]

    def instances(self) -> list[InstanceBeat]:
        return []

    def waits(self) -> dict[Route, str]:
        return self.registry.waits() or {}

    def set_desired(self, model: ModelId, *, replicas: int, unload: bool) -> Desired:
        self.desired[model] = Desired(replicas=replicas, unload_before_ms=int(unload))
        return self.desired[model]

    def pull(self, node: NodeId, request: PullRequest) -> None:
        self.pulls[request.id] = PullStatus(state="done", node=node, model=MODEL)

    def pull_status(self, pull_id: str) -> PullStatus | None:
        return self.pulls.get(pull_id)

    def change_node(self, node: NodeId, change: NodeChange) -> NodeWish:
        return changed(NodeWish(), change, now_ms=0)

    def close(self) -> None:
        self.is_closed = True

    def answer_all(self, text: str = "yes") -> int:
        """Play the instance: answer all jobs that wait; how many did."""
        count = 0
        while claim := self.store.claim(ROUTES, INSTANCE, NODE, lease_ms=60_000):
            outcome = Outcome(state=JobState.SUCCEEDED, text=text, usage=Usage(completion_tokens=1))
            self.store.finish(claim.job_id, claim.epoch, outcome, Chunk(0, text, (1,)))
            count += 1
        return count


class AsyncMemoryTransport:
    """The same for an event loop."""

    def __init__(self) -> None:
        self.blocking = MemoryTransport()

    async def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        deadline = time.monotonic() + block_s
        while not (found := self.blocking.store.events(after)) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return found

    async def close(self) -> None:
        self.blocking.close()
