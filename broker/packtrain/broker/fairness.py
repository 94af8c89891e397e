"""Fair queueing: which of the waiting jobs of one model and lane is next, when several users wait.

Start-time fair queueing (Goyal, Vin and Cheng, 1996), counted in tokens. Each job gets a *start tag* when it is
submitted, and the lowest tag is served first. A user's next job starts where his last one finishes, its cost later:

    user a, 3 jobs of 100 tokens:   0 ──► 100 ──► 200
    user b, then 1 job:             0 ──►                   comes second, not fourth

The *clock* is the tag of the latest job served. Whoever has nothing waiting starts there: idle time is no credit. It
moves on by a hair with each such start, so that users with one job each are served in the order they came in.

Tags are multiples of 2^-10 below 2^43, so that floats of Redis, Lua and Python hold them exactly: ten thousand tokens a
second for 27 years. `submit.lua` and `claim.lua` do the same sums on the server; this is their twin's, and that of
whoever wants to know the order without a server.
"""

from __future__ import annotations

from typing import Final

from packtrain.broker.job_spec import JobSpec

#: Tokens that a job is taken to produce when it does not say how many at most.
DEFAULT_OUTPUT: Final = 256
#: Characters of a token, roughly. Whoever submits has no tokenizer.
CHARS_PER_TOKEN: Final = 4
#: Tokens that an image or sound is taken to have: 16 to some thousands, by model and size, which nobody here knows.
MEDIA_TOKENS: Final = 256
#: What the clock moves on by with each start at it, tokens.
HAIR: Final = 2.0**-10


def cost_of(spec: JobSpec) -> int:
    """What a job is taken to cost before it has run, tokens of prompt and output together; 1 at least."""
    prompt = len(spec.prompt_tokens) + spec.num_chars // CHARS_PER_TOKEN + MEDIA_TOKENS * len(spec.media)
    return cost(prompt, 0 if spec.kind in ("embed", "count") else spec.params.max_tokens)


def cost(prompt: int, most: int | None) -> int:
    """The same of a prompt of so many tokens, and of at most so many more; None: the job does not say."""
    return max(1, prompt + (DEFAULT_OUTPUT if most is None else most))


class FairTags:
    """The start tags of one model and lane."""

    def __init__(self) -> None:
        self._clock = 0.0
        self._finish: dict[str, float] = {}

    def start(self, user: str, cost: int) -> float:
        """The start tag of this user's next job."""
        tag = self._finish.get(user, 0.0)
        if tag <= self._clock:
            self._clock += HAIR
            tag = self._clock
        self._finish[user] = tag + cost
        return tag

    def served(self, tag: float) -> None:
        """A job with this tag begins to run."""
        self._clock = max(self._clock, tag)

    def forget(self, user: str) -> None:
        """Nothing of this user waits any more, and the last of it went without being served: he owes nothing."""
        self._finish.pop(user, None)
