"""From a job to the tokens of its prompt and the parser of its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from packtrain.broker.errors import InvalidParameter, InvalidRequest, MediaUnsupported, PromptTooLong
from packtrain.broker.ids import JobId
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.pieces import MAX_LISTED_TOKENS, Piece, piece_fields
from packtrain.broker.sampling import SamplingParams
from packtrain.broker.structured import json_format
from packtrain.workers.backends.base import Backend
from packtrain.workers.chat.forced import forced_call_schema, is_forced
from packtrain.workers.chat.harmony import HarmonyParser
from packtrain.workers.chat.infill import infill
from packtrain.workers.chat.long_texts import tokens_of
from packtrain.workers.chat.output import OutputParser, Parser, PlainParser
from packtrain.workers.chat.rendering import Rendered, render, short_id, tools_of
from packtrain.workers.engine.media import IMAGE_ROW, Seen, Span, place


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a job needs before it can run."""

    tokens: list[int]
    parser: Parser
    params: SamplingParams  # with the form of a call that is forced
    media: tuple[Span, ...] = ()  # their places among the tokens


#: What an image or sound, named by its hash, is to the model: `Senses.look`.
Look = Callable[[str], Seen]


def blind(_: str) -> Seen:
    """Of a model that takes text alone."""
    raise MediaUnsupported(model="this model")


def prepare(
    spec: JobSpec, job_id: JobId, backend: Backend, *, limit: int | None = None, look: Look = blind
) -> Prepared:
    """Tokens and parser of a job.

    Args:
        limit: Most tokens that are of use, see `tokens_of`.
        look: At images; sounds are heard so.

    Raises:
        MediaUnsupported, MediaGone, MediaUnreadable
        PromptTooLong: Far more than `limit`.
        InvalidRequest: The model cannot take it: no template, no tokens for a gap, or its template refuses; or its
            vocabulary has no such token.
    """
    if not spec.is_chat:
        plain = _plain_tokens(spec, backend, limit)
        return Prepared(plain, PlainParser(_echo(spec, backend)), spec.params)
    rendered = render(spec, backend.chat_format, backend.render_chat, backend.special_texts)
    tokens: list[int] = []
    media: list[Span] = []
    for part in rendered.parts:
        if part.media:
            rows, spans = place(part.media, look(part.media), len(tokens))
            tokens += rows
            media += spans
        else:
            tokens += tokens_of(
                part.text, backend, model=spec.model, limit=limit, add_special=False, parse_special=not part.is_users
            )
    if len(media) < len(spec.media):
        raise InvalidRequest(
            f"the chat template of {spec.model!r} leaves images or sounds out; put them into the last turns"
        )
    params = spec.params
    if is_forced(spec.tool_choice):
        schema = forced_call_schema(spec.tools, spec.tool_choice, parallel=spec.parallel_tool_calls)
        params = params.model_copy(update={"response_format": json_format(schema)})
    return Prepared(tokens, _parser(spec, job_id, backend, rendered), params, tuple(media))


def prepare_count(spec: JobSpec, job_id: JobId, backend: Backend, *, look: Look = blind) -> Prepared:
    """As `prepare`, of a prompt that is only counted or listed: as long as it may be.

    Raises:
        InvalidRequest: As of `prepare`, or there are too many tokens to list.
    """
    if not spec.list_tokens:
        return prepare(spec, job_id, backend, look=look)
    try:
        prepared = prepare(spec, job_id, backend, limit=MAX_LISTED_TOKENS, look=look)
        num_tokens = len(prepared.tokens)
    except PromptTooLong as error:
        num_tokens = error.data["num_tokens"]
    if num_tokens > MAX_LISTED_TOKENS:
        raise InvalidParameter(
            f"the prompt has about {num_tokens} tokens, at most {MAX_LISTED_TOKENS} can be listed; "
            "cut it into several, or only count them",
            field="list_tokens",
        )
    return prepared


def pieces_of(tokens: Iterable[int], backend: Backend) -> tuple[Piece, ...]:
    """Tokens with their texts; that of a special one is as it is written."""
    return tuple(Piece(**piece_fields(max(token, IMAGE_ROW), backend.spelling(token))) for token in tokens)


def _echo(spec: JobSpec, backend: Backend) -> str:
    if not spec.echo:
        return ""
    return spec.prompt or b"".join(map(backend.piece, spec.prompt_tokens)).decode("utf-8", "replace")


def _plain_tokens(spec: JobSpec, backend: Backend, limit: int | None) -> list[int]:
    if spec.prompt_tokens:
        return _checked(spec, backend.shape.n_vocab)
    if not spec.suffix:
        return tokens_of(
            spec.prompt,
            backend,
            model=spec.model,
            limit=limit,
            add_special=spec.add_special,
            parse_special=spec.parse_special,
            embeds=spec.kind == "embed",
        )
    fim = backend.fim_tokens
    if fim is None:
        raise InvalidRequest(
            f"{spec.model!r} cannot fill gaps, its vocabulary has no tokens for that; "
            "leave `suffix` out, or ask a code model that has them"
        )
    prefix, suffix = (
        tokens_of(text, backend, model=spec.model, limit=limit, add_special=False)
        for text in (spec.prompt, spec.suffix)
    )
    return infill(fim, prefix, suffix)


def _checked(spec: JobSpec, n_vocab: int) -> list[int]:
    tokens = list(spec.prompt_tokens)
    if max(tokens) >= n_vocab:
        index, token = next((index, token) for index, token in enumerate(tokens) if token >= n_vocab)
        raise InvalidParameter(
            f"prompt_tokens.{index} = {token}: the vocabulary of {spec.model!r} has {n_vocab} tokens, 0 to "
            f"{n_vocab - 1}; make them with its own tokenizer, as `packtrain tokenize` does",
            field="prompt_tokens",
            token=token,
            n_vocab=n_vocab,
        )
    return tokens


def _parser(spec: JobSpec, job_id: JobId, backend: Backend, rendered: Rendered) -> Parser:
    form, tools = backend.chat_format, tools_of(spec)
    max_calls = None if spec.parallel_tool_calls else 1

    def call_id(index: int) -> str:
        return short_id(f"{job_id}/{index}")

    forced = is_forced(spec.tool_choice)
    if form.is_harmony and not forced:
        return HarmonyParser(call_id=call_id, has_tools=bool(tools), in_answer=rendered.in_answer, max_calls=max_calls)
    if form.reasoning is None and not tools:
        return PlainParser()
    return OutputParser(
        form,
        call_id=call_id,
        tools=tools,
        in_reasoning=rendered.in_reasoning,
        is_forced=forced,
        max_calls=max_calls,
    )
