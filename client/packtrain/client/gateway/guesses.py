"""What jobs will cost an API key, guessed before they run. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from packtrain.broker.job_spec import JobSpec

#: A character of a prompt is taken to be this part of a token; images and the like are not guessed at.
TOKENS_PER_CHAR = 0.25
#: An answer whose request sets no bound is taken to have so many tokens.
USUAL_ANSWER = 256


def guessed_tokens(specs: Sequence[JobSpec]) -> int:
    """What jobs will cost, as far as their requests tell: their prompts, and answers as long as they may be.

    >>> guessed_tokens([JobSpec(kind="complete", model="m", prompt="x" * 400, params={"max_tokens": 10})])
    110
    """
    return sum(_guessed(spec) for spec in specs)


def _guessed(spec: JobSpec) -> int:
    prompt = int(spec.num_chars * TOKENS_PER_CHAR) + len(spec.prompt_tokens)
    if spec.kind in ("embed", "count"):
        return prompt
    return prompt + (USUAL_ANSWER if spec.params.max_tokens is None else spec.params.max_tokens)
