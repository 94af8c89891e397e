"""From the body of a request to checked jobs: one for each prompt and choice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from packtrain.broker.errors import InvalidParameter, UnknownModel
from packtrain.broker.fields import invalid
from packtrain.broker.ids import is_safe_id
from packtrain.broker.job_spec import MAX_PROMPT_CHARS, JobSpec, parse_spec
from packtrain.client.openai.bodies import Body, ChatBody, CompletionBody, EmbeddingBody, Generation, StreamOptions
from packtrain.client.openai.chat_form import ChatForm
from packtrain.client.openai.completion_form import CompletionForm
from packtrain.client.openai.embedding_form import EmbeddingForm
from packtrain.client.openai.forms import Form
from packtrain.client.openai.turns import chat_fields
from packtrain.client.request import choice_seeds

#: Prompts of one request, times its choices: each is a job.
MAX_JOBS = 2048
#: Characters of one prompt, times its choices: what one request may put into the broker's memory.
MAX_CHARS = 4 * MAX_PROMPT_CHARS

B = TypeVar("B", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call:
    """A request, understood."""

    specs: tuple[JobSpec, ...]  # prompt by prompt, the choices of one beside each other
    form: Form  # of its answer
    stream: bool = False
    stream_options: StreamOptions = field(default_factory=StreamOptions)
    idempotency_key: str | None = None
    max_wait_s: float | None = None  # refuse it rather than begin later; None: it waits

    @property
    def model(self) -> str:
        """The model, as it was asked for."""
        return self.specs[0].model

    def come_through(self, fleets: tuple[str, ...]) -> Call:
        """The same, sent here by another fleet: see hops.py."""
        return replace(self, specs=tuple(s.model_copy(update={"via": fleets}) for s in self.specs)) if fleets else self

    def keys(self) -> Iterator[str | None]:
        """The idempotency key of each job."""
        for index in range(len(self.specs)):
            yield f"{self.idempotency_key}\0{index}" if self.idempotency_key and index else self.idempotency_key


def parse_call(
    url: str, body: Mapping[str, Any], *, user: str | None = None, lane: str | None = None, known: Sequence[str] = ()
) -> Call:
    """A request to one of OpenAI's endpoints as jobs.

    Args:
        url: `/v1/chat/completions`, `/v1/completions` or `/v1/embeddings`.
        body: Untrusted.
        user: Whose jobs they are; None: who the body names.
        lane: Where it does not say; None: interactive.
        known: Models to name when the one asked for can be none.

    Raises:
        InvalidParameter, PromptEmpty, UnknownModel
    """
    match url.removeprefix("/v1"):
        case "/chat/completions":
            return _chat(checked(ChatBody, body), user, lane, known)
        case "/completions":
            return _completion(checked(CompletionBody, body), user, lane, known)
        case "/embeddings":
            return _embedding(checked(EmbeddingBody, body), user, lane, known)
    raise InvalidParameter(
        f"url = {url!r} takes no jobs; use /v1/chat/completions, /v1/completions or /v1/embeddings", field="url"
    )


def checked(kind: type[B], body: Mapping[str, Any]) -> B:
    """The body in its shape.

    Raises:
        InvalidParameter: A field is missing or of another type.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise invalid(error) from None


def _chat(body: ChatBody, user: str | None, lane: str | None, known: Sequence[str]) -> Call:
    fields = _common(body, user, lane, known) | chat_fields(body)
    tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    params = _sampling(body) | _given(
        max_tokens=_bounded(tokens), response_format=_text_form(body, body.response_format)
    )
    if body.logprobs or body.top_logprobs:
        params["logprobs"] = body.top_logprobs or 0
    form = ChatForm(
        body.n, wants_logprobs="logprobs" in params, calls_functions=bool(body.functions and not body.tools)
    )
    return _generation(body, [fields], params, form)


def _completion(body: CompletionBody, user: str | None, lane: str | None, known: Sequence[str]) -> Call:
    if body.best_of is not None and body.best_of > body.n:
        raise InvalidParameter(
            f"best_of = {body.best_of} with n = {body.n}: answers are not chosen among others here; "
            "give n alone and choose yourself",
            field="best_of",
        )
    fields = _common(body, user, lane, known) | {"kind": "complete"} | _given(suffix=body.suffix or None)
    if body.echo:
        fields["echo"] = True
    params = _sampling(body) | _given(
        max_tokens=_bounded(body.max_tokens),
        logprobs=body.logprobs,
        response_format=_text_form(body, body.response_format),
    )
    if body.echo and body.logprobs is not None:
        params["prompt_logprobs"] = body.logprobs
        if body.max_tokens == 1 and "response_format" not in params:
            # lm-eval scores a prompt so, and drops the last entry as the answer's: there must be one, not an end.
            params["ignore_eos"] = True
    form = CompletionForm(body.n, echo=body.echo, scores_prompt=body.echo and body.logprobs is not None)
    prompts = [fields | prompt for prompt in _prompts(body.prompt, "prompt")]
    return _generation(body, prompts, params, form)


