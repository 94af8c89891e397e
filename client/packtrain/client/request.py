"""From a caller's arguments to a checked `JobSpec` and its id: one place for both clients and the command line."""

from __future__ import annotations

import hashlib
import math
import operator
import secrets
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Self, SupportsIndex

from packtrain.broker.chat import Message
from packtrain.broker.errors import InvalidParameter
from packtrain.broker.ids import JobId, job_id_for_key, new_job_id
from packtrain.broker.job_spec import JobSpec, parse_spec
from packtrain.broker.sampling import SamplingParams
from packtrain.broker.structured import JsonObject, json_format
from packtrain.client.media import read_parts, with_media


class Tokens(tuple[int, ...]):
    """Token ids as a prompt, taken exactly as they are: no template, and nothing put before or behind them.

    Raises:
        InvalidParameter: Something in it is no whole number.
    """

    __slots__ = ()

    def __new__(cls, ids: Iterable[SupportsIndex]) -> Self:
        try:
            return super().__new__(cls, map(operator.index, ids))
        except TypeError as error:
            raise InvalidParameter(
                f"tokens are a list of whole numbers, the ids ({error}); `tokenize` makes them of a text",
                field="prompt_tokens",
            ) from None


#: A text, its tokens, or the turns of a chat.
Prompt = str | Tokens | Sequence[Mapping[str, Any] | Message]

#: Answers to one prompt at once.
MAX_CHOICES = 128
#: Options of every job.
_ANY_KIND_FIELDS = frozenset({"lane", "user", "tag", "deterministic", "meant_for"})
#: Options that are no sampling parameters.
_SPEC_FIELDS = _ANY_KIND_FIELDS | {
    *("suffix", "echo", "tools", "tool_choice", "parallel_tool_calls", "reasoning", "template_args", "adapters")
}
#: Short for `response_format`.
_FORMS = frozenset({"schema", "json", "grammar"})


def build_spec(
    model: str,
    prompt: Prompt,
    *,
    raw: bool,
    stream: bool,
    expires_in: float | None,
    options: Mapping[str, Any],
    max_run: float | None = None,
    count: Mapping[str, Any] | None = None,
) -> JobSpec:
    """A checked request.

    Args:
        prompt: A text becomes one user turn; with `raw` it is continued as it stands, without the chat template, and
            so are `Tokens`, with it or without.
        stream: Somebody will read the tokens as they come.
        expires_in: Seconds until the job ends as EXPIRED.
        max_run: Seconds that it may run.
        options: Sampling parameters by name, the other fields of `JobSpec` that `submit` names, and one of `schema` (a
            JSON schema or a pydantic model), `json` (True: some JSON object) and `grammar` (GBNF), which are short for
            `response_format`; `images` and `audio`, which stand before the text of the last turn.
        count: Only count the prompt's tokens, with these fields of `JobSpec` that are for that kind alone.

    Raises:
        InvalidParameter, PromptEmpty
    """
    fields: dict[str, Any] = {"model": model, "stream": stream}
    if isinstance(prompt, str):
        if raw or options.get("suffix"):
            fields |= {"kind": "complete", "prompt": prompt}
        else:
            fields["messages"] = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, Tokens):
        fields |= {"kind": "complete", "prompt_tokens": prompt}
    elif raw:
        raise InvalidParameter(
            "raw takes a text or Tokens as prompt, not messages; join them yourself or leave raw out", field="prompt"
        )
    else:
        fields["messages"] = _turns(prompt)
    given = {name: options[name] for name in ("images", "audio") if options.get(name) not in (None, [], ())}
    if given:
        if "messages" not in fields:
            name = next(iter(given))
            raise InvalidParameter(f"{name} belong to chats; leave them out, or raw and suffix", field=name)
        fields["messages"] = with_media(fields["messages"], given.get("images"), given.get("audio"))
    fields |= _milliseconds("expires_in", expires_in) | _milliseconds("max_run", max_run)
    _check_known(options, _SPEC_FIELDS | _FORMS | {"images", "audio"} | SamplingParams.model_fields.keys())
    fields |= {name: options[name] for name in _SPEC_FIELDS & options.keys()}
    if "adapters" in fields:
        fields["adapters"] = _adapters(fields["adapters"])
    fields["params"] = {name: options[name] for name in SamplingParams.model_fields.keys() & options.keys()}
    if forms := _forms(options):
        fields["params"] |= forms
    if count is not None:
        fields |= {"kind": "count", **count}
    return parse_spec(fields)


def build_listing_spec(
    model: str, prompt: Prompt, *, add_special: bool, parse_special: bool, options: Mapping[str, Any]
) -> JobSpec:
    """A checked request for the tokens of a prompt: of a text as it stands, of a chat as its template makes it.

    Raises:
        InvalidParameter, PromptEmpty
    """
    count = {"list_tokens": True, "add_special": add_special, "parse_special": parse_special}
    is_text = isinstance(prompt, str)
    return build_spec(model, prompt, raw=is_text, stream=False, expires_in=None, options=options, count=count)


