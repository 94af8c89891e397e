"""What is counted of jobs as they end: fields of Redis hashes that only grow, and how they are read again. Pure.

A job is counted where it ends for good, in the same script that stores its outcome (`settle` in prelude.lua). So each
counts once, whichever door it came by and however often its end is sent, and no process holds a figure that is lost
with it. What an end adds is noted in a list, and each 64th end, or whoever wants to read, adds what was noted to the
counters together. These are a hash for each model and lane:

    end:SUCCEEDED                  jobs, by the state that they ended in
    why:stop                       answers, by why they ended
    prompt output reused           tokens
    lapsed gone retried released   what befell leases on the way
    first:500                      a histogram: jobs whose first token took 500 ms at most, and more than the next bound
    first:sum                      of the same, the sum in microseconds

Times of an answer are those of the instance that gave it, for the broker hears of tokens later than they come. A time
is counted where it is known: a job that ends in the queue has no time to its first token.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from packtrain.broker.outcome import Outcome
from packtrain.broker.states import JobState

#: Bounds of times of jobs, ms. A queue may hold a job for long, so these go far.
TIMES_MS: Final = (
    10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000,
)  # fmt: skip
#: The same of times between two tokens of an answer.
GAPS_MS: Final = (1, 2.5, 5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000, 2500, 5000)
#: The same of loads of a model.
LOADS_MS: Final = (500, 1000, 2500, 5000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000)
#: Histograms of jobs, with their bounds.
HISTOGRAMS: Final[Mapping[str, tuple[float, ...]]] = {
    "queue": TIMES_MS, "first": TIMES_MS, "prefill": TIMES_MS, "decode": TIMES_MS, "whole": TIMES_MS, "gap": GAPS_MS,
}  # fmt: skip

_ABOVE: Final = "inf"


@dataclass(frozen=True, slots=True)
class Pace:
    """How the tokens of one attempt at a job came."""

    gaps: tuple[int, ...] = ()  # tokens, by the time since the one before: of each of `GAPS_MS`, and above
    gaps_us: int = 0  # the sum of these times
    is_resumed: bool = False  # the job had tokens from an earlier attempt


NO_PACE: Final = Pace()


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations by size."""

    bounds_ms: tuple[float, ...]
    counts: tuple[int, ...]  # of each bound, not cumulative, and above the last
    sum_us: int

    @property
    def count(self) -> int:
        """All observations."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, int]]:
        """Bound in seconds, as Prometheus writes it, and observations up to it."""
        found, total = [], 0
        bounds = [f"{bound / 1000:g}" for bound in self.bounds_ms]
        for bound, count in zip([*bounds, "+Inf"], self.counts, strict=True):
            total += count
            found.append((bound, total))
        return found


@dataclass(frozen=True, slots=True)
class Tally:
    """What has been counted of the jobs of one model and lane."""

    ends: Mapping[JobState, int] = field(default_factory=dict)
    whys: Mapping[str, int] = field(default_factory=dict)  # by `Outcome.finish_reason`
    prompt: int = 0  # tokens
    output: int = 0
    reused: int = 0  # of the prompts' tokens
    lapsed: int = 0  # leases that were not renewed
    gone: int = 0  # leases of instances that were seen gone
    retried: int = 0  # jobs put back after one of these
    released: int = 0  # jobs that an instance gave back, for it drained
    histograms: Mapping[str, Histogram] = field(default_factory=dict)  # by the names of `HISTOGRAMS`


@dataclass(frozen=True, slots=True)
class Used:
    """What one user, or one tag, has used of one model."""

    name: str
    model: str
    jobs: int = 0
    prompt: int = 0  # tokens
    output: int = 0


def figures_of(outcome: Outcome, pace: Pace = NO_PACE) -> dict[str, int]:
    """What a job that an instance has ended adds to the counters, but for its state."""
    usage, times = outcome.usage, outcome.timings
    figures = {"prompt": usage.prompt_tokens, "output": usage.completion_tokens, "reused": usage.reused_tokens}
    if outcome.state is JobState.SUCCEEDED:
        figures[f"why:{outcome.finish_reason or 'done'}"] = 1
    seen = {"queue": times.queue_ms, "whole": times.queue_ms + times.run_ms}
    if times.first_token_ms is not None:
        seen["decode"] = times.run_ms - times.first_token_ms
        if not pace.is_resumed:  # else its first token came in an attempt that is over
            seen |= {"prefill": times.first_token_ms, "first": times.queue_ms + times.first_token_ms}
    for name, ms in seen.items():
        figures |= observed(name, ms, HISTOGRAMS[name])
    figures |= {_field("gap", GAPS_MS, place): count for place, count in enumerate(pace.gaps) if count}
    figures["gap:sum"] = pace.gaps_us
    return {name: number for name, number in figures.items() if number}


def observed(name: str, ms: float, bounds: tuple[float, ...]) -> dict[str, int]:
    """What one observation adds to a histogram."""
    return {_field(name, bounds, bisect_left(bounds, ms)): 1, f"{name}:sum": max(0, round(ms * 1000))}


def to_words(figures: Mapping[str, int]) -> str:
    """Figures as the scripts take them."""
    return " ".join(f"{name} {number}" for name, number in figures.items())


def tally_of(fields: Mapping[str, str]) -> Tally:
    """What one hash says. Fields of another version are left out."""
    numbers = {name: int(text) for name, text in fields.items()}
    plain = ("prompt", "output", "reused", "lapsed", "gone", "retried", "released")
    return Tally(
        ends={state: numbers[f"end:{state}"] for state in JobState if f"end:{state}" in numbers},
        whys={name.removeprefix("why:"): number for name, number in numbers.items() if name.startswith("why:")},
        histograms={name: histogram_of(name, bounds, numbers) for name, bounds in HISTOGRAMS.items()},
        **{name: numbers.get(name, 0) for name in plain},
    )


def histogram_of(name: str, bounds: tuple[float, ...], numbers: Mapping[str, int]) -> Histogram:
    """A histogram among the fields of a hash."""
    counts = tuple(numbers.get(_field(name, bounds, place), 0) for place in range(len(bounds) + 1))
    return Histogram(bounds, counts, numbers.get(f"{name}:sum", 0))


def used_of(fields: Mapping[str, str]) -> list[Used]:
    """Who used what, from fields `<name> <model> <what>`."""
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for row, number in fields.items():
        name, model, what = row.split(" ")
        if what in ("jobs", "prompt", "output"):
            rows.setdefault((name, model), {})[what] = int(number)
    return [Used(name, model, **numbers) for (name, model), numbers in sorted(rows.items())]


def _field(name: str, bounds: tuple[float, ...], place: int) -> str:
    return f"{name}:{bounds[place]}" if place < len(bounds) else f"{name}:{_ABOVE}"
