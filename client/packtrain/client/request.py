"""From a caller's arguments to a checked `JobSpec` and its id: one place for both clients and the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.ids import JobId, job_id_for_key, new_job_id
from packtrain.broker.messages import JobSpec, Message, SamplingParams, parse_spec

#: A text, the turns of a chat, or one of these.
Prompt = str | Sequence[Mapping[str, str] | Message]

_SPEC_FIELDS = frozenset({"lane", "user", "deterministic", "meant_for"})


def build_spec(
    model: str, prompt: Prompt, *, raw: bool, stream: bool, expires_in: float | None, options: Mapping[str, Any]
) -> JobSpec:
    """A checked request.

    Args:
        prompt: A text becomes one user turn; with `raw` it is continued as it stands, without the chat template.
        stream: Somebody will read the tokens as they come.
        expires_in: Seconds until the job ends as EXPIRED.
        options: Sampling parameters by name, and `lane`, `user`, `deterministic`, `meant_for`.

    Raises:
        InvalidParameter, PromptEmpty
    """
    fields: dict[str, Any] = {"model": model, "stream": stream}
    if isinstance(prompt, str):
        if raw:
            fields |= {"kind": "complete", "prompt": prompt}
        else:
            fields["messages"] = [{"role": "user", "content": prompt}]
    elif raw:
        raise InvalidParameter("raw takes a text as prompt, not messages; join them yourself or leave raw out")
    else:
        fields["messages"] = _turns(prompt)
    fields |= _expiry(expires_in)
    _check_known(options, _SPEC_FIELDS | SamplingParams.model_fields.keys())
    fields |= {name: options[name] for name in _SPEC_FIELDS & options.keys()}
    fields["params"] = {name: value for name, value in options.items() if name not in _SPEC_FIELDS}
    return parse_spec(fields)


def build_embed_spec(
    model: str, text: str, *, dimensions: int | None, expires_in: float | None, options: Mapping[str, Any]
) -> JobSpec:
    """A checked request for the vector of one text.

    Args:
        dimensions: Keep only the first so many, stretched to length 1 again; None: all.
        expires_in: As of `build_spec`.
        options: `lane`, `user`, `deterministic`, `meant_for`.

    Raises:
        InvalidParameter, PromptEmpty
    """
    if not isinstance(text, str):
        raise InvalidParameter(f"a text to embed is a str, not {type(text).__name__}; convert it", field="prompt")
    _check_known(options, _SPEC_FIELDS)
    fields = {"kind": "embed", "model": model, "prompt": text, "stream": False, "dimensions": dimensions}
    return parse_spec(fields | _expiry(expires_in) | dict(options))


def _check_known(options: Mapping[str, Any], known: Set[str]) -> None:
    if unknown := sorted(set(options) - known):
        raise InvalidParameter(
            f"there is no option {unknown[0]!r}; options are {', '.join(sorted(known))}", field=unknown[0]
        )


def _expiry(expires_in: float | None) -> dict[str, int]:
    if expires_in is None:
        return {}
    if not math.isfinite(expires_in):
        raise InvalidParameter(f"expires_in is {expires_in}; give seconds, or leave it out", field="expires_in")
    return {"expires_in_ms": int(expires_in * 1000)}


def _turns(prompt: object) -> list[dict[str, str]]:
    turns = list(prompt) if isinstance(prompt, Sequence) else None
    if turns is None or not all(isinstance(turn, Mapping | Message) for turn in turns):
        raise InvalidParameter(
            f"a prompt is a text or a list of messages, not {type(prompt).__name__}; "
            'a message is like {"role": "user", "content": "Hi"}',
            field="prompt",
        )
    return [turn.model_dump() if isinstance(turn, Message) else dict(turn) for turn in turns]


def job_id_of(spec: JobSpec, idempotency_key: str | None) -> JobId:
    """A fresh id, or the one that the user's key always names."""
    return new_job_id() if idempotency_key is None else job_id_for_key(spec.user, idempotency_key)
