"""`JobSpec`: what a client asks for, frozen and checked on arrival."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, StringConstraints, ValidationError, field_validator, model_validator

from packtrain.broker.chat import MAX_TOOL_DEPTH, Message, NamedTool, Tool, ToolChoice
from packtrain.broker.errors import PromptEmpty
from packtrain.broker.fields import Input, SafeId, Text, check_json, invalid
from packtrain.broker.media import MAX_MEDIA, MAX_MEDIA_BYTES, MediaRef
from packtrain.broker.sampling import SamplingParams
from packtrain.broker.structured import FreeText

#: Characters of one prompt, all messages together. Far above any context, far below what hurts the broker.
MAX_PROMPT_CHARS = 4 * 1024 * 1024
#: Token ids of one prompt: as many as fit in the same room.
MAX_PROMPT_TOKENS = MAX_PROMPT_CHARS // 4
#: Characters of all tools' schemas together, as JSON.
MAX_TOOLS_CHARS = 512 * 1024
#: Adapters of one job.
MAX_ADAPTERS = 4
#: Fleets that one job may be sent through.
MAX_VIA = 8
MAX_ADAPTER_SCALE = 100.0

Reasoning = Literal["auto", "off", "on", "low", "medium", "high"]
#: Variables of a chat template that are ours to set; its own switches have other names.
RESERVED_ARGS = frozenset(
    {"messages", "tools", "tool_choice", "functions", "function_call", "add_generation_prompt"}
    | {"bos_token", "eos_token", "raise_exception", "strftime_now"}
)
TemplateArg = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]

#: A class of service. Interactive jobs come first, bulk ones fill what is left.
Lane = Literal["interactive", "bulk"]

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
AdapterScale = Annotated[float, Field(ge=-MAX_ADAPTER_SCALE, le=MAX_ADAPTER_SCALE, allow_inf_nan=False)]


class JobSpec(Input):
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
    tag: SafeId | None = Field(None, description="what it is counted under beside its user: a project, a nightly run")
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
        if self.media and self.params.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs are of texts; leave them out, or images and sounds")
        if (count := len(self.media)) > MAX_MEDIA:
            raise ValueError(f"the chat has {count} images and sounds, at most {MAX_MEDIA} are taken in one job")
        if (total := sum(len(ref.data or b"") for ref in self.media)) > MAX_MEDIA_BYTES:
            raise ValueError(f"images and sounds have {total} bytes together, a job takes at most {MAX_MEDIA_BYTES}")
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
    def media(self) -> tuple[MediaRef, ...]:
        """Of all turns, in order."""
        return tuple(ref for message in self.messages for ref in message.media)

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
        return last is None or (
            last.role != "tool" and not last.content.strip() and not last.tool_calls and not last.media
        )

    def to_json(self, *, with_media: bool = False) -> str:
        """The request without what says nothing, so that it weighs little while it waits.

        Only `with_media` has it the bytes of its media, as far as they are known here. Not pydantic's
        `exclude_defaults`: it drops the `type` that tells one form or tool from another, too.
        """
        fields = self.model_dump(mode="json", exclude=_at_default(self) | {"params"})
        if params := self.params.model_dump(mode="json", exclude=_at_default(self.params)):
            fields["params"] = params
        if self.messages:
            fields["messages"] = [
                {name: value for name, value in turn.items() if value or name == "content"}
                for turn in fields["messages"]
            ]
            for turn, message in zip(fields["messages"], self.messages, strict=True):
                if with_media and message.media:
                    turn["media"] = [ref.with_data() for ref in message.media]
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))

    def digest(self) -> str:
        """A hash of the request, to tell a repeated request from another one under the same idempotency key."""
        # A field that came later counts only when it says something: or no repeated request would survive an update.
        silent = _LATER_FIELDS & _at_default(self)
        exclude: dict[str, Any] = {"stream": True, **dict.fromkeys(silent, True)}
        if not self.media:
            exclude["messages"] = {"__all__": {"media"}}
        return hashlib.sha256(self.model_dump_json(exclude=exclude).encode()).hexdigest()[:32]


#: Of `JobSpec`, those that the first requests did not have.
_LATER_FIELDS = {"max_run_ms", "via", "prompt_tokens", "list_tokens", "add_special", "parse_special", "tag"}


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
