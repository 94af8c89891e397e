"""The parts of a bulk run by themselves: ledger, files of answers, windows, progress."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.ids import ModelId, Route, route_of
from packtrain.broker.outcome import Usage
from packtrain.broker.states import InstanceState
from packtrain.client.bulk.ledger import End, Entry, GroupCount, Ledger, State
from packtrain.client.bulk.output import Journal, assemble, line_of
from packtrain.client.bulk.progress import MEASURED_S, Tally, forecast
from packtrain.client.bulk.rows import id_hash
from packtrain.client.bulk.window import LEAST, MOST, slots_for, together, window
from packtrain.client.result import Result
from tests.support.factories import MIB, instance_beat, model_info, node_beat

pytestmark = pytest.mark.unit

A, B, C = (route_of(ModelId(name)) for name in "abc")


def entry(line: int, route: str = "a", prefix: bytes = b"", custom_id: str = "") -> Entry:
    return Entry(line, line * 10, 10, id_hash(custom_id or f"row-{line}"), route, prefix, 5)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


# --- ledger


def test_rows_come_by_route_and_beginning_and_each_as_often_as_it_has_to_run(ledger: Ledger) -> None:
    ledger.fill([entry(1, "a", b"2"), entry(2, "b"), entry(3, "a", b"1"), entry(4, "a", b"2"), entry(5, "a", b"1")])
    first = ledger.todo("a", (b"", 0), 3)
    rest = ledger.todo("a", (first[-1].prefix, first[-1].line), 3)

    assert [todo.line for todo in first] == [3, 5, 1]
    assert [todo.line for todo in rest] == [4]
    ledger.record([End(3, State.DONE, 0, 4), End(1, State.FAILED, 0, 7)], again=[(5, 1, 1)])

    left = ledger.todo("a", (b"", 0), 9)
    assert [(todo.line, todo.epoch, todo.tries) for todo in left] == [(5, 1, 1), (4, 0, 0)]
    counts = ledger.counts()
    assert counts["a"].rows == {State.TODO: 2, State.DONE: 1, State.FAILED: 1}
    assert counts["b"].cost == {State.TODO: 5}


def test_a_ledger_is_the_same_after_it_was_opened_again(ledger: Ledger, tmp_path: Path) -> None:
    ledger.fill([entry(1), entry(2)])
    ledger.set_meta({"run": "x"})
    ledger.record([End(1, State.DONE, 0, 4)])
    ledger.close()

    again = Ledger(tmp_path / "ledger.sqlite")
    assert (again.meta, again.line_of(id_hash("row-2")), again.end_of(State.DONE)) == ({"run": "x"}, 2, 4)
    assert [todo.line for todo in again.todo("a", (b"", 0), 9)] == [2]
    again.fill([entry(7)])  # a run that begins anew
    assert (again.meta, [todo.line for todo in again.todo("a", (b"", 0), 9)]) == ({}, [7])


def test_double_ids_are_found_with_the_line_they_stood_on_first(ledger: Ledger) -> None:
    ledger.fill([entry(1, custom_id="x"), entry(2, custom_id="y"), entry(3, custom_id="x"), entry(4, custom_id="x")])

    assert sorted(ledger.duplicates()) == [(3, 1), (4, 1)]


def test_failed_rows_run_again_with_new_jobs_and_lines_that_were_cut_off_with_the_same(ledger: Ledger) -> None:
    ledger.fill([entry(1), entry(2), entry(3)])
    ledger.record([End(1, State.DONE, 0, 5), End(2, State.DONE, 5, 5), End(3, State.FAILED, 0, 9)])

    assert (ledger.forget_beyond(State.DONE, 7), ledger.retry_failed()) == (1, 1)
    assert [(todo.line, todo.epoch) for todo in ledger.todo("a", (b"", 0), 9)] == [(2, 0), (3, 1)]


# --- files of answers


def test_a_line_that_was_being_written_is_cut_off_and_those_behind_the_ledger_are_found(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    journal = Journal(path)
    lines = [line_of({"custom_id": name}) for name in ("a", "b", "ü")]
    places = [journal.append(line) for line in lines]
    journal.close()
    with open(path, "ab") as file:
        file.write(b'{"custom_id": "torn"')

    again = Journal(path)
    assert list(again.recover(len(lines[0]))) == [("b", places[1], len(lines[1])), ("ü", places[2], len(lines[2]))]
    assert path.read_bytes() == b"".join(lines)
    assert again.append(b"next\n") == len(b"".join(lines))
    again.close()


@given(cut=st.integers(0, 200))
def test_wherever_a_file_is_cut_whole_lines_are_found_and_the_rest_is_gone(cut: int) -> None:
    path = Path(f"/tmp/packtrain-{os.getpid()}.jsonl")
    lines = [line_of({"custom_id": f"row-{number}", "x": '\\n"'}) for number in range(5)]
    path.write_bytes(b"".join(lines)[:cut])
    try:
        found = [custom_id for custom_id, _, _ in Journal(path).recover(0)]
        left = path.read_bytes()
    finally:
        path.unlink()

    assert found == [f"row-{number}" for number in range(len(found))]
    assert left == b"".join(lines[: len(found)])
    assert len(left) <= cut < len(left) + 60 or cut > len(b"".join(lines))


def test_lines_are_put_in_order_into_a_file_that_shows_up_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "answers", tmp_path / "out.jsonl"
    source.write_bytes(b"two\none\n")

    assemble(source, [(4, 4), (0, 4)], target)
    assert target.read_bytes() == b"one\ntwo\n"
    assemble(source, [], target)
    assert [path.name for path in tmp_path.iterdir()] == ["answers"]  # nothing is no file, and no draft is left


# --- windows


def test_a_window_feeds_the_slots_and_what_is_served_in_a_while_and_is_bounded() -> None:
    assert [window(*case) for case in ((1, 0), (16, 0), (16, 10), (16, 1e6))] == [LEAST, 48, 200, MOST]


def test_slots_are_those_that_bulk_jobs_may_have() -> None:
    beats = [
        instance_beat("a1", model="a", n_slots=8, reserved_slots=2),
        instance_beat("a2", model="a", n_slots=8, state=InstanceState.LOADING),
        instance_beat("b1", model="b", n_slots=4, numerics="deterministic"),
    ]
    infos = {name: model_info(name, n_slots=16, reserved_slots=1) for name in "abc"}

    assert [slots_for(route, beats, infos) for route in (A, B, C)] == [6, 4, 15]
    assert slots_for(Route("a@deterministic"), beats, infos) == 15  # none is loaded that way
    assert slots_for(Route("b@deterministic"), beats, infos) == 4


def test_models_that_fit_together_run_together_and_the_others_wait_for_their_turn() -> None:
    infos = {name: model_info(name, required_bytes=600 * MIB) for name in "abc"}
    nodes = [node_beat("n1", models=("a", "b", "c")), node_beat("n2", models=("c",))]
    loaded_b = [instance_beat("b1", model="b", node="n1")]

    assert together([A, B, C], [], nodes, [], infos) == [A, C]
    assert together([A, B, C], [], nodes, loaded_b, infos) == [B, C]  # what is loaded goes first
    assert together([A, B, C], [A], nodes, loaded_b, infos) == [A, C]  # what runs is not stopped for it
    assert together([B], [A, C], nodes, [], infos) == [B]
    assert together([A, B], [], [], [], infos) == [A]  # nobody offers them yet: one waits in the fleet
    assert together([A, B], [], [node_beat(models=("a", "b"), draining=True)], [], infos) == [A]


# --- progress


def result(tokens: int, node: str = "n1") -> Result:
    return Result("j", "x", "stop", Usage(prompt_tokens=10, completion_tokens=tokens), node=node)


def test_rates_and_time_left_are_those_of_the_last_minute() -> None:
    counts = {"a": GroupCount({State.TODO: 90, State.DONE: 10}, {State.TODO: 900, State.DONE: 100})}
    tally = Tally.of(counts)
    tally.start(1000.0)
    for second in range(10):
        tally.ended("a", 10, [result(5, f"n{second % 2}")], 1000.0 + second, failed=second == 9)

    now = tally.look(1010.0)
    assert (now.total, now.completed, now.failed, now.ended) == (100, 19, 1, 20)
    assert (now.rows_per_s, now.tokens_per_s, now.eta_s) == (1.0, 5.0, 80.0)
    assert (now.by_node, now.by_model) == ({"n0": 5, "n1": 5}, {"a": 10})
    assert tally.look(1000.0 + 9 + 2 * MEASURED_S).eta_s is None  # nothing moves


def test_before_the_first_second_no_rate_is_told() -> None:
    tally = Tally.of({"a": GroupCount({State.TODO: 9}, {State.TODO: 9})})
    tally.start(5.0)
    tally.ended("a", 1, [result(1)], 5.1, failed=False)

    assert (tally.look(5.2).rows_per_s, tally.look(5.2).eta_s) == (0.0, None)


def test_a_forecast_is_made_of_what_is_measured_and_says_when_nothing_is() -> None:
    counts = {"a": GroupCount({State.TODO: 60, State.DONE: 9}, {State.TODO: 600}), "b": GroupCount({}, {})}
    loaded = [instance_beat("a1", model="a", n_slots=8, reserved_slots=2, job_s=3.0)]

    assert forecast(counts, loaded).seconds == 30.0
    assert forecast(counts, []).seconds is None
    assert (forecast(counts, []).rows, forecast(counts, []).tokens) == (60, 600)
    assert Counter(forecast(counts, []).rows_by_model) == {"a": 60}
