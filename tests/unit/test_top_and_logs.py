"""What `packtrain top` draws, and how `packtrain logs` puts files together."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from packtrain.broker.states import InstanceState, JobState
from packtrain.client.cli.logs_commands import Line, chosen, dated, in_order
from packtrain.client.cli.top_view import bar, screen, spark
from packtrain.client.gateway.page_facts import (
    EventFacts,
    Facts,
    InstanceFacts,
    JobFacts,
    MemoryBar,
    NodeFacts,
    QueueFacts,
)

pytestmark = pytest.mark.unit


def facts(**fields: Any) -> Facts:
    node = NodeFacts(node="n1", state="up", cores=4, cores_used=2, memory=MemoryBar(budget=100, weights=50, free=50))
    instance = InstanceFacts(
        instance="tiny-1", model="tiny", node="n1", state=InstanceState.READY, slots=4, slots_used=3, tokens_per_s=61,
        batch_mean=2.5, batch_peak=4,
    )  # fmt: skip
    queue = QueueFacts(route="tiny", model="tiny", lane="bulk", waiting=1200, oldest_ms=90_000)
    job = JobFacts(id="a" * 32, state=JobState.QUEUED, model="tiny", position=7, eta_s=12, reason="3 of 4 slots")
    event = EventFacts(at_ms=1000, kind="fault", model="tiny", node="n1", text="[b]was killed[/b]")
    return Facts(
        at_ms=61_000, tokens_per_s=61, nodes=(node,), instances=(instance,), queues=(queue,), jobs=(job,) * 20,
        events=(event,), **fields,
    )  # fmt: skip


def drawn(shown: Facts, height: int = 40, width: int = 150) -> str:
    console = Console(width=width, height=height, highlight=False, markup=False, record=True, file=StringIO())
    console.print(screen(shown, [1, None, 2], height=height))
    return console.export_text()


def test_a_screen_tells_all_and_fits() -> None:
    text = drawn(facts())

    for word in ("61 tokens/s", "3/4 slots at work", "1,200", "90.0 s", "place 7, in about 12.0 s: 3 of 4 slots",
                 "▮▮▮▯", "2.5, peak 4", "[b]was killed[/b]", "2/4"):  # fmt: skip
        assert word in text, word
    assert len(text.splitlines()) <= 40


@given(st.integers(5, 60))
def test_jobs_get_the_lines_that_are_left(height: int) -> None:
    rows = drawn(facts(), height).count("aaaaaaaa")

    assert rows == min(20, max(3, height - 16))


def test_a_fleet_without_leader_or_nodes_says_so() -> None:
    text = drawn(Facts(is_led=False))

    assert "no coordinator leads" in text
    assert "no node reports" in text


@given(st.lists(st.integers(0, 200), min_size=5, max_size=5), st.integers(1, 500))
def test_a_bar_has_its_cells_and_shows_all_that_is_there(parts: list[int], budget: int) -> None:
    names = ("weights", "kv", "other", "reserved", "outside")
    text = bar(MemoryBar(budget=budget, **dict(zip(names, parts, strict=True))), 32).plain

    assert len(text) == 32
    if sum(parts) <= budget - 5 * budget // 32:
        assert (("░" in text), ("▒" in text)) == (parts[3] > 0, parts[4] > 0)


@given(st.lists(st.none() | st.floats(0, 1e6), max_size=40))
def test_a_spark_has_a_cell_for_each_value(values: list[float | None]) -> None:
    text = spark(values)

    assert len(text) == len(values)
    assert [cell == " " for cell in text] == [value is None for value in values]


# --- logs ----------------------------------------------------------------------------------------------------------


def lines(process: str, *texts: str) -> list[Line]:
    return [Line(process, text) for text in texts]


def test_logs_are_put_together_by_time_and_keep_their_own_order() -> None:
    agent = lines("agent", "10:00:01 INFO a", "Traceback", "10:00:05 INFO c")
    broker = lines("broker", "7:M 29 Nov 2026 10:00:03.100 * b", "10:00:05 INFO d")

    assert [line.text[-1] for line in in_order([agent, broker])] == ["a", "k", "b", "c", "d"]


def test_a_clock_that_jumps_ahead_looking_back_was_yesterday() -> None:
    log = lines("agent", "12:00:00 long ago", "23:00:00 then", "08:00:00 yesterday", "23:59:59 late", "00:00:01 now")
    times = [line.at_s for line in dated(log)]

    assert times == sorted(times)
    assert times[-1] == 1
    assert times[0] == 12 * 3600 - 2 * 24 * 3600


def test_a_clock_set_back_a_little_moves_nothing() -> None:
    assert [line.at_s for line in dated(lines("a", "10:00:05 x", "10:00:04 y"))] == [36005, 36005]


def test_an_instance_is_looked_for_in_the_log_of_its_agent() -> None:
    assert chosen("tiny-1", ["agent", "broker"]) == (["agent"], "tiny-1")
    assert chosen("broker", ["agent", "broker"]) == (["broker"], "")
    assert chosen(None, ["agent", "broker"]) == (["agent", "broker"], "")
