"""From a job to the tokens of its prompt and the parser of its answer."""

from __future__ import annotations

from dataclasses import dataclass

from packtrain.broker.errors import InvalidRequest
from packtrain.broker.ids import JobId
from packtrain.broker.messages import JobSpec, SamplingParams
from packtrain.broker.structured import json_format
from packtrain.workers.backends.base import Backend
from packtrain.workers.chat.forced import forced_call_schema, is_forced
from packtrain.workers.chat.harmony import HarmonyParser
from packtrain.workers.chat.infill import infill
from packtrain.workers.chat.long_texts import tokens_of
from packtrain.workers.chat.output import OutputParser, Parser, PlainParser
from packtrain.workers.chat.rendering import Rendered, render, short_id, tools_of


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a job needs before it can run."""

    tokens: list[int]
    parser: Parser
    params: SamplingParams  # with the form of a call that is forced


def prepare(spec: JobSpec, job_id: JobId, backend: Backend, *, limit: int | None = None) -> Prepared:
    """Tokens and parser of a job.

    Args:
        limit: Most tokens that are of use, see `tokens_of`.

    Raises:
        PromptTooLong: Far more than `limit`.
        InvalidRequest: The model cannot take it: no template, no tokens for a gap, or its template refuses.
    """
    if not spec.is_chat:
        parser = PlainParser(spec.prompt if spec.echo else "")
        return Prepared(_plain_tokens(spec, backend, limit), parser, spec.params)
    rendered = render(spec, backend.chat_format, backend.render_chat, backend.special_texts)
    tokens = [
        token
        for part in rendered.parts
        for token in tokens_of(
            part.text, backend, model=spec.model, limit=limit, is_rendered=not part.is_users, is_part=part.is_users
        )
    ]
    params = spec.params
    if is_forced(spec.tool_choice):
        schema = forced_call_schema(spec.tools, spec.tool_choice, parallel=spec.parallel_tool_calls)
        params = params.model_copy(update={"response_format": json_format(schema)})
    return Prepared(tokens, _parser(spec, job_id, backend, rendered), params)


def _plain_tokens(spec: JobSpec, backend: Backend, limit: int | None) -> list[int]:
    embeds = spec.kind == "embed"
    if not spec.suffix:
        return tokens_of(spec.prompt, backend, model=spec.model, limit=limit, is_rendered=False, embeds=embeds)
    fim = backend.fim_tokens
    if fim is None:
        raise InvalidRequest(
            f"{spec.model!r} cannot fill gaps, its vocabulary has no tokens for that; "
            "leave `suffix` out, or ask a code model that has them"
        )
    prefix, suffix = (
        tokens_of(text, backend, model=spec.model, limit=limit, is_rendered=False, is_part=True)
        for text in (spec.prompt, spec.suffix)
    )
    return infill(fim, prefix, suffix)


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
