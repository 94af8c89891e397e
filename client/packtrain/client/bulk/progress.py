"""How far a run is, how fast, and when it may be done: pure sums that both doors show.

Rows differ in size, so the time left is counted in tokens as they were estimated before the run (`fairness.cost_of`):
what is left of them, by what was done of them in the last minute.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from packtrain.broker.beats import InstanceBeat
from packtrain.broker.ids import Route
from packtrain.broker.states import InstanceState
from packtrain.client.bulk.ledger import GroupCount, State
from packtrain.client.result import Result

#: Rates are those of this long, seconds.
MEASURED_S: Final = 60.0
#: Before this much time no rate is told, seconds.
LEAST_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run is taken to be before it starts."""

    rows: int
    tokens: int  # of prompts and answers, as far as can be told
    rows_by_model: Mapping[str, int]
    seconds: float | None  # None: nobody has served these models lately, so nothing is known


def forecast(counts: Mapping[str, GroupCount], instances: Sequence[InstanceBeat]) -> Forecast:
    """The forecast of rows that are still to do, by how long jobs take on the instances that run now."""
    rows = {route: count.rows.get(State.TODO, 0) for route, count in counts.items() if route}
    tokens = sum(count.cost.get(State.TODO, 0) for count in counts.values())
    seconds: float | None = 0.0
    for route, number in rows.items():
        serving = [i for i in instances if i.state is InstanceState.READY and i.serves(Route(route)) and i.job_s]
        rate = sum((i.n_slots - i.reserved_slots) / i.job_s for i in serving)
        if number and seconds is not None:
            seconds = seconds + number / rate if rate else None
    return Forecast(sum(rows.values()), tokens, {route: number for route, number in rows.items() if number}, seconds)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a run is at a moment."""

    total: int
    completed: int
    failed: int
    rows_per_s: float
    tokens_per_s: float  # of answers, or of texts that were embedded
    eta_s: float | None  # None: not known
    prompt_tokens: int
    completion_tokens: int
    in_flight: int  # jobs in the fleet
    by_model: Mapping[str, int]  # rows that ended since the start of this process
    by_node: Mapping[str, int]
    waits_for: str  # what hinders it; empty: nothing

    @property
    def ended(self) -> int:
        """Rows that are through."""
        return self.completed + self.failed


@dataclass(slots=True)
class Tally:
    """Counts of a run. Times are monotonic seconds."""

    total: int
    completed: int = 0
    failed: int = 0
    cost_left: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    in_flight: int = 0
    waits_for: str = ""
    by_model: Counter[str] = field(default_factory=Counter)
    by_node: Counter[str] = field(default_factory=Counter)
    _started_s: float | None = None
    _ends: deque[tuple[float, int, int, int]] = field(default_factory=deque)  # second, rows, tokens, cost

    @classmethod
    def of(cls, counts: Mapping[str, GroupCount]) -> Tally:
        """The tally of a run that is so far already."""
        rows = [count.rows for count in counts.values()]
        return cls(
            sum(count.total for count in counts.values()),
            sum(row.get(State.DONE, 0) for row in rows),
            sum(row.get(State.FAILED, 0) for row in rows),
            sum(count.cost.get(State.TODO, 0) for count in counts.values()),
        )

    def start(self, now_s: float) -> None:
        """Rates count from here."""
        self._started_s = now_s

    def ended(self, route: str, cost: int, results: Sequence[Result], now_s: float, *, failed: bool) -> None:
        """A row is through."""
        if failed:
            self.failed += 1
        else:
            self.completed += 1
        self.cost_left -= cost
        self.by_model[route] += 1
        tokens = 0
        for result in results:
            self.prompt_tokens += result.usage.prompt_tokens
            self.completion_tokens += result.usage.completion_tokens
            tokens += result.usage.prompt_tokens if result.embedding is not None else result.usage.completion_tokens
        for node in {result.node for result in results if result.node}:
            self.by_node[node] += 1
        second = float(int(now_s))
        if self._ends and self._ends[-1][0] == second:
            _, rows, some, costs = self._ends.pop()
            self._ends.append((second, rows + 1, some + tokens, costs + cost))
        else:
            self._ends.append((second, 1, tokens, cost))
        while self._ends and self._ends[0][0] < second - MEASURED_S:
            self._ends.popleft()

    def look(self, now_s: float) -> Snapshot:
        """How far it is now."""
        while self._ends and self._ends[0][0] < now_s - MEASURED_S:
            self._ends.popleft()
        span = 0.0
        if self._started_s is not None:
            span = min(MEASURED_S, now_s - self._started_s)
        rows, tokens, cost = (sum(end[i] for end in self._ends) for i in (1, 2, 3))
        known = span >= LEAST_S
        return Snapshot(
            total=self.total,
            completed=self.completed,
            failed=self.failed,
            rows_per_s=rows / span if known else 0.0,
            tokens_per_s=tokens / span if known else 0.0,
            eta_s=self.cost_left * span / cost if known and cost else None,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            in_flight=self.in_flight,
            by_model=dict(self.by_model),
            by_node=dict(self.by_node),
            waits_for=self.waits_for,
        )
