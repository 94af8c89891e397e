"""Messages: what crosses a process boundary, versioned, frozen and checked on arrival.

Clients' input (`JobSpec` and below) refuses unknown fields, so that a misspelt option is an error and not a silent
default. Reports between our own processes ignore unknown fields, so that nodes of two versions can share a fleet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from packtrain.broker.chat import MAX_TOOL_DEPTH, Message, NamedTool, Tool, ToolCall, ToolChoice
from packtrain.broker.errors import InvalidParameter, PromptEmpty
from packtrain.broker.fields import Input as _Input
from packtrain.broker.fields import Report as _Report
from packtrain.broker.fields import SafeId, Text, check_json
from packtrain.broker.states import InstanceState, JobState
from packtrain.broker.structured import FreeText, ResponseFormat

#: Characters of one prompt, all messages together. Far above any context, far below what hurts the broker.
MAX_PROMPT_CHARS = 4 * 1024 * 1024
#: Token ids of one prompt: as many as fit in the same room.
MAX_PROMPT_TOKENS = MAX_PROMPT_CHARS // 4
#: Tokens that one `count` job lists: some 4 MB in its record, and five seconds for the slowest vocabularies.
MAX_LISTED_TOKENS = 131_072
#: Characters of all tools' schemas together, as JSON.
MAX_TOOLS_CHARS = 512 * 1024
#: Adapters of one job.
MAX_ADAPTERS = 4
MAX_ADAPTER_SCALE = 100.0
#: Fleets that one job may be sent through.
MAX_VIA = 8
#: Logprobs of one prompt, the likeliest beside each token included: some 4 MB in the job's record.
MAX_PROMPT_LOGPROBS = 65_536

Reasoning = Literal["auto", "off", "on", "low", "medium", "high"]
#: Variables of a chat template that are ours to set; its own switches have other names.
RESERVED_ARGS = frozenset(
    {"messages", "tools", "tool_choice", "functions", "function_call", "add_generation_prompt"}
    | {"bos_token", "eos_token", "raise_exception", "strftime_now"}
)
TemplateArg = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]

#: How an instance computes: as fast as it can, or so that company, chunks and restarts change no bit of an answer.
Numerics = Literal["fast", "deterministic"]
#: What it does for that. `batched`: many sequences in a step, by kernels that compute each row alone. `serial`: one
#: sequence in a step, its prompt in fixed chunks, for models and builds where no such kernels can be had.
Recipe = Literal["fast", "batched", "serial"]

#: A class of service. Interactive jobs come first, bulk ones fill what is left.
Lane = Literal["interactive", "bulk"]

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
AdapterScale = Annotated[float, Field(ge=-MAX_ADAPTER_SCALE, le=MAX_ADAPTER_SCALE, allow_inf_nan=False)]

_M = TypeVar("_M", bound=BaseModel)


class SamplingParams(_Input):
    """How the next token is chosen. The names and meanings are llama.cpp's and OpenAI's."""

    prompt_logprobs: int | None = Field(
        None, ge=0, le=20, description="the same as `logprobs` for each token of the prompt, given those before it"
    )
    max_tokens: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="tokens to produce; null: what the slot holds; 0: none, only with prompt_logprobs",
    )
    temperature: float = Field(0.8, ge=0, le=5, description="0 takes the most likely token")
    top_k: int = Field(40, ge=0, le=100_000, description="keep the k most likely tokens; 0: all")
    top_p: float = Field(0.95, ge=0, le=1, description="keep the smallest set with this probability; 0: one token")
    min_p: float = Field(0.05, ge=0, le=1, description="drop tokens below this share of the likeliest")
    typical_p: float = Field(1.0, gt=0, le=1, description="locally typical sampling; 1: off")
    repeat_penalty: float = Field(1.0, gt=0, le=10, description="1: off")
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    penalty_last_n: int = Field(64, ge=0, le=8192, description="tokens that the penalties look back on")
    logit_bias: dict[int, float] = Field(default_factory=dict, description="token id to bias, -100 to 100")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="null: derived from the job id")
    stop: tuple[Annotated[Text, StringConstraints(min_length=1, max_length=256)], ...] = Field((), max_length=8)
    logprobs: int | None = Field(
        None, ge=0, le=20, description="give the logprob of each token, and of this many likeliest beside it"
    )
    ignore_eos: bool = Field(False, description="go on past the end-of-text token")
    response_format: ResponseFormat = Field(FreeText(), description="the form that the text must have")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_some(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("max_tokens")
    @classmethod
    def _something_is_asked_for(cls, value: int | None, known: ValidationInfo) -> int | None:
        if value == 0 and known.data.get("prompt_logprobs") is None:
            raise ValueError("asks for nothing; give at least 1, or prompt_logprobs to have the prompt scored")
        return value

    @model_validator(mode="after")
    def _form_has_an_end(self) -> Self:
        if self.ignore_eos and not isinstance(self.response_format, FreeText):
            raise ValueError("ignore_eos goes on past the end, a response_format ends with its text; use only one")
        return self

    @field_validator("logit_bias")
    @classmethod
    def _bias_in_range(cls, bias: dict[int, float]) -> dict[int, float]:
        if len(bias) > 1024:
            raise ValueError(f"has {len(bias)} entries, at most 1024 are allowed")
        for token, value in bias.items():
            if not (0 <= token < 2**31 and -100 <= value <= 100):
                raise ValueError(f"entry {token}: {value} is outside token ids >= 0 and -100 to 100")
        return bias


class JobSpec(_Input):
    """What a client asks for."""

    v: Literal[1] = 1
    kind: Literal["chat", "complete", "embed", "count"] = Field(
        "chat", description="`embed`: make a vector of the prompt; `count`: only count or list its tokens"
    )
    model: SafeId
    messages: tuple[Message, ...] = Field((), max_length=4096, description="for kind `chat`")
    prompt: Text = Field("", description="for kind `complete`: continued as it is, no template; for `embed`: its text")
    prompt_tokens: tuple[TokenId, ...] = Field(
        (), max_length=MAX_PROMPT_TOKENS, description="instead of `prompt`: its tokens, taken exactly as they are"
    )
    list_tokens: bool = Field(False, description="for kind `count`: give the tokens, too, each with its text")
    add_special: bool = Field(True, description="for kind `count`: put the model's own tokens around `prompt`")
    parse_special: bool = Field(False, description="for kind `count`: take special tokens in `prompt` for such")
    echo: bool = Field(False, description="for kind `complete`: the text of the answer begins with the prompt")
    suffix: Text = Field("", description="for kind `complete`: what stands behind the gap that is to be filled")
    dimensions: int | None = Field(None, ge=1, le=65_536, description="for kind `embed`: keep the first so many")
    tools: tuple[Tool, ...] = Field((), max_length=128, description="functions the model may call")
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = Field(True, description="false: at most one call in an answer")
    reasoning: Reasoning = Field("auto", description="auto: as the model's template has it")
    template_args: dict[TemplateArg, Text | bool | int | float] = Field(
        default_factory=dict, max_length=16, description="further variables for the model's chat template"
    )
    adapters: dict[SafeId, AdapterScale | None] = Field(
        default_factory=dict,
        max_length=MAX_ADAPTERS,
        description="LoRA adapters, name to scale; null: the set one",
    )
    params: SamplingParams = SamplingParams()
    lane: Lane = "interactive"
    user: SafeId = "default"
    deterministic: bool = Field(False, description="only where company, chunks and restarts change no bit of it")
    via: tuple[SafeId, ...] = Field(
        (), max_length=MAX_VIA, description="fleets that the job has come through, each by its id: see hops.py"
    )
    meant_for: SafeId | None = Field(None, description="the instance or node that alone may run it; null: any")
    stream: bool = Field(True, description="somebody reads the tokens as they come; false: they come once a second")
    expires_in_ms: int | None = Field(
        None, ge=1, le=7 * 24 * 3600 * 1000, description="ends as EXPIRED after this long"
    )
    max_run_ms: int | None = Field(
        None,
        ge=1,
        le=7 * 24 * 3600 * 1000,
        description="ends as EXPIRED this long after it first began to run, all attempts together",
    )

    @field_validator("template_args")
    @classmethod
    def _not_reserved(cls, args: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(RESERVED_ARGS & args.keys()):
            raise ValueError(f"{taken[0]!r} is set by Packtrain itself; leave it out")
        return args

    @model_validator(mode="after")
    def _has_one_prompt(self) -> Self:
        if (size := self.num_chars) > MAX_PROMPT_CHARS:
            raise ValueError(f"the prompt has {size} characters, at most {MAX_PROMPT_CHARS} are allowed")
        if self.kind == "chat" and self.prompt:
            raise ValueError("kind 'chat' takes `messages`, kind 'complete' takes `prompt`; do not mix them")
        if self.kind in ("complete", "embed") and self.messages:
            raise ValueError(f"kind {self.kind!r} takes `prompt`, kind 'chat' takes `messages`; do not mix them")
        if self.prompt and self.messages:
            raise ValueError("kind 'count' takes `messages` or `prompt`, not both")
        if self.suffix and self.messages:
            raise ValueError("`suffix` belongs to a `prompt`; a chat has no gap to fill")
        if self.suffix and self.kind == "embed":
            raise ValueError("kind 'embed' takes `prompt` alone; a vector has no gap to fill")
        if self.kind != "embed" and self.dimensions is not None:
            raise ValueError(f"kind {self.kind!r} has no `dimensions`, they are of kind 'embed'; leave them out")
        if self.echo and (self.kind != "complete" or self.suffix):
            raise ValueError("`echo` is of kind 'complete' without `suffix`; leave it out")
        if self.kind in ("embed", "count") and self.params.prompt_logprobs is not None:
            raise ValueError(f"kind {self.kind!r} computes no logprobs; leave prompt_logprobs out")
        return self

    @model_validator(mode="after")
    def _tokens_fit(self) -> Self:
        if self.prompt_tokens and self.kind == "chat":
            raise ValueError(
                "kind 'chat' takes `messages`; `prompt_tokens` are of kinds 'complete', 'embed' and 'count'"
            )
        if self.prompt_tokens and (self.prompt or self.suffix or self.messages):
            raise ValueError("`prompt_tokens` are the whole prompt; leave `prompt`, `suffix` and `messages` out")
        if self.kind != "count" and self.list_tokens:
            raise ValueError(f"kind {self.kind!r} lists no tokens; `list_tokens` is of kind 'count', leave it out")
        is_text = self.kind == "count" and not (self.messages or self.prompt_tokens or self.suffix)
        if not is_text and (self.parse_special or not self.add_special):
            raise ValueError("`add_special` and `parse_special` are of kind 'count' with a `prompt`; leave them out")
        return self

    @model_validator(mode="after")
    def _adapters_fit(self) -> Self:
        if self.adapters and self.kind == "embed":
            raise ValueError("kind 'embed' takes no `adapters`; vectors are made by the model as it is")
        # llama.cpp keeps them by their addresses, so it adds them up in another order in each process.
        if self.deterministic and len(self.adapters) > 1:
            raise ValueError("a deterministic job takes one of `adapters` at most; the order of several is not fixed")
        return self

    @model_validator(mode="after")
    def _tools_fit(self) -> Self:
        names = [tool.function.name for tool in self.tools]
        if names and not self.is_chat:
            raise ValueError("`tools` need `messages`; a plain prompt goes to the model without its template")
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name; give each its own")
        check_json(
            [tool.function.parameters for tool in self.tools], max_chars=MAX_TOOLS_CHARS, max_depth=MAX_TOOL_DEPTH + 1
        )
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is none of the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice 'required' needs `tools`")
        if self.tool_choice not in ("auto", "none") and not isinstance(self.params.response_format, FreeText):
            raise ValueError("a forced tool call has its own form; leave response_format out, or tool_choice")
        if self.tool_choice not in ("auto", "none") and self.params.ignore_eos:
            raise ValueError("ignore_eos goes on past the end, a call that must be made ends; use only one")
        return self

    @property
    def num_chars(self) -> int:
        """Characters of the prompt, all turns together; 0 for one of tokens."""
        return len(self.prompt) + len(self.suffix) + sum(message.size for message in self.messages)

    @property
    def is_chat(self) -> bool:
        """True when the prompt is made by the model's chat template."""
        return self.kind == "chat" or bool(self.messages)

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to answer."""
        if not self.is_chat:
            return not (self.prompt or self.suffix or self.prompt_tokens)
        last = self.messages[-1] if self.messages else None
        return last is None or (last.role != "tool" and not last.content.strip() and not last.tool_calls)

    def to_json(self) -> str:
        """The request without what says nothing, so that it weighs little while it waits.

        Not pydantic's `exclude_defaults`: it drops the `type` that tells one form or tool from another, too.
        """
        fields = self.model_dump(mode="json", exclude=_at_default(self) | {"params"})
        if params := self.params.model_dump(mode="json", exclude=_at_default(self.params)):
            fields["params"] = params
        if self.messages:
            fields["messages"] = [
                {name: value for name, value in turn.items() if value or name == "content"}
                for turn in fields["messages"]
            ]
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))

    def digest(self) -> str:
        """A hash of the request, to tell a repeated request from another one under the same idempotency key."""
        # A field that came later counts only when it says something: or no repeated request would survive an update.
        silent = _LATER_FIELDS & _at_default(self)
        return hashlib.sha256(self.model_dump_json(exclude={"stream", *silent}).encode()).hexdigest()[:32]


#: Of `JobSpec`, those that the first requests did not have.
_LATER_FIELDS = {"max_run_ms", "via", "prompt_tokens", "list_tokens", "add_special", "parse_special"}


def _at_default(message: BaseModel) -> set[str]:
    fields = type(message).model_fields.items()
    return {name for name, field in fields if getattr(message, name) == field.get_default(call_default_factory=True)}


def parse_spec(fields: dict[str, Any]) -> JobSpec:
    """A checked `JobSpec` from untrusted fields.

    Raises:
        InvalidParameter: A field is wrong; the message names it, its value and the rule.
        PromptEmpty: There is nothing to answer.
    """
    try:
        spec = JobSpec.model_validate(fields)
    except ValidationError as error:
        raise invalid(error) from None
    if spec.is_empty:
        raise PromptEmpty()
    return spec


def invalid(error: ValidationError) -> InvalidParameter:
    """pydantic's first complaint as one sentence for a person."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "request"
    shown = repr(first.get("input"))
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return InvalidParameter(f"{where} = {shown}: {first['msg']}; correct this field", field=where)


