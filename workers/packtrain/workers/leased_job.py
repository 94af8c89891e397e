"""A leased job on its way through an instance: what the engine produced, and what the broker has been told of it.

Three threads meet here. The engine thread appends tokens and the end, the publisher takes them away to the broker, and
the Celery thread that claimed the job waits until the broker knows the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Literal

from packtrain.broker import jobs, vectors
from packtrain.broker.ids import InstanceId, JobId, NodeId
from packtrain.broker.messages import JobSpec, Outcome, Timings, TokenLogprob, Usage
from packtrain.broker.states import JobState
from packtrain.workers.engine.sequence import End, Ended, Tokens
from packtrain.workers.receipts import Computer

_STATES = {
    End.STOP: JobState.SUCCEEDED,
    End.LENGTH: JobState.SUCCEEDED,
    End.CANCELLED: JobState.CANCELLED,
    End.EXPIRED: JobState.EXPIRED,
    End.FAILED: JobState.FAILED,
}


class LeasedJob:
    """One claim of one job.

    Args:
        claim: What the store gave.
        spec: The checked request.
        seed: That its answer is drawn with.
        clock: Monotonic seconds.
        on_news: Called from the engine thread when there is something to publish; must not block. True: at once.
    """

    def __init__(
        self,
        claim: jobs.Claim,
        spec: JobSpec,
        seed: int,
        *,
        clock: Callable[[], float],
        on_news: Callable[[LeasedJob, bool], None],
    ) -> None:
        self.job_id: JobId = claim.job_id
        self.epoch = claim.epoch
        self.spec = spec
        self.seed = seed
        self.prompt: Sequence[int] = ()
        self.ended: Ended | None = None
        self.published = threading.Event()  # the broker knows the end, or need not
        self._claim = claim
        self._clock = clock
        self._on_news = on_news
        self._claimed_at = clock()
        self._first_token_at: float | None = None
        self._ended_at = self._claimed_at
        self._lock = threading.Lock()
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._unpublished: list[Tokens] = []

    def resume(self, text: str, tokens: Sequence[int]) -> None:
        """Output that readers already have from an earlier lease."""
        self._texts.append(text)
        self._tokens += tokens

    def on_tokens(self, tokens: Tokens) -> None:
        """From the engine thread."""
        is_first = self._first_token_at is None
        if is_first:
            self._first_token_at = self._clock()
        with self._lock:
            self._texts.append(tokens.text)
            self._tokens += tokens.tokens
            self._logprobs += tokens.logprobs
            self._unpublished.append(tokens)
        self._on_news(self, is_first and self.spec.stream)

    def on_end(self, ended: Ended) -> None:
        """From the engine thread, or from whoever could not even submit it."""
        self._ended_at = self._clock()
        with self._lock:
            self._texts.append(ended.tail)
            self.ended = ended
        self._on_news(self, True)

    def take(self) -> tuple[jobs.Chunk | None, Ended | None]:
        """What has not been published yet, merged into one chunk, and the end if it has come. Publisher only."""
        with self._lock:
            parts, self._unpublished = self._unpublished, []
            ended = self.ended
        if not parts:
            return None, ended
        tokens = tuple(token for part in parts for token in part.tokens)
        return jobs.Chunk(parts[0].index, "".join(part.text for part in parts), tokens), ended

    @property
    def num_output(self) -> int:
        """Output tokens; known at the end."""
        return self.ended.num_output if self.ended else 0

    @property
    def seconds(self) -> float:
        """From claim to end."""
        return self._ended_at - self._claimed_at

    def outcome(self, ended: Ended, instance: InstanceId, node: NodeId, computer: Computer, *, threads: int) -> Outcome:
        """How the job ended, for its record. Not for RELEASED and LOST, which do not end a job."""
        state = _STATES[ended.end]
        error = {End.CANCELLED: jobs.CANCELLED, End.EXPIRED: jobs.EXPIRED}.get(ended.end, ended.error)
        first = self._first_token_at
        return Outcome(
            state=state,
            text="".join(self._texts),
            finish_reason=self._finish_reason(ended),
            usage=Usage(
                prompt_tokens=len(self.prompt), completion_tokens=ended.num_output, reused_tokens=ended.num_reused
            ),
            timings=Timings(
                queue_ms=self._claim.queued_ms,
                first_token_ms=None if first is None else (first - self._claimed_at) * 1000,
                run_ms=self.seconds * 1000,
            ),
            seed=self.seed,
            tokens=tuple(self._tokens) if self.spec.deterministic else (),
            logprobs=tuple(self._logprobs),
            embedding=vectors.to_wire(ended.embedding),
            receipt=computer.receipt(
                threads=threads, seed=self.seed, prompt=self.prompt, output=ended.embedding or self._tokens
            ),
            batch_peak=ended.batch_peak,
            node=node,
            instance=instance,
            error=error.to_wire() if error else None,
        )

    def _finish_reason(self, ended: Ended) -> Literal["stop", "length"] | None:
        if _STATES[ended.end] is not JobState.SUCCEEDED or self.spec.kind == "embed":
            return None
        return "stop" if ended.end is End.STOP else "length"
