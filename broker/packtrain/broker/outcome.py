"""How a job is doing and how it ended, as its record tells every client."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from packtrain.broker.chat import ToolCall
from packtrain.broker.fields import Numerics, Recipe, Report
from packtrain.broker.pieces import Piece, PromptLogprob, TokenLogprob
from packtrain.broker.states import JobState


class Usage(Report):
    """Tokens of one job."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reused_tokens: int = Field(0, description="prompt tokens that were in a cache already")
    cost: float | None = Field(None, description="of a remote answer, by the prices in packtrain.toml; null: not known")


class Timings(Report):
    """Where the time of one job went, in milliseconds."""

    queue_ms: float = Field(0, description="submit to claim")
    first_token_ms: float | None = Field(None, description="claim to first token; null: none came")
    run_ms: float = Field(0, description="claim to end")


class UsedAdapter(Report):
    """A LoRA adapter that took part in an answer."""

    name: str
    scale: float
    sha256: str = Field("", description="of its file")


class Receipt(Report):
    """What exactly computed an answer. Hashes are SHA-256, of token ids as 32-bit little-endian integers.

    The output of an `embed` job is its vector, as 32-bit little-endian floats.
    """

    model_sha256: str
    numerics: Numerics
    recipe: Recipe
    numerics_class: str = Field(description="equal where equal deterministic jobs get equal bits")
    library: str
    features: str = Field(description="what the library was built with and found in the CPU")
    flags: str = Field(description="how the model was loaded, as far as it tells on the bits")
    threads: int
    seed: int
    prompt_sha256: str
    output_sha256: str
    adapters: tuple[UsedAdapter, ...] = ()
    media: tuple[str, ...] = Field(
        (),
        description="of the prompt, hashes in order; each row of an image or sound is a token -1 in `prompt_sha256`",
    )
    projector_sha256: str = Field("", description="of what turned media into rows, where the model has that")
    remote: str = Field(
        "",
        description="host and model of the server that answered: nothing about its answer is proven, and all else but "
        "the seed is empty",
    )


class Outcome(Report):
    """How a job ended. Stored in its record; every client reads the same one."""

    v: Literal[1] = 1
    state: JobState
    text: str = ""
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None
    stopped_by: str = Field("", description="the stop string that ended it; empty: none did")
    reasoning: str = Field("", description="what the model thought before it answered, where its family marks it")
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = Usage()
    timings: Timings = Timings()
    seed: int | None = None
    tokens: tuple[int, ...] = Field((), description="of the output; only of deterministic jobs, for `packtrain verify`")
    logprobs: tuple[TokenLogprob, ...] = Field((), description="of each output token, where the job asked for them")
    prompt_logprobs: tuple[PromptLogprob, ...] = Field(
        (), description="of each prompt token, where the job asked for them and came so far"
    )
    pieces: tuple[Piece, ...] = Field((), description="of the prompt; of a `count` job that lists its tokens")
    embedding: str = Field("", description="of an `embed` job: base64 of 32-bit little-endian floats, length 1")
    receipt: Receipt | None = None
    batch_peak: int = Field(0, description="most sequences that shared one step with this job")
    node: str = ""
    instance: str = ""
    error: dict[str, Any] | None = None


class Cause(Report):
    """Why a job lost the instance that ran it. The tail is what the instance wrote last, never a prompt."""

    instance: str = ""
    reason: str = Field("", description="how it ended, as half a sentence: 'was killed by SIGABRT'")
    exit_code: int | None = Field(None, description="of its process; null: not known, or it ended by a signal")
    signal: str = Field("", description="that ended its process, such as SIGABRT")
    tail: tuple[str, ...] = Field((), description="last lines of its log")

    def __str__(self) -> str:
        last = next((line for line in reversed(self.tail) if line.strip()), "")
        return f"{self.reason}; last words: {last[:300]}" if last else self.reason


class JobStatus(Report):
    """A job as its record shows it now."""

    id: str
    state: JobState
    model: str
    user: str = "default"
    lane: str = "interactive"
    attempts: int = Field(0, description="leases that lapsed")
    epoch: int = Field(0, description="claims so far")
    submitted_ms: int = 0
    started_ms: int | None = None
    first_token_ms: int | None = None
    finished_ms: int | None = None
    instance: str | None = None
    node: str | None = None
    cancel_requested: bool = False
    route: str = Field("", description="where it waits or waited: its model, and what it must be able to do")
    meant_for: str | None = Field(None, description="the instance or node that alone may run it")
    tokens: int = Field(0, description="of its answer that readers can have by now")
    traceparent: str = Field("", description="of who handed it in, as W3C has it; empty: none")
    cause: Cause | None = Field(None, description="of the last attempt that was lost")
    outcome: Outcome | None = None
