"""Identifiers: what they look like and how they are made.

Ids travel in Redis keys and Celery queue names, so each is lower-case letters, digits, `-`, `_` and `.` only.
"""

from __future__ import annotations

import re
import secrets
import socket
import uuid
from typing import NewType

JobId = NewType("JobId", str)  # 32 hex digits
ModelId = NewType("ModelId", str)  # slug of the file name, see `model_id`
NodeId = NewType("NodeId", str)
InstanceId = NewType("InstanceId", str)
Route = NewType("Route", str)  # what a job waits for: its model, and `@deterministic` where only such instances will do

_UNSAFE = re.compile(r"[^a-z0-9._-]+")
_SAFE_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
#: Namespace of job ids made from idempotency keys (uuid5), so that the same key gives the same job everywhere.
_JOBS = uuid.UUID("6f7a4b1e-52c9-4f0a-9c1d-70c6b6f4a0d1")


def new_job_id() -> JobId:
    """A fresh job id: 128 random bits, so that ids of other users cannot be guessed."""
    return JobId(secrets.token_hex(16))


def job_id_for_key(user: str, idempotency_key: str) -> JobId:
    """The job id that this user's idempotency key always names."""
    return JobId(uuid.uuid5(_JOBS, f"{user}\0{idempotency_key}").hex)


def new_instance_id(model: ModelId) -> InstanceId:
    """A fresh instance id that still says which model it holds."""
    return InstanceId(f"{model[:60]}-{secrets.token_hex(4)}")


_DETERMINISTIC = "@deterministic"


def route_of(model: ModelId, *, deterministic: bool = False) -> Route:
    """Where jobs for this model wait: those that ask for `deterministic` apart from the others."""
    return Route(model + _DETERMINISTIC if deterministic else model)


def model_of(route: Route) -> ModelId:
    """The model that a route leads to."""
    return ModelId(route.removesuffix(_DETERMINISTIC))


def is_deterministic(route: Route) -> bool:
    """True for the route of jobs that only a deterministic instance may run."""
    return route.endswith(_DETERMINISTIC)


def slug(text: str) -> str:
    """`text` as an id: lower case, every run of other characters one `-`, at most 80 characters.

    >>> slug("Qwen3 0.6B (Q8_0)")
    'qwen3-0.6b-q8_0'
    """
    return _UNSAFE.sub("-", text.lower()).strip("-._")[:80] or "x"


def is_safe_id(text: str) -> bool:
    """True when `text` may stand in a key or queue name as it is."""
    return bool(_SAFE_ID.fullmatch(text))


def default_node_id() -> NodeId:
    """The host's name as a node id."""
    return NodeId(slug(socket.gethostname()))