def build_embed_spec(
    model: str,
    text: str | Tokens,
    *,
    dimensions: int | None,
    expires_in: float | None,
    max_run: float | None = None,
    options: Mapping[str, Any],
) -> JobSpec:
    """A checked request for the vector of one text.

    Args:
        dimensions: Keep only the first so many, stretched to length 1 again; None: all.
        expires_in, max_run: As of `build_spec`.
        options: `lane`, `user`, `tag`, `deterministic`, `meant_for`.

    Raises:
        InvalidParameter, PromptEmpty
    """
    if not isinstance(text, str | Tokens):
        raise InvalidParameter(
            f"a text to embed is a str or Tokens, not {type(text).__name__}; convert it", field="prompt"
        )
    _check_known(options, _ANY_KIND_FIELDS)
    prompt = "prompt_tokens" if isinstance(text, Tokens) else "prompt"
    fields = {"kind": "embed", "model": model, prompt: text, "stream": False, "dimensions": dimensions}
    times = _milliseconds("expires_in", expires_in) | _milliseconds("max_run", max_run)
    return parse_spec(fields | times | dict(options))


def _check_known(options: Mapping[str, Any], known: Set[str]) -> None:
    if unknown := sorted(set(options) - known):
        raise InvalidParameter(
            f"there is no option {unknown[0]!r}; options are {', '.join(sorted(known))}", field=unknown[0]
        )


def _milliseconds(name: str, seconds: float | None) -> dict[str, int]:
    if seconds is None:
        return {}
    if not math.isfinite(seconds):
        raise InvalidParameter(f"{name} is {seconds}; give seconds, or leave it out", field=name)
    return {f"{name}_ms": int(seconds * 1000)}


def _forms(options: Mapping[str, Any]) -> dict[str, Any]:
    """`response_format` from its short names."""
    given = {name: value for name, value in options.items() if name in _FORMS and value not in (None, False)}
    if len(given) + ("response_format" in options) > 1:
        raise InvalidParameter(
            f"{' and '.join(sorted(given))} say twice what form the answer has; give one of "
            f"{', '.join(sorted(_FORMS))} or response_format",
            field="response_format",
        )
    if "schema" in given:
        return {"response_format": json_format(given["schema"])}
    if "json" in given:
        return {"response_format": JsonObject()}
    if "grammar" in given:
        return {"response_format": {"type": "grammar", "grammar": given["grammar"]}}
    return {}


def _adapters(given: object) -> object:
    """Adapters with their scales; of names alone, each with the scale that the operator has set."""
    if isinstance(given, str):
        return {given: None}
    if isinstance(given, Sequence):
        if odd := [name for name in given if not isinstance(name, str)]:
            raise InvalidParameter(
                f'adapters = [{odd[0]!r}]: a list holds names; with scales give a mapping, {{"name": 0.5}}',
                field="adapters",
            )
        return dict.fromkeys(given)
    return {} if given is None else given


def _turns(prompt: object) -> list[dict[str, Any]]:
    turns = list(prompt) if isinstance(prompt, Sequence) else None
    if turns is None or not all(isinstance(turn, Mapping | Message) for turn in turns):
        raise InvalidParameter(
            f"a prompt is a text, Tokens or a list of messages, not {type(prompt).__name__}; "
            'a message is like {"role": "user", "content": "Hi"}, and tokens are Tokens([1, 2, 3])',
            field="prompt",
        )
    return [_of_message(turn) if isinstance(turn, Message) else read_parts(turn) for turn in turns]


def _of_message(turn: Message) -> dict[str, Any]:
    fields = turn.model_dump()
    if turn.media:
        fields["media"] = [ref.model_dump() | {"data": ref.data} for ref in turn.media]
    return fields


def choice_seeds(n: int, seed: int | None) -> list[int]:
    """Seeds for `n` answers to one prompt. The first is `seed` itself; None: drawn at random.

    Raises:
        InvalidParameter
    """
    if not 1 <= n <= MAX_CHOICES:
        raise InvalidParameter(f"n is {n}; ask for 1 to {MAX_CHOICES} choices", field="n")
    first = secrets.randbits(32) if seed is None else seed
    digests = (hashlib.sha256(f"{first}:{choice}".encode()).digest() for choice in range(1, n))
    return [first, *(int.from_bytes(digest[:4], "big") for digest in digests)]


def job_id_of(spec: JobSpec, idempotency_key: str | None) -> JobId:
    """A fresh id, or the one that the user's key always names."""
    return new_job_id() if idempotency_key is None else job_id_for_key(spec.user, idempotency_key)
