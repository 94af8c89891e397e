"""From a job to the request for an OpenAI-compatible server. Pure.

Only what the job says goes along: parameters at Packtrain's own defaults are left out, so those of the server hold,
which refuses what it cannot have. What no such server could keep is refused here, by name: a job is never answered as
if it had asked for less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from packtrain.broker.chat import Message
from packtrain.broker.errors import InvalidRequest
from packtrain.broker.images import data_uri
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.media import MediaRef, unjoined
from packtrain.broker.sampling import SamplingParams
from packtrain.broker.sounds import part_of_sound
from packtrain.broker.structured import FreeText, JsonObject, JsonSchema, ResponseFormat

#: What llama.cpp's servers, ours among them, call what OpenAI has no name for; others refuse or ignore it.
_NAMES = {"penalty_last_n": "repeat_last_n"}
#: Of the sampling parameters those that are no field of a request, or one of another form.
_OTHERS = frozenset({"response_format", "logprobs", "prompt_logprobs", "stop", "logit_bias"})
_EFFORTS = {"off": "none", "on": "medium", "low": "low", "medium": "medium", "high": "high"}


@dataclass(frozen=True, slots=True)
class RemoteRequest:
    """What is sent, and in which form the answer comes."""

    path: str  # below the API's URL
    body: dict[str, Any]
    form: Literal["chat", "text", "vector"]


#: The bytes of an image or a sound, by its hash.
Bytes = Callable[[str], bytes]


def request_of(spec: JobSpec, model: str, bytes_of: Bytes | None = None) -> RemoteRequest:
    """The request for a job.

    Args:
        model: Its name at the server.
        bytes_of: Of its media; None: the server is sent none.

    Raises:
        InvalidRequest: No server of this kind could do it.
    """
    if reason := _why_not(spec, sends_media=bytes_of is not None):
        raise InvalidRequest(f"{spec.model!r} is answered by another server, which {reason}", model=spec.model)
    if spec.kind == "embed":
        body: dict[str, Any] = {
            "model": model,
            "input": list(spec.prompt_tokens) or spec.prompt,
            "encoding_format": "float",
        }
        if spec.dimensions is not None:
            body["dimensions"] = spec.dimensions
        return RemoteRequest("/embeddings", body, "vector")
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    if not spec.is_chat:
        body = {
            "model": model,
            "prompt": list(spec.prompt_tokens) or spec.prompt,
            **stream,
            **_sampling(spec.params, is_chat=False),
        }
        if spec.suffix:
            body["suffix"] = spec.suffix
        if spec.echo:
            body["echo"] = True
        return RemoteRequest("/completions", body, "text")
    body = {"model": model, "messages": [_turn(message, bytes_of) for message in spec.messages], **stream}
    body |= _sampling(spec.params, is_chat=True)
    if spec.tools:
        body["tools"] = [tool.model_dump(mode="json", exclude_none=True) for tool in spec.tools]
        choice = spec.tool_choice
        if choice != "auto":
            body["tool_choice"] = choice if isinstance(choice, str) else choice.model_dump(mode="json")
        if not spec.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    if spec.reasoning != "auto":
        body["reasoning_effort"] = _EFFORTS[spec.reasoning]
    if spec.template_args:
        body["chat_template_kwargs"] = dict(spec.template_args)
    return RemoteRequest("/chat/completions", body, "chat")


def _why_not(spec: JobSpec, *, sends_media: bool) -> str:
    """What no server of this kind can do, with the remedy; empty: all is well."""
    form = spec.params.response_format
    if spec.deterministic:
        return "proves nothing of its answers; leave `deterministic` out, or ask a model that is loaded here"
    if spec.kind == "count":
        return "tells how many tokens a prompt has only with its answer; see `usage` there"
    if spec.params.prompt_logprobs is not None:
        return "scores no prompts; leave prompt_logprobs out, or ask a model that is loaded here"
    if spec.adapters:
        return "knows none of our adapters; leave them out, or ask a model that is loaded here"
    if spec.media and not sends_media:
        return "is sent no images or sounds; ask a model that takes them"
    if not isinstance(form, FreeText | JsonObject | JsonSchema):
        return "takes no grammar; give a JSON schema, or ask a model that is loaded here"
    if isinstance(form, JsonSchema) and (form.prefix or form.suffix):
        return "takes no text around a schema's JSON; leave prefix and suffix out"
    if spec.kind == "complete" and not isinstance(form, FreeText):
        return "keeps to a form only in chats; send messages, or ask a model that is loaded here"
    return ""


def _sampling(params: SamplingParams, *, is_chat: bool) -> dict[str, Any]:
    """What of the sampling parameters is not as it is by default."""
    fields = SamplingParams.model_fields
    body = {
        _NAMES.get(name, name): value
        for name, value in params
        if name not in _OTHERS and value != fields[name].get_default(call_default_factory=True)
    }
    if params.stop:
        body["stop"] = list(params.stop)
    if params.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    if params.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": params.logprobs} if is_chat else {"logprobs": params.logprobs}
    if form := _form(params.response_format):
        body["response_format"] = form
    return body


def _form(form: ResponseFormat) -> dict[str, Any]:
    if isinstance(form, JsonSchema):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.schema, "strict": True}}
    return {"type": "json_object"} if isinstance(form, JsonObject) else {}


def _turn(message: Message, bytes_of: Bytes | None) -> dict[str, Any]:
    """A turn in OpenAI's shape: without what it does not have."""
    fields = message.model_dump(mode="json", exclude_none=True, exclude={"media"})
    if message.media and bytes_of:
        fields["content"] = [_part(part, bytes_of) for part in unjoined(message.content, message.media)]
    if not message.tool_calls:
        fields.pop("tool_calls", None)
    elif not message.content:
        fields["content"] = None
    if not message.reasoning_content:
        fields.pop("reasoning_content", None)
    return fields


def _part(part: str | MediaRef, bytes_of: Bytes) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = bytes_of(part.sha256)
    return part_of_sound(data) if part.kind == "audio" else {"type": "image_url", "image_url": {"url": data_uri(data)}}
