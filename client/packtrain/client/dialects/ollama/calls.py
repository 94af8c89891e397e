"""From Ollama's requests to those of OpenAI's chats, completions and embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from packtrain.broker.errors import InvalidParameter
from packtrain.client.dialects.ollama.bodies import ChatBody, EmbedBody, EmbeddingsBody, GenerateBody, GenerationBody
from packtrain.client.dialects.ollama.turns import turns_of
from packtrain.client.dialects.translating import extras_in, given
from packtrain.client.openai import Call, parse_call

_CHAT, _COMPLETION, _EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
#: Options that OpenAI's requests have by the same name here. All others change nothing.
_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop"),
    *("repeat_penalty", "presence_penalty", "frequency_penalty"),
)


def chat_call(body: ChatBody, *, user: str | None = None) -> Call:
    """POST /api/chat as a job.

    Raises:
        InvalidParameter, PromptEmpty, UnknownModel
    """
    return parse_call(_CHAT, _chat(body, turns_of(body.messages)) | given(tools=body.tools or None), user=user)


def generate_call(body: GenerateBody, *, user: str | None = None) -> Call:
    """POST /api/generate as a job: a chat of one turn, or with `raw` or `suffix` a text that goes on.

    Raises:
        InvalidParameter, PromptEmpty, UnknownModel
    """
    if not (body.raw or body.suffix):
        turns = [{"role": "system", "content": body.system}] if body.system else []
        return parse_call(
            _CHAT,
            _chat(body, [*turns, *turns_of([{"role": "user", "content": body.prompt, "images": body.images}])]),
            user=user,
        )
    if body.images:
        raise InvalidParameter("images need a template; leave out raw and suffix, or the images", field="images")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    asked = _common(body) | given(prompt=body.prompt, suffix=body.suffix, logprobs=logprobs)
    return parse_call(_COMPLETION, asked, user=user)


def embed_call(body: EmbedBody | EmbeddingsBody, *, user: str | None = None) -> Call:
    """POST /api/embed, or its old form, as jobs.

    Raises:
        InvalidParameter, PromptEmpty, UnknownModel
    """
    if isinstance(body, EmbeddingsBody):
        asked = {"input": body.prompt}
    else:
        asked = given(input=body.input, dimensions=body.dimensions)
    return parse_call(_EMBEDDING, extras_in(body) | asked, user=user)


def load_call(body: GenerationBody, *, user: str | None = None) -> Call:
    """A job that does nothing but have an instance of the model loaded: it counts the tokens of a space.

    Raises:
        UnknownModel
    """
    call = parse_call(_COMPLETION, extras_in(body) | {"prompt": " "}, user=user)
    return replace(call, specs=tuple(spec.model_copy(update={"kind": "count"}) for spec in call.specs))


def _chat(body: GenerationBody, turns: list[dict[str, Any]]) -> dict[str, Any]:
    logprobs = given(logprobs=True, top_logprobs=body.top_logprobs) if body.logprobs else {}
    return _common(body) | {"messages": turns} | _thinking(body.think) | logprobs


def _common(body: GenerationBody) -> dict[str, Any]:
    options = body.options or {}
    asked = extras_in(body) | {"stream": body.stream}
    asked |= {name: options[name] for name in _SAMPLING if options.get(name) is not None}
    limit = options.get("num_predict")
    if limit is not None and not (isinstance(limit, int | float) and limit < 0):  # -1, -2: what the context holds
        asked["max_tokens"] = limit
    return asked | given(response_format=_form(body.format))


def _thinking(think: bool | str | None) -> dict[str, Any]:
    if isinstance(think, str):
        return {"reasoning_effort": think}
    if think is None:
        return {}
    return {"chat_template_kwargs": {"enable_thinking": True}} if think else {"reasoning_effort": "none"}


def _form(form: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not form:
        return None
    if isinstance(form, Mapping):
        return {"type": "json_schema", "json_schema": {"name": "format", "schema": dict(form)}}
    if form != "json":
        raise InvalidParameter(f"format = {form!r} is neither 'json' nor a schema; send one of them", field="format")
    return {"type": "json_object"}
