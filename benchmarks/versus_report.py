"""What versus_llama_server.py measured, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common import spread
from benchmarks.workloads import Ask


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table."""

    name: str
    asks: Sequence[Ask]
    users: int
    unit: str  # "tokens/s" or "jobs/s"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side did of one case in one round."""

    case: str
    side: str
    round: int
    rate: float  # in the unit of the case
    seconds: float
    prompt_tokens: int
    output_tokens: int
    server_cpu_s: float
    client_cpu_s: float  # of this process, which is the client


@dataclass(frozen=True, slots=True)
class Equality:
    """How many jobs of `same` came out the same. `logprobs`: None when the API gave none."""

    side: str
    temperature: float
    against: str
    jobs: int
    texts: int
    logprobs: int | None


def report(turns: Sequence[Turn], cases: Sequence[Case], ours: Sequence[str], peer: str) -> None:
    """Print rates, ratios to the peer by round, and CPU seconds as Markdown tables."""
    sides = [*ours, peer]

    def of(case: Case, side: str) -> list[Turn]:
        return [turn for turn in turns if (turn.case, turn.side) == (case.name, side)]

    print(f"| | unit | {' | '.join(sides)} | {' | '.join(f'{side} / {peer}' for side in ours)} |")
    print("|---" * (2 + len(sides) + len(ours)) + "|")
    for case in cases:
        digits = 1 if case.unit == "jobs/s" else 0
        cells = [spread([turn.rate for turn in of(case, side)], digits) for side in sides]
        for side in ours:
            pairs = zip(of(case, side), of(case, peer), strict=True)  # each round's own ratio
            cells.append(spread([mine.rate / theirs.rate for mine, theirs in pairs], 2))
        print(f"| {case.name} | {case.unit} | {' | '.join(cells)} |")
    print(f"\nCPU seconds of one turn, server + client, and prompt tokens:\n\n| | {' | '.join(sides)} |")
    print("|---" * (1 + len(sides)) + "|")
    for case in cases:
        cells = []
        for side in sides:
            some = of(case, side)
            server, client = (spread([t.server_cpu_s for t in some], 1), spread([t.client_cpu_s for t in some], 2))
            cells.append(f"{server} + {client}; {some[0].prompt_tokens}")
        print(f"| {case.name} | {' | '.join(cells)} |")


def report_equality(equalities: Sequence[Equality]) -> None:
    """Print how many answers did not depend on their company."""
    print("| 16 at once against | temperature | side | texts equal | logprobs equal |\n|---|---|---|---|---|")
    for e in sorted(equalities, key=lambda e: (e.against, e.temperature)):
        logprobs = "not given" if e.logprobs is None else f"{100 * e.logprobs / e.jobs:.0f} %"
        texts = f"{100 * e.texts / e.jobs:.0f} % of {e.jobs}"
        print(f"| {e.against} | {e.temperature:g} | {e.side} | {texts} | {logprobs} |")