class Usage(_Report):
    """Tokens of one job."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reused_tokens: int = Field(0, description="prompt tokens that were in a cache already")
    cost: float | None = Field(None, description="of a remote answer, by the prices in packtrain.toml; null: not known")


class Timings(_Report):
    """Where the time of one job went, in milliseconds."""

    queue_ms: float = Field(0, description="submit to claim")
    first_token_ms: float | None = Field(None, description="claim to first token; null: none came")
    run_ms: float = Field(0, description="claim to end")


class Piece(_Report):
    """A token and what it stands for. A character may be split between tokens, so the pieces of a text are bytes."""

    token: int
    text: str = Field("", description="with U+FFFD in it where the bytes are no UTF-8")
    raw: str | None = Field(
        None, exclude_if=lambda raw: raw is None, description="the bytes, as hex digits, where they are no UTF-8"
    )

    @property
    def data(self) -> bytes:
        """The bytes. Those of neighbours make up the text."""
        return self.text.encode() if self.raw is None else bytes.fromhex(self.raw)


def piece_fields(token: int, data: bytes) -> dict[str, Any]:
    """The fields of a `Piece` of these bytes."""
    try:
        return {"token": token, "text": data.decode()}
    except UnicodeDecodeError:
        return {"token": token, "text": data.decode("utf-8", "replace"), "raw": data.hex()}


def text_of(pieces: Iterable[Piece]) -> str:
    """The text that pieces make up; U+FFFD for what is no UTF-8 even together."""
    return b"".join(piece.data for piece in pieces).decode("utf-8", "replace")


class Logprob(Piece):
    """What the model thought of a token: a natural logarithm, before temperature and all other samplers."""

    logprob: float


class TokenLogprob(Logprob):
    """The same of an output token, with the likeliest ones beside it."""

    top: tuple[Logprob, ...] = Field((), description="likeliest first")


class UsedAdapter(_Report):
    """A LoRA adapter that took part in an answer."""

    name: str
    scale: float
    sha256: str = Field("", description="of its file")


class PromptLogprob(Piece):
    """The same of a prompt token, given those before it."""

    logprob: float | None = Field(None, description="null: the first one, which follows nothing")
    top: tuple[Logprob, ...] = Field((), description="likeliest first")


class Receipt(_Report):
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
    remote: str = Field(
        "",
        description="host and model of the server that answered: nothing about its answer is proven, and all else but "
        "the seed is empty",
    )


class Outcome(_Report):
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


class Cause(_Report):
    """Why a job lost the instance that ran it. The tail is what the instance wrote last, never a prompt."""

    instance: str = ""
    reason: str = Field("", description="how it ended, as half a sentence: 'was killed by SIGABRT'")
    exit_code: int | None = Field(None, description="of its process; null: not known, or it ended by a signal")
    signal: str = Field("", description="that ended its process, such as SIGABRT")
    tail: tuple[str, ...] = Field((), description="last lines of its log")

    def __str__(self) -> str:
        last = next((line for line in reversed(self.tail) if line.strip()), "")
        return f"{self.reason}; last words: {last[:300]}" if last else self.reason


class JobStatus(_Report):
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
    cause: Cause | None = Field(None, description="of the last attempt that was lost")
    outcome: Outcome | None = None


class BufferMemory(_Report):
    """What a model keeps in one kind of buffer, bytes."""

    buffer: str = Field("CPU", description="llama.cpp's name: CPU, CPU_REPACK (weights in another order), CUDA0")
    on_host: bool = Field(True, description="in the memory that the node's budget is about")
    weights: int = 0
    cache: int = Field(0, description="KV and recurrent state of all slots")
    compute: int = Field(0, description="scratch space of one step")


class ModelMemory(_Report):
    """What an instance of a model takes, before anything is loaded; and what one took, where one was. Bytes."""

    source: Literal["header", "llama.cpp"] = Field("header", description="who says so")
    process_bytes: int = Field(0, description="Python, libraries and vocabulary")
    logits_bytes: int = Field(0, description="of as many rows as one step may ask for")
    work_bytes: int = Field(0, description="inputs of one matrix product in the format of its weights")
    adapter_bytes: int = Field(0, description="weights of all its LoRA adapters")
    buffers: tuple[BufferMemory, ...] = ()
    measured_bytes: int = Field(0, description="most that an instance like this took on this node; 0: none was loaded")
    factor: float = Field(1, description="measured by estimated, of the same model with other slots or context")

    def host(self, part: Literal["weights", "cache", "compute"]) -> int:
        """Bytes of one part in the machine's own memory."""
        return sum(int(getattr(buffer, part)) for buffer in self.buffers if buffer.on_host)

    @property
    def scratch_bytes(self) -> int:
        """What is taken by the first steps, not by the load."""
        return self.host("compute") + self.logits_bytes + self.work_bytes

    @property
    def estimated_bytes(self) -> int:
        """In the machine's own memory, before any correction."""
        loaded = self.process_bytes + self.host("weights") + self.host("cache")
        return loaded + self.adapter_bytes + self.scratch_bytes

    @property
    def required_bytes(self) -> int:
        """What to reserve: what it took before, else the estimate as others of this model correct it."""
        return self.measured_bytes or round(self.estimated_bytes * self.factor)


