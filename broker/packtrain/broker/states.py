"""The states of jobs and instances, and which steps between them are allowed.

    job:       QUEUED → RUNNING → SUCCEEDED | FAILED | CANCELLED | EXPIRED | DEAD
               RUNNING → QUEUED     lease lapsed (attempt + 1) or released by a drain (attempt + 0), or it failed before
                                    its first token and another target of its name shall try
               QUEUED  → CANCELLED | EXPIRED | FAILED (rejected: its model cannot be loaded)

    instance:  REQUESTED → [FETCHING] → STARTING → LOADING → WARMING → READY → DRAINING → STOPPED
               any of these → FAILED (with a reason) or LOST (its node is gone)

    shard:     REQUESTED → STARTING → LOADING (its head may come) → HOLDING → [DRAINING →] STOPPED, else as above

Terminal states absorb: nothing leaves them. The Lua scripts enforce the first table on the server.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "QUEUED"  #: waits in the ready set of its model
    RUNNING = "RUNNING"  #: leased to one instance
    SUCCEEDED = "SUCCEEDED"  #: has a result
    FAILED = "FAILED"  #: the request or the engine failed; the error says which
    CANCELLED = "CANCELLED"  #: cancelled by a client
    EXPIRED = "EXPIRED"  #: its deadline passed
    DEAD = "DEAD"  #: its lease lapsed `MAX_ATTEMPTS` times

    @property
    def is_terminal(self) -> bool:
        """True when nothing can change the job any more."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class InstanceState(StrEnum):
    """Where an instance is in its life."""

    REQUESTED = "REQUESTED"  #: memory reserved, command sent
    FETCHING = "FETCHING"  #: its node reads the model file from another node first
    STARTING = "STARTING"  #: process spawned
    LOADING = "LOADING"  #: reading weights
    WARMING = "WARMING"  #: decoding its first token
    HOLDING = "HOLDING"  #: a shard: has its layers, and computes them for its head
    READY = "READY"  #: consumes the queue of its model
    DRAINING = "DRAINING"  #: takes no new job, finishes or releases those it has
    STOPPED = "STOPPED"  #: process seen gone, memory read again
    FAILED = "FAILED"  #: ended by itself or by a missed deadline
    LOST = "LOST"  #: its node no longer reports

    @property
    def is_terminal(self) -> bool:
        """True when the process is gone for good."""
        return self in (InstanceState.STOPPED, InstanceState.FAILED, InstanceState.LOST)

    @property
    def is_coming_up(self) -> bool:
        """True while its memory is claimed but not yet seen in the node's free memory."""
        return self in _COMING_UP


_COMING_UP = frozenset(
    {
        InstanceState.REQUESTED,
        InstanceState.FETCHING,
        InstanceState.STARTING,
        InstanceState.LOADING,
        InstanceState.WARMING,
    }
)

#: Leases of one job that may lapse before it is DEAD. A crash costs every job of its batch one, so one is too few.
MAX_ATTEMPTS = 3
#: From this many on a job is a suspect and runs alone, so that its third crash costs nobody else.
SUSPECT_ATTEMPTS = 2
