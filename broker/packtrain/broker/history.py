"""How a fleet has fared: a sample each 15 seconds for a day, and faults for a week. Pure: `history_store` keeps them.

The leading coordinator samples, so there is one history for all gateways. A day is 5,760 samples of about 150 bytes,
some 1 MB with Redis' own; whoever draws a curve wants a hundred points or two, so `series` puts samples into buckets:

    samples   | . . . . | . . .   |         | . . . . |      15 s each
    buckets   |  mean   |  mean   |  null   |  mean   |      as long as the curve wants; null: nobody led then
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from pydantic import Field

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.fields import Report
from packtrain.broker.states import InstanceState

SAMPLE_MS = 15_000
#: Samples of one day.
MAX_SAMPLES = 24 * 3600 * 1000 // SAMPLE_MS
#: Faults that are kept.
MAX_FAULTS = 1000


class Sample(Report):
    """A fleet in the 15 seconds before a moment."""

    at_ms: int
    tokens_per_s: float | None = Field(None, description="of all answers; null: nobody had counted before")
    interactive: int = Field(0, description="jobs that wait")
    bulk: int = Field(0, description="jobs that wait")
    running: int = Field(0, description="slots at work")
    firsts: int = Field(0, description="jobs that got their first token")
    first_p50_ms: float | None = Field(None, description="from a job's submission to its first token, the median")
    first_p95_ms: float | None = None


class Fault(Report):
    """An instance that ended by itself, or went with its node."""

    at_ms: int
    state: Literal["FAILED", "LOST"]
    instance: str
    model: str
    node: str
    reason: str = ""


class Series(Report):
    """Curves over a time, one value for each bucket; null: nothing is known of it."""

    step_ms: int
    at_ms: tuple[int, ...] = Field((), description="where each bucket begins")
    tokens_per_s: tuple[float | None, ...] = ()
    interactive: tuple[float | None, ...] = Field((), description="most that waited")
    bulk: tuple[float | None, ...] = Field((), description="most that waited")
    running: tuple[float | None, ...] = ()
    first_p50_ms: tuple[float | None, ...] = Field((), description="mean of the medians, by the jobs behind each")
    first_p95_ms: tuple[float | None, ...] = Field((), description="the worst")


class TokenMeter:
    """Tokens per second of a fleet, from what its instances have counted since they began."""

    def __init__(self) -> None:
        self._at_ms: int | None = None
        self._before: dict[str, int] = {}

    def read(self, now_ms: int, instances: Iterable[InstanceBeat]) -> float | None:
        """The mean since the last reading; None at the first one.

        What an instance counted between its last beat and its end is lost, some 2 s of one instance.
        """
        counts = {each.instance: each.tokens_out for each in instances}
        since_ms, before = self._at_ms, self._before
        self._at_ms, self._before = now_ms, counts
        if since_ms is None or now_ms <= since_ms:
            return None
        new = sum(max(0, count - before.get(name, 0)) for name, count in counts.items())
        return round(new * 1000 / (now_ms - since_ms), 2)


def percentile(values: Iterable[float], part: float) -> float | None:
    """The least value that this part of all does not exceed; None of nothing.

    >>> percentile([30, 10, 20, 40], 0.5), percentile([7], 0.95), percentile([], 0.5)
    (20, 7, None)
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else None


def sample(
    now_ms: int, tokens_per_s: float | None, instances: Iterable[InstanceBeat], waiting: tuple[int, int],
    firsts_ms: Sequence[float],
) -> Sample:  # fmt: skip
    """What is to be kept of this moment.

    Args:
        waiting: Jobs, interactive and bulk.
        firsts_ms: How long each job waited for its first token that got it since the last sample.
    """
    return Sample(
        at_ms=now_ms, tokens_per_s=tokens_per_s, interactive=waiting[0], bulk=waiting[1],
        running=sum(each.slots_used for each in instances if not each.state.is_terminal), firsts=len(firsts_ms),
        first_p50_ms=percentile(firsts_ms, 0.5), first_p95_ms=percentile(firsts_ms, 0.95),
    )  # fmt: skip


def faults_of(instances: Iterable[InstanceBeat], now_ms: int) -> list[Fault]:
    """The faults among what instances last said, oldest first. The same again for the same instances."""
    return sorted(
        (
            Fault(
                at_ms=each.ended_ms or each.last_used_ms or each.requested_ms or now_ms, state=each.state.value,
                instance=each.instance, model=each.model, node=each.node, reason=each.reason[:500],
            )
            for each in instances
            if each.state in (InstanceState.FAILED, InstanceState.LOST)
        ),
        key=lambda fault: (fault.at_ms, fault.instance),
    )  # fmt: skip


def series(samples: Iterable[Sample], *, since_ms: int, until_ms: int, step_ms: int) -> Series:
    """Curves from `since_ms` to `until_ms` with a value for each `step_ms`.

    Buckets begin at multiples of `step_ms`, so that a curve does not flicker when it is drawn anew a second later.
    """
    first = since_ms // step_ms
    buckets: list[list[Sample]] = [[] for _ in range(max(0, -(-until_ms // step_ms) - first))]
    for each in samples:
        place = each.at_ms // step_ms - first
        if 0 <= place < len(buckets):
            buckets[place].append(each)

    def column(fold: Callable[[Sequence[Sample]], float | None]) -> tuple[float | None, ...]:
        return tuple(fold(bucket) for bucket in buckets)

    return Series(
        step_ms=step_ms,
        at_ms=tuple((first + number) * step_ms for number in range(len(buckets))),
        tokens_per_s=column(lambda bucket: _mean(each.tokens_per_s for each in bucket)),
        interactive=column(lambda bucket: max((each.interactive for each in bucket), default=None)),
        bulk=column(lambda bucket: max((each.bulk for each in bucket), default=None)),
        running=column(lambda bucket: _mean(each.running for each in bucket)),
        first_p50_ms=column(_weighted_p50),
        first_p95_ms=column(lambda bucket: max(_known(each.first_p95_ms for each in bucket), default=None)),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return round(sum(known) / len(known), 2) if known else None


def _weighted_p50(bucket: Sequence[Sample]) -> float | None:
    jobs = sum(each.firsts for each in bucket if each.first_p50_ms is not None)
    total = sum(each.firsts * (each.first_p50_ms or 0) for each in bucket)
    return round(total / jobs, 1) if jobs else None
