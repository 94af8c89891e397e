"""What may keep a run from handing in its next job, beside the fleet: limits of whom it runs for."""

from __future__ import annotations

from typing import Protocol

from packtrain.broker.ids import JobId
from packtrain.broker.job_spec import JobSpec


class Gate(Protocol):
    """Asked before each job, and told of its end."""

    def enter(self, job_id: JobId, spec: JobSpec) -> None:
        """A job is about to be handed in.

        Raises:
            TryLater: Not now; `retry_after_s` in its data says when to ask again.
        """
        ...

    def leave(self, job_id: JobId, tokens: int | None) -> None:
        """It has ended.

        Args:
            tokens: Of its prompt and answer; 0: it was not handed in after all; None: not known.
        """
        ...

    def keep(self) -> None:
        """All others are still under way. Called all the time."""
        ...


class OpenGate:
    """Lets everything through."""

    def enter(self, job_id: JobId, spec: JobSpec) -> None:
        pass

    def leave(self, job_id: JobId, tokens: int | None) -> None:
        pass

    def keep(self) -> None:
        pass
