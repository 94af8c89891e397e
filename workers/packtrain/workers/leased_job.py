"""A leased job on its way through an instance: what the engine produced, and what the broker has been told of it.

The engine's text is one stream; here it is taken apart into content, reasoning and tool calls, so that every reader
gets the same parts. That is done when it is published, not on the engine's thread.

Three threads meet here. The engine thread appends tokens and the end, the publisher takes them away to the broker, and
the Celery thread that claimed the job waits until the broker knows the end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Literal

from packtrain.broker import jobs, vectors
from packtrain.broker.chat import ToolCall, join_calls
from packtrain.broker.chunks import Chunk
from packtrain.broker.errors import FleetLoop, InvalidParameter, JobExpired, PromptEmpty
from packtrain.broker.ids import InstanceId, JobId, NodeId, model_of
from packtrain.broker.job_spans import Attempt, Attributes
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.outcome import Outcome, Timings, Usage
from packtrain.broker.pieces import Piece, TokenLogprob
from packtrain.broker.states import JobState
from packtrain.broker.tally import Pace
from packtrain.workers.adapters import AdapterSet
from packtrain.workers.chat.deltas import Delta
from packtrain.workers.chat.output import Parser, PlainParser
from packtrain.workers.engine.sequence import End, Ended, Tokens
from packtrain.workers.pace import PaceMeter
from packtrain.workers.receipts import Prover

logger = logging.getLogger(__name__)

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
        seed: That its answer is drawn with; None: another server draws it with one of its own.
        clock: Monotonic seconds.
        on_news: Called from the engine thread when there is something to publish; must not block. True: at once.
    """

    def __init__(
        self,
        claim: jobs.Claim,
        spec: JobSpec,
        seed: int | None,
        *,
        clock: Callable[[], float],
        on_news: Callable[[LeasedJob, bool], None],
    ) -> None:
        self.job_id: JobId = claim.job_id
        self.epoch = claim.epoch
        self.spec = spec
        self.seed = seed
        self.prompt: Sequence[int] = ()
        self.pieces: tuple[Piece, ...] = ()  # of the prompt, where they are to be listed
        self.adapters: AdapterSet = ()
        self.ended: Ended | None = None
        self.published = threading.Event()  # the broker knows the end, or need not
        self._claim = claim
        self._clock = clock
        self._on_news = on_news
        self._claimed_at = clock()
        self._pace = PaceMeter()
        self._ended_at = self._claimed_at
        self._lock = threading.Lock()
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._unpublished: list[Tokens] = []
        # From here on the publisher's alone, once the engine has the job.
        self._parser: Parser = PlainParser()
        self._parts: list[Delta] = []
        self._is_flushed = False

    def read_by(self, parser: Parser) -> None:
        """Take the answer apart with this. Before the engine has the job."""
        self._parser = parser

    def resume(self, text: str, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]) -> None:
        """Output of an earlier lease: the engine's text, whose parts readers have. Before the engine has the job."""
        self._pace.is_resumed = bool(tokens)
        self._parts.append(self._read(text))
        self._tokens += tokens
        self._logprobs += logprobs

    def resume_parts(self, told: Delta, logprobs: Sequence[TokenLogprob]) -> None:
        """The same of an answer that another server took apart."""
        self._pace.is_resumed = True
        self._parts.append(told)
        self._logprobs += logprobs

    def on_tokens(self, tokens: Tokens) -> None:
        """From the engine thread."""
        is_first = self._pace.note(self._clock())
        with self._lock:
            self._tokens += tokens.tokens
            self._logprobs += tokens.logprobs
            self._unpublished.append(tokens)
        self._on_news(self, is_first and self.spec.stream)

    def on_end(self, ended: Ended) -> None:
        """From the engine thread, or from whoever could not even submit it."""
        self._ended_at = self._clock()
        with self._lock:
            self.ended = ended
        self._on_news(self, True)

    def take(self) -> tuple[Chunk | None, Ended | None]:
        """What has not been published yet, merged into one chunk, and the end if it has come. Publisher only."""
        with self._lock:
            news, self._unpublished = self._unpublished, []
            ended = self.ended
        delta = self._read("".join(part.text for part in news))
        for part in news:
            if part.delta:
                delta = delta + part.delta
        # A job that goes on elsewhere keeps what is held back: the resume rebuilds it from the tokens.
        if ended and ended.end not in (End.RELEASED, End.LOST) and not self._is_flushed:
            self._is_flushed = True
            delta = delta + self._read(ended.tail, is_last=True)
        if not news and not delta:
            return None, ended
        self._parts.append(delta)
        index = news[0].index if news else ended.num_output if ended else 0
        tokens = tuple(token for part in news for token in part.tokens)
        logprobs = tuple(entry for part in news for entry in part.logprobs)
        num_pieces = sum(part.delta is not None for part in news)
        return Chunk(index, delta.content, tokens, delta.reasoning, delta.calls, logprobs, num_pieces), ended

    def _read(self, text: str, *, is_last: bool = False) -> Delta:
        try:
            delta = self._parser.push(text)
            return delta + self._parser.flush() if is_last else delta
        except Exception as error:  # a defect of ours must cost this job its parts, not all jobs their publisher
            logger.error(
                "The answer of job %s cannot be taken apart (%s); its text goes on as it is", self.job_id,
                type(error).__name__, extra={"event": "answer.unparsed", "job": self.job_id},
            )  # fmt: skip
            self._parser = PlainParser()
            return Delta(text)

    @property
    def num_output(self) -> int:
        """Output tokens; known at the end."""
        return self.ended.num_output if self.ended else 0

    def may_fall_back(self, ended: Ended) -> bool:
        """True when another model might do better: it was asked for by a name that may have more targets, nothing of an
        answer has come, and it is not the request that is wrong."""
        is_named = self.spec.model != model_of(self._claim.route)
        is_wrong = isinstance(ended.error, InvalidParameter | PromptEmpty | FleetLoop)
        return ended.end is End.FAILED and is_named and not is_wrong and not self._parts and not self._unpublished

    def attempt(self, ended: Ended, outcome: Outcome | None, about: Attributes, *, now_ns: int) -> Attempt:
        """This lease as its trace tells it, after its end.

        Args:
            outcome: None: the job goes on elsewhere.
            about: Where it ran.
            now_ns: Nanoseconds since 1970.
        """
        now, claim, first = self._clock(), self._claim, self._pace.first_at

        def since_1970(moment: float) -> int:
            return now_ns - round((now - moment) * 1e9)

        return Attempt(
            job_id=self.job_id, traceparent=claim.traceparent, epoch=self.epoch,
            waited_ns=claim.waited_ms * 1_000_000, queued_ns=claim.queued_ms * 1_000_000,
            claimed_ns=since_1970(self._claimed_at), first_ns=None if first is None else since_1970(first),
            ended_ns=since_1970(self._ended_at), about={**about, "packtrain.lane": claim.lane}, end=ended.end,
            outcome=outcome,
        )  # fmt: skip

    @property
    def pace(self) -> Pace:
        """How its tokens came."""
        return self._pace.pace

    @property
    def seconds(self) -> float:
        """From claim to end."""
        return self._ended_at - self._claimed_at

    def outcome(self, ended: Ended, instance: InstanceId, node: NodeId, computer: Prover, *, threads: int) -> Outcome:
        """How the job ended, for its record. Publisher only, after its last `take`.

        Not for RELEASED and LOST, which do not end a job.
        """
        state = _STATES[ended.end]
        error = {End.CANCELLED: jobs.CANCELLED, End.EXPIRED: self._expired()}.get(ended.end, ended.error)
        first = self._pace.first_at
        calls = join_calls(call for part in self._parts for call in part.calls)
        return Outcome(
            state=state,
            text="".join(part.content for part in self._parts),
            finish_reason=self._finish_reason(ended, calls),
            stopped_by=ended.stopped_by,
            reasoning="".join(part.reasoning for part in self._parts),
            tool_calls=calls,
            usage=ended.usage
            or Usage(
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
            prompt_logprobs=ended.prompt_logprobs,
            pieces=self.pieces,
            embedding=vectors.to_wire(ended.embedding),
            receipt=computer.receipt(
                threads=threads,
                seed=self.seed or 0,
                prompt=self.prompt,
                output=ended.embedding or self._tokens,
                adapters=self.adapters,
                media=[ref.sha256 for ref in self.spec.media],
            ),
            batch_peak=ended.batch_peak,
            node=node,
            instance=instance,
            error=error.to_wire() if error else None,
        )

    def _expired(self) -> JobExpired:
        run_left, left = self._claim.run_left_ms, self._claim.remaining_ms
        return jobs.EXPIRED if run_left is None or (left is not None and left <= run_left) else jobs.OVERRUN

    def _finish_reason(self, ended: Ended, calls: Sequence[ToolCall]) -> Literal["stop", "length", "tool_calls"] | None:
        if _STATES[ended.end] is not JobState.SUCCEEDED or self.spec.kind == "embed":
            return None
        if ended.end is End.LENGTH:
            return "length"
        return "tool_calls" if calls else "stop"