def _embedding(body: EmbeddingBody, user: str | None, lane: str | None, known: Sequence[str]) -> Call:
    fields = _common(body, user, lane, known) | {"kind": "embed", "stream": False} | _given(dimensions=body.dimensions)
    prompts = _prompts(body.input, "input")
    _check_jobs(len(prompts), 1)
    specs = tuple(parse_spec(fields | prompt) for prompt in prompts)
    return Call(
        specs, EmbeddingForm(body.encoding_format), idempotency_key=body.idempotency_key, max_wait_s=body.max_wait
    )


def _generation(body: Generation, prompts: Sequence[Mapping[str, Any]], params: dict[str, Any], form: Form) -> Call:
    _check_jobs(len(prompts), body.n)
    seed = params.get("seed")
    # Of one choice the seed is as the client gave it, or the job's own; several need different ones.
    seeds: Sequence[int | None] = [seed]
    if body.n > 1:
        seeds = choice_seeds(body.n, _seed_of(body.idempotency_key) if seed is None else seed)
    adapters = dict.fromkeys(body.adapters) if isinstance(body.adapters, list) else body.adapters
    every = {"stream": body.stream} | _given(adapters=adapters)
    specs: list[JobSpec] = []
    for fields in prompts:
        spec = parse_spec({**fields, **every, "params": {**params, "seed": seeds[0]}})
        if (size := spec.num_chars * body.n) > MAX_CHARS:  # each choice is a record with the prompt in it
            raise InvalidParameter(
                f"a prompt of {spec.num_chars} characters with n = {body.n} is {size} in all, at most {MAX_CHARS} are "
                "taken; ask for fewer choices at once",
                field="n",
            )
        # Checked once: of a long chat with many choices each check takes a tenth of a second, in the gateway's loop.
        others = (spec.params.model_copy(update={"seed": seed}) for seed in seeds[1:])
        specs += (spec, *(spec.model_copy(update={"params": other}) for other in others))
    return Call(tuple(specs), form, body.stream, body.stream_options, body.idempotency_key, body.max_wait)


def _check_jobs(prompts: int, n: int) -> None:
    if (jobs := prompts * n) > MAX_JOBS:
        raise InvalidParameter(f"{prompts} prompts with n = {n} are {jobs} jobs; send at most {MAX_JOBS}")


def _seed_of(idempotency_key: str | None) -> int | None:
    """A seed for all who come with this key: the same request again has to be the same jobs."""
    if idempotency_key is None:
        return None
    return int.from_bytes(hashlib.sha256(idempotency_key.encode(errors="replace")).digest()[:4], "big")


def _common(body: Body, user: str | None, lane: str | None, known: Sequence[str]) -> dict[str, Any]:
    if not is_safe_id(body.model):
        raise UnknownModel(model=body.model, known=list(known))
    is_bulk = body.service_tier == "flex" or (body.priority is not None and body.priority < 0)
    fields: dict[str, Any] = {
        "model": body.model,
        "user": user or user_of(body.user),
        "lane": body.lane or ("bulk" if is_bulk else lane or "interactive"),
    }
    times = {"expires_in_ms": body.expires_in, "max_run_ms": body.max_run}
    fields |= {name: int(seconds * 1000) for name, seconds in times.items() if seconds is not None}
    return fields | _given(deterministic=body.deterministic, tag=body.tag)


def user_of(name: str | None) -> str:
    """The user that a free text names: itself where it is an id, else an id made from it."""
    if not name:
        return "default"
    return name if is_safe_id(name) else "u-" + hashlib.sha256(name.encode(errors="replace")).hexdigest()[:16]


def _sampling(body: Generation) -> dict[str, Any]:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    given = _given(
        temperature=body.temperature,
        # OpenAI allows 0, which leaves one token as the smallest share does.
        top_p=1e-6 if body.top_p == 0 else body.top_p,
        top_k=max(body.top_k, 0) if body.top_k is not None else None,
        min_p=body.min_p,
        typical_p=body.typical_p,
        repeat_penalty=body.repeat_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        ignore_eos=body.ignore_eos,
        logit_bias=body.logit_bias,
        stop=[text for text in stop if text] if stop else None,
    )
    if body.seed is not None and body.seed >= 0:  # a negative one asks for chance, at llama-server and Ollama
        given["seed"] = body.seed
    return given


def _bounded(max_tokens: int | None) -> int | None:
    """A negative bound is none, as llama-server and LM Studio have it."""
    return None if max_tokens is not None and max_tokens < 0 else max_tokens


def _text_form(body: Generation, response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`response_format`, or llama-server's short names for it."""
    forms = [form for form in (response_format, body.json_schema, body.grammar) if form]
    if len(forms) > 1:
        raise InvalidParameter(
            "response_format, json_schema and grammar each say what form the text has; give one",
            field="response_format",
        )
    if body.grammar:
        return {"type": "grammar", "grammar": body.grammar}
    if body.json_schema:
        return {"type": "json_schema", "schema": body.json_schema}
    return dict(response_format) if response_format else None


def _prompts(given: str | list[str] | list[int] | list[list[int]], name: str) -> list[dict[str, Any]]:
    """The prompt fields of each job."""
    if isinstance(given, str):
        return [{"prompt": given}]
    if not given:
        raise InvalidParameter(f"{name} is an empty list; give at least one text", field=name)
    if isinstance(given[0], int):
        return [{"prompt_tokens": given}]
    return [{"prompt": each} if isinstance(each, str) else {"prompt_tokens": each} for each in given]


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
