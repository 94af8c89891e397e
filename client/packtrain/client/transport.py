"""The seam between the client's interface and the way to the fleet: Redis for members of the fleet, HTTP for others.

A transport moves messages; it knows nothing of prompts, streams or waiting, which are the same over any of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.chunks import Event
from packtrain.broker.explain import Explanation
from packtrain.broker.ids import JobId, ModelId, NodeId, Route
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import Submitted
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.node_wishes import NodeChange, NodeWish
from packtrain.broker.orders import Desired
from packtrain.broker.outcome import JobStatus
from packtrain.broker.pulls import PullRequest, PullStatus
from packtrain.broker.states import JobState


class Transport(Protocol):
    """A way to a fleet, for threads. Every method may raise `BrokerUnavailable`."""

    url: str  # without its password

    def submit(self, job_id: JobId, spec: JobSpec) -> Submitted:
        """Hand in a job. The same id with the same spec again is the same job."""
        ...

    def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        """Events of these jobs after the given ids; waits up to `block_s` for the first."""
        ...

    def status(self, job_id: JobId) -> JobStatus | None:
        """A job's record, None: there is none."""
        ...

    def statuses(self, job_ids: Collection[JobId]) -> dict[JobId, JobStatus | None]:
        """The same of many at once."""
        ...

    def spec(self, job_id: JobId) -> JobSpec | None:
        """What a job asked for, None: there is no such job."""
        ...

    def explain(self, job_id: JobId) -> Explanation | None:
        """Why a job is where it is, None: there is no such job."""
        ...

    def cancel(self, job_id: JobId, *, forget: bool = False) -> JobState | None:
        """Cancel; the state afterwards, None: no such job. See `JobStore.cancel`."""
        ...

    def recent(self, limit: int) -> list[JobStatus]:
        """The newest jobs first."""
        ...

    def waiting(self) -> dict[Route, int]:
        """Jobs that wait, by model."""
        ...

    def models(self) -> list[ModelInfo]:
        """Models and aliases that the fleet offers."""
        ...

    def nodes(self) -> list[NodeBeat]:
        """Live nodes."""
        ...

    def instances(self) -> list[InstanceBeat]:
        """Instances that live or ended lately."""
        ...

    def waits(self) -> dict[Route, str]:
        """Why models have to wait for a place, by route; nothing where nobody plans, or the gateway does not tell."""
        ...

    def set_desired(self, model: ModelId, *, replicas: int, unload: bool) -> Desired:
        """Keep `replicas` of a model loaded; `unload`: those that are loaded now shall go."""
        ...

    def pull(self, node: NodeId, request: PullRequest) -> None:
        """Have a node pull a model file."""
        ...

    def pull_status(self, pull_id: str) -> PullStatus | None:
        """How far a pull is; None: its node has not said, or says nothing any more."""
        ...

    def change_node(self, node: NodeId, change: NodeChange) -> NodeWish:
        """Change what is wanted of a node; all that is wanted of it then."""
        ...

    def close(self) -> None:
        """Free the connection."""
        ...


class AsyncTransport(Protocol):
    """A way to a fleet, for one event loop.

    Only what may take long is asynchronous, so that a thousand tasks may wait at once; for the rest, which takes
    milliseconds, threads call the blocking transport beside it.
    """

    @property
    def blocking(self) -> Transport:
        """The transport for what takes milliseconds."""
        ...

    async def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:
        """As `Transport.events`."""
        ...

    async def close(self) -> None:
        """Free both connections."""
        ...