class AdapterInfo(_Report):
    """A LoRA adapter of a model, as packtrain.toml names it."""

    name: SafeId
    file: str = Field("", description="file name, for people; never a path")
    scale: float = Field(1, description="of jobs that name it without one")
    weights_bytes: int = 0
    fault: str = Field("", description="why it cannot be used; empty: it can")


class ModelInfo(_Report):
    """One model as a node's catalog describes it. Sizes in bytes."""

    v: Literal[1] = 1
    id: SafeId
    alias_of: str = Field("", description="this id is only another name of that model; the other fields are unset")
    targets: tuple[SafeId, ...] = Field((), description="of an alias: models that may answer, the preferred one first")
    spill_after_s: float | None = Field(
        None, description="of an alias: jobs that would wait longer go to the next target; null: only after a failure"
    )
    remote: str = Field("", description="host and model name of the server that answers; empty: it is loaded here")
    file: str = Field("", description="file name, for people; never a path")
    architecture: str = ""
    quantization: str = ""
    parameters: int = 0
    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    n_ctx_train: int = 0
    n_layer: int = 0
    n_head_kv: int = 0
    has_chat_template: bool = False
    embeds_only: bool = Field(False, description="it makes vectors of texts, and answers nothing")
    n_ctx: int = Field(4096, description="context of one slot, tokens")
    n_slots: int = 8
    reserved_slots: int = Field(0, description="that bulk jobs leave to interactive ones")
    required_bytes: int = Field(0, description="of the machine's own memory, in all: measured, else estimated")
    memory: ModelMemory = ModelMemory()
    numerics: Numerics = Field("fast", description="how it is loaded when no job asks for more")
    options: dict[str, Any] = Field(default_factory=dict, description="load options that are not the defaults")
    adapters: tuple[AdapterInfo, ...] = ()
    keep_alive_s: float = Field(300, description="unload after this long without a job; negative: never")
    pinned: bool = False
    min_replicas: int = Field(0, description="keep at least this many loaded, job or no job")
    max_replicas: int = Field(0, description="load no more than this by ourselves; 0: one on each node")
    nodes: dict[str, str] = Field(default_factory=dict, description="labels that a node must have to load it")
    file_bytes: int = Field(0, description="of all its files; 0: not known")
    fetchable: bool = Field(False, description="another node may read its files from here")

    def offer(self) -> ModelInfo:
        """What placement needs of it, which is a tenth of the bytes."""
        return self.model_copy(update={"memory": ModelMemory(), "adapters": (), "options": {}})


