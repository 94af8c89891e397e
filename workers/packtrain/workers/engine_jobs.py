"""From a leased job to a sequence of the engine: the `Starter` of a loaded model.

The prompt becomes tokens here, on the thread that claimed the job, and not on the engine's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from packtrain.broker import jobs
from packtrain.broker.chunks import Event
from packtrain.broker.errors import (
    InvalidParameter,
    InvalidRequest,
    JobFailed,
    PromptEmpty,
    PromptTooLong,
)
from packtrain.broker.ids import ModelId
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import JobStore
from packtrain.broker.pieces import MAX_PROMPT_LOGPROBS
from packtrain.workers.adapters import adapters_of
from packtrain.workers.backends.base import Backend
from packtrain.workers.chat.preparing import Look, Prepared, blind, pieces_of, prepare, prepare_count
from packtrain.workers.engine.embedding import EmbedRequest
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.sequence import End, Ended, SequenceRequest
from packtrain.workers.engine.text import TextStream
from packtrain.workers.leased_job import LeasedJob

logger = logging.getLogger(__name__)


class EngineJobs:
    """A `Starter` for the engine of a loaded model."""

    def __init__(
        self,
        store: JobStore,
        backend: Backend,
        engine: Engine,
        *,
        model: ModelId,
        clock: Callable[[], float],
        look: Look = blind,
    ) -> None:
        self._store = store
        self._backend = backend
        self._engine = engine
        self._model = model
        self._clock = clock
        self._look = look
        self.n_slots = backend.shape.n_slots
        self.can_share = backend.shape.can_share

    def wait_for_turn(self) -> bool:
        return True

    def give_turn_back(self) -> None:
        """There are always turns."""

    def close(self) -> None:
        """Nobody waits."""

    def start(self, job: LeasedJob, claim: jobs.Claim) -> None:
        is_embed = job.spec.kind == "embed"
        job.adapters = adapters_of(job.spec, self._backend.adapters)
        prepared = self._prepare(job)
        job.read_by(prepared.parser)
        self._backend.prepare(prepared.params)
        resumed = self._resume(job) if claim.epoch > 1 and not is_embed else ()
        prompt = prepared.tokens
        job.prompt = prompt
        if job.spec.kind == "count":
            if job.spec.list_tokens:
                job.pieces = pieces_of(prompt, self._backend)
            job.on_end(Ended(End.STOP))
            return
        left_ms = min((left for left in (claim.remaining_ms, claim.run_left_ms) if left is not None), default=None)
        deadline = None if left_ms is None else self._clock() + left_ms / 1000
        if is_embed:
            self._engine.submit(EmbedRequest(job.job_id, tuple(prompt), job.spec.dimensions, job.on_end, deadline))
            return
        room, most = self._backend.shape.n_ctx - len(prompt), job.spec.params.max_tokens
        self._engine.submit(
            SequenceRequest(
                job_id=job.job_id,
                prompt=tuple(prompt),
                params=prepared.params,
                seed=job.seed or 0,
                max_new=room if most is None else min(most, room),
                on_tokens=job.on_tokens,
                on_end=job.on_end,
                resumed=resumed,
                deadline=deadline,
                adapters=job.adapters,
                is_bulk=job.spec.lane == "bulk",
                media=prepared.media,
            )
        )

    def _prepare(self, job: LeasedJob) -> Prepared:
        spec = job.spec
        limit = self._backend.shape.n_ctx - (spec.params.max_tokens != 0)
        is_embed = spec.kind == "embed"
        if is_embed:
            limit = self._room_to_embed(spec)
        elif self._backend.shape.embeds_only and spec.kind != "count":
            raise InvalidRequest(
                f"{self._model!r} only makes vectors of texts (`embed`); ask another model, see `packtrain models`",
                model=self._model,
            )
        if spec.kind == "count":
            prepared = prepare_count(spec, job.job_id, self._backend, look=self._look)
        else:
            prepared = prepare(spec, job.job_id, self._backend, limit=limit, look=self._look)
        num_tokens = len(prepared.tokens)
        if not num_tokens:  # a template or tokenizer may make nothing of something
            raise PromptEmpty()
        if num_tokens > limit and spec.kind != "count":
            raise PromptTooLong(model=self._model, num_tokens=num_tokens, limit=limit, embeds=is_embed)
        num_top = spec.params.prompt_logprobs
        num_logprobs = 0 if num_top is None else num_tokens * (1 + num_top)
        if num_logprobs > MAX_PROMPT_LOGPROBS:
            raise InvalidParameter(
                f"prompt_logprobs = {num_top} of {num_tokens} tokens are {num_logprobs} logprobs, a result holds at "
                f"most {MAX_PROMPT_LOGPROBS}; ask for fewer likeliest, or cut the prompt into several jobs",
                field="prompt_logprobs",
            )
        return prepared

    def _room_to_embed(self, spec: JobSpec) -> int:
        """Most tokens of a text to embed."""
        shape = self._backend.embedding
        if spec.dimensions is not None and spec.dimensions > shape.n_dims:
            raise InvalidParameter(
                f"dimensions = {spec.dimensions}: vectors of {self._model!r} have {shape.n_dims}; ask for fewer",
                field="dimensions",
            )
        return shape.max_tokens

    def _resume(self, job: LeasedJob) -> tuple[int, ...]:
        """Output of earlier leases, from the stream: readers have it, so this lease goes on after it."""
        told: list[Event] = []
        while events := self._store.events({job.job_id: told[-1].id if told else "0"}):
            told += events
        tokens = [token for event in told for token in event.tokens]
        logprobs = [entry for event in told for entry in event.logprobs]
        n_vocab = self._backend.shape.n_vocab
        if strange := next((token for token in tokens if not 0 <= token < n_vocab), None):
            raise JobFailed(
                f"the job already has the token {strange}, {self._model!r} has {n_vocab}: its file was exchanged while "
                "the job ran; submit the job again",
                token=strange,
                n_vocab=n_vocab,
            )
        # The stream holds the parts of the answer; its parser needs the text they were made of, as the engine gave it.
        text = TextStream(job.spec.params.stop)
        job.resume("".join(text.push(self._backend.piece(token)) for token in tokens), tokens, logprobs)
        return tuple(tokens)
