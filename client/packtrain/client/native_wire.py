"""What the native routes of a gateway and the HTTP transport say to each other: paths, bodies, and events as text.

The prefix is a first segment of its own: OpenAI's and Anthropic's paths begin with `/v1` (and, for clients that forget
it, with `/chat`, `/models`, ...), Ollama's with `/api`, so none of them can ever come to mean something else here, and
a proxy lets our own API through or not by one rule.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.chunks import Event
from packtrain.broker.ids import JobId
from packtrain.broker.jobs import Submitted
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.outcome import JobStatus
from packtrain.broker.states import JobState

PREFIX: Final = "/packtrain/v1"
#: A stream without events says that it lives after so long, seconds: as long as one read of the broker blocks.
BEAT_S: Final = 2.0
#: What it says then.
BEAT: Final = "waiting"
#: Jobs of one stream, and of one look at records.
MAX_JOBS: Final = 2000

_JOB_ID: Final = r"^[0-9a-f]{32}$"
JobIdText = Annotated[str, StringConstraints(pattern=_JOB_ID)]
#: Id of an event of one job, two numbers of 64 bits; "0" comes before all of them. Not all numbers of 20 digits have
#: 64 bits, and one too large is refused by Redis: with the whole read, in which others wait, too (shared_reads.py).
EVENT_ID: Final = r"[0-9]{1,19}(-[0-9]{1,19})?"
Cursor = Annotated[str, StringConstraints(pattern=f"^{EVENT_ID}$")]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Submission(_Body):
    """POST /jobs."""

    spec: dict[str, Any] = Field(description="a JobSpec: kind, model, messages or prompt, params, ...")
    id: JobIdText | None = Field(None, description="of the new job; the same again is the same job; null: drawn")
    idempotency_key: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="instead of an id: the same key of the same user is the same job"
    )


class Lookup(_Body):
    """POST /jobs/lookup."""

    ids: list[JobIdText] = Field(max_length=MAX_JOBS)


class EventsBody(_Body):
    """POST /events."""

    after: dict[JobIdText, Cursor] = Field(
        max_length=MAX_JOBS, description='by job, the id of the last event that is known; "0": none'
    )
    wait_s: float = Field(BEAT_S, ge=0, le=30, description="for the first event; not with `Accept: text/event-stream`")
    records: bool = Field(False, description="give the records of jobs that have ended, too; not with the same")


class DesiredBody(_Body):
    """PUT /models/{model}/desired."""

    replicas: int = Field(1, ge=0, le=1000, description="keep so many loaded")
    unload: bool = Field(False, description="what is loaded now shall go")


class LoadBody(_Body):
    """POST /models/{model}/load."""

    replicas: int = Field(1, ge=1, le=1000, description="on as many nodes as can be")


class PullBody(_Body):
    """POST /nodes/{node}/pulls."""

    repo: str = Field(description="owner/name")
    file: str = Field("", description="path of a GGUF file in it; empty: list what there is")
    revision: str = "main"
    mmproj: str = Field("", description="its projector: a type, a path in the repository, or none; empty: f16 if there")
    id: str | None = Field(None, description="of the pull, 32 hex digits; null: drawn")


class PullAsked(BaseModel):
    """A pull has been asked for."""

    id: str


class Cancelled(BaseModel):
    """A job after its cancel."""

    id: str
    state: JobState


class Jobs(BaseModel):
    """Records of jobs."""

    jobs: list[JobStatus]


class Found(BaseModel):
    """Records by id; null: there is none."""

    jobs: dict[JobId, JobStatus | None]


class Events(BaseModel):
    """What happened to jobs, and the records of those that have ended, where they were asked for."""

    events: list[Event]
    records: list[JobStatus] = []


class Models(BaseModel):
    """What the fleet offers."""

    models: list[ModelInfo]


class Nodes(BaseModel):
    """Live nodes."""

    nodes: list[NodeBeat]


class Instances(BaseModel):
    """Instances that live or ended lately."""

    instances: list[InstanceBeat]


class Waiting(BaseModel):
    """Jobs that wait, by model; those that need a deterministic instance by `model@deterministic`."""

    waiting: dict[str, int]
    reasons: dict[str, str] = Field(
        default_factory=dict, description="why models cannot be loaded now, those that nobody waits for yet among them"
    )


SUBMITTED: Final[TypeAdapter[Submitted]] = TypeAdapter(Submitted)
_EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Event)


def is_job_id(text: str) -> bool:
    """True when a job can have this id."""
    return re.fullmatch(_JOB_ID, text) is not None


def write_event(event: Event) -> bytes:
    """An event as JSON, without what says nothing."""
    return _EVENT.dump_json(event, exclude_defaults=True)


def read_event(text: bytes) -> Event:
    """`write_event` again."""
    return _EVENT.validate_json(text)