class ModelFault(_Report):
    """A file in a model folder that cannot be offered, and why."""

    file: str
    reason: str


class DeviceMemory(_Report):
    """One memory of a node, bytes."""

    kind: Literal["ram", "gpu"]
    name: str
    total: int = 0
    free: int = 0
    unified: bool = Field(False, description="machine and GPU share it")


class NodeBeat(_Report):
    """What an agent says of its node every 2 s. Sizes in bytes."""

    v: Literal[1] = 1
    node: SafeId
    pid: int = 0
    cores: int = 1
    memory_total: int = 0
    memory_free: int = 0
    memory_budget: int = Field(0, description="what instances may use together")
    devices: tuple[DeviceMemory, ...] = Field((), description="the machine's memory first, then each GPU's own")
    models: tuple[str, ...] = ()
    faults: tuple[ModelFault, ...] = ()
    not_deterministic: dict[str, str] = Field(
        default_factory=dict, description="models that cannot be so here, and why"
    )
    instances: tuple[str, ...] = ()
    term_seen: int = 0
    draining: bool = Field(False, description="it takes no new instance, and those it has leave")
    quarantine: str = Field("", description="why nothing is loaded here any more; empty: it is fine")
    labels: dict[str, str] = Field(default_factory=dict, description="what a model's selector may ask for")
    disk_free: int = Field(0, description="where its model files are")
    files_url: str = Field("", description="where other nodes may read its model files; empty: nowhere")
    loopback: str = Field("", description="equal for nodes that reach each other at 127.0.0.1")
    version: str = ""

    @cached_property
    def files_scope(self) -> str | None:
        """Who reaches its model files: "" everybody, else nodes with this `loopback`; None: nobody."""
        if not self.files_url:
            return None
        host = urlsplit(self.files_url).hostname
        if host and (host.startswith("127.") or host in ("::1", "localhost")):
            return self.loopback or None
        return "" if host else None

    def serves_files_to(self, loopback: str) -> bool:
        """Whether a node with this `loopback` reaches its model files."""
        return self.files_scope in ("", loopback)


