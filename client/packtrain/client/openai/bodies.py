"""The bodies of OpenAI's requests, as clients send them: null for what is not said, and fields nobody knows.

What only OpenAI's own service understands (`store`, `metadata`, `verbosity`, ...) is taken and changes nothing. Ranges
are checked where jobs are, in `JobSpec`; here is only what OpenAI's shape and a job's differ in.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

#: What a client may say of a job beyond OpenAI's API, in the body or as a header `X-Packtrain-<Name>`.
EXTRAS = ("deterministic", "lane", "priority", "idempotency_key", "expires_in", "max_run", "max_wait", "tag")

_WEEK_S = 7 * 24 * 3600  # what a job's own bounds are


def _none_is(default: object) -> BeforeValidator:
    return BeforeValidator(lambda value: default if value is None else value)


_FAST = Field(fail_fast=True)
#: A text, its tokens, or several of either. Each kind is left at its first item that is of another: of a million tokens
#: that are tried as texts, each would else make an error.
Prompts = (
    str
    | Annotated[list[str], _FAST]
    | Annotated[list[int], _FAST]
    | Annotated[list[Annotated[list[int], _FAST]], _FAST]
)

Off = Annotated[bool, _none_is(False)]


class StreamOptions(BaseModel):
    """What a stream carries beside its text."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    include_usage: Off = False
    #: Ours: events `packtrain.queue` tell position and estimate while the request waits.
    include_queue: Off = False


class Body(BaseModel):
    """What all requests have. Fields that are not named here are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str = Field(description="id or alias of a model, as /v1/models lists them")
    user: str | None = None
    service_tier: str | None = Field(None, description="`flex` puts the request into the bulk lane")
    # Packtrain's own.
    deterministic: bool | None = Field(None, description="the same bits whatever company it has")
    lane: Literal["interactive", "bulk"] | None = None
    priority: int | None = Field(None, description="below 0: the bulk lane")
    idempotency_key: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="the same key again is the same job"
    )
    expires_in: float | None = Field(None, gt=0, le=_WEEK_S, description="seconds until the request is given up")
    max_run: float | None = Field(None, gt=0, le=_WEEK_S, description="seconds that it may run")
    tag: str | None = Field(None, description="what it is counted under beside its user, see /metrics")
    max_wait: float | None = Field(None, gt=0, description="seconds; what would begin later is refused with a 503")


class Generation(Body):
    """What requests for text have in common."""

    stream: Off = False
    stream_options: Annotated[StreamOptions, _none_is(StreamOptions())] = StreamOptions()
    n: Annotated[int, _none_is(1), Field(ge=1, le=128)] = 1
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    # llama.cpp's, by its own names.
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    ignore_eos: bool | None = None
    grammar: str | None = Field(None, description="GBNF that the text has to follow")
    json_schema: dict[str, Any] | None = Field(None, description="schema that the text has to follow")
    # Packtrain's own.
    adapters: dict[str, float | None] | list[str] | None = Field(None, description="LoRA adapters by name")


class ChatBody(Generation):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: Off = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = Field(None, description="OpenAI's old name for tools")
    function_call: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="variables for the model's chat template")


class CompletionBody(Generation):
    """POST /v1/completions."""

    prompt: Prompts
    echo: Off = False
    suffix: str | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1, le=128)
    response_format: dict[str, Any] | None = None


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    input: Prompts
    encoding_format: Annotated[Literal["float", "base64"], _none_is("float")] = "float"
    dimensions: int | None = None
