"""The result of a job, and its errors as exceptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from packtrain.broker import vectors
from packtrain.broker.chat import CallDelta, ToolCall
from packtrain.broker.errors import JobFailed, PacktrainError, ResultTimeout
from packtrain.broker.outcome import JobStatus, Outcome, Receipt, Timings, Usage
from packtrain.broker.pieces import Piece, PromptLogprob, TokenLogprob
from packtrain.broker.states import JobState


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job. `str(result)` is its text."""

    job_id: str
    text: str
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    seed: int | None = None
    batch_peak: int = 0  # most sequences that shared one step with this job
    node: str = ""
    instance: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()  # of each output token, with `logprobs=` in the request
    receipt: Receipt | None = None  # what exactly computed it
    embedding: tuple[float, ...] | None = None  # of an `embed` job: a vector of length 1
    error: PacktrainError | None = None  # only from `map(..., on_error="return")`
    reasoning: str = ""  # what the model thought before it answered, where its family marks it
    tool_calls: tuple[ToolCall, ...] = ()  # what it asks for; they can stand in the next request as they are
    prompt_logprobs: tuple[PromptLogprob, ...] = ()  # of each prompt token, with `prompt_logprobs=` in the request
    pieces: tuple[Piece, ...] = ()  # tokens of the prompt, where the job was to list them
    stopped_by: str = ""  # the stop string that ended it; it is no part of the text

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """A bit more of an answer."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    #: Of its tokens, with `logprobs=` in the request. Tokens come at once, their text may come with a later delta.
    logprobs: tuple[TokenLogprob, ...] = ()


def delta_of(result: Result) -> AnswerDelta:
    """A whole answer as one delta."""
    calls = tuple(
        CallDelta(index, call.function.arguments, call.id, call.function.name)
        for index, call in enumerate(result.tool_calls)
    )
    return AnswerDelta(result.text, result.reasoning, calls, result.logprobs)


def finished(status: JobStatus, timeout_s: float | None) -> Result:
    """The result in a record that was waited for, `timeout_s` long.

    Raises:
        ResultTimeout: It has not ended yet.
        PacktrainError: How it ended, when it did not succeed.
    """
    if status.outcome is None:
        raise ResultTimeout(job_id=status.id, timeout_s=timeout_s or 0, state=status.state)
    return result_of(status.id, status.outcome)


def result_of(job_id: str, outcome: Outcome, *, raise_error: bool = True) -> Result:
    """The result behind an outcome.

    Raises:
        PacktrainError: How the job ended, when it did not succeed and `raise_error` is set.
    """
    error: PacktrainError | None = None
    if outcome.state is not JobState.SUCCEEDED:
        wire = outcome.error or JobFailed(f"job {job_id} ended as {outcome.state} without a reason").to_wire()
        error = PacktrainError.from_wire(wire)
        if raise_error:
            raise error
    return Result(
        job_id,
        outcome.text,
        outcome.finish_reason,
        outcome.usage,
        outcome.timings,
        outcome.seed,
        outcome.batch_peak,
        outcome.node,
        outcome.instance,
        outcome.logprobs,
        outcome.receipt,
        vectors.from_wire(outcome.embedding) if outcome.embedding else None,
        error,
        outcome.reasoning,
        outcome.tool_calls,
        outcome.prompt_logprobs,
        outcome.pieces,
        outcome.stopped_by,
    )