class InstanceBeat(_Report):
    """What is known of one instance. Written by the coordinator when REQUESTED, by its agent from then on."""

    v: Literal[1] = 1
    instance: SafeId
    model: SafeId
    node: SafeId
    state: InstanceState
    reason: str = Field("", description="why FAILED, LOST or DRAINING; how far a FETCHING one is")
    pid: int = 0
    n_slots: int = 0
    reserved_slots: int = Field(0, description="of these, that bulk jobs leave to interactive ones")
    n_ctx: int = 0
    numerics: Numerics = "fast"
    recipe: Recipe | None = Field(None, description="what it does for its numerics; null: not loaded yet")
    numerics_class: str = Field("", description="equal where a begun job may go on; empty: not loaded yet")
    reserved_bytes: int = 0
    resident_bytes: int = 0
    slots_used: int = 0
    steps: int = Field(0, description="decode calls so far")
    batch_peak: int = Field(0, description="most sequences in one step so far")
    tokens_out: int = 0
    tokens_per_s: float = 0
    job_s: float = Field(0, description="smoothed, that a job holds a slot; before the first ended, how long so far")
    threads: int = Field(0, description="that a step computes with; of an idle instance: that it would begin with")
    requested_ms: int = 0
    ready_ms: int = 0
    last_used_ms: int = 0
    ended_ms: int = Field(0, description="when its process was seen gone")
    out_of_memory: bool = Field(False, description="it FAILED, as far as can be told, for want of memory")


class NodeCommand(_Report):
    """An order from the leading coordinator to one agent. Idempotent: `id` names the intent."""

    v: Literal[1] = 1
    id: str
    term: int
    verb: Literal["load", "unload"]
    instance: SafeId
    model: SafeId
    n_slots: int = 0
    n_ctx: int = 0
    numerics: Numerics = "fast"
    reserved_bytes: int = 0
    fetch_from: str = Field("", description="node that has the model's file, when this one has not; empty: it has")
    reason: str = ""


class Desired(_Report):
    """What an operator asked for by `packtrain load` and `packtrain unload`."""

    replicas: int = Field(0, description="keep at least this many loaded")
    asked_ms: int = Field(0, description="when that was asked for: loads that failed before do not count any more")
    unload_before_ms: int = Field(0, description="unload instances requested before this moment")


def dump_hash(message: BaseModel) -> dict[str, str]:
    """A message as the fields of a Redis hash: each value is JSON."""
    return {name: json.dumps(value) for name, value in message.model_dump(mode="json").items()}


def load_hash(cls: type[_M], fields: dict[str, str]) -> _M:
    """The message again from the fields of a Redis hash."""
    return cls.model_validate({name: json.loads(value) for name, value in fields.items()})
