"""`packtrain simulate` and `packtrain plan` on files: what they print, and what they say of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from packtrain.broker.errors import InvalidParameter
from packtrain.client.cli.main import app
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

EXAMPLE = ROOT / "docs/examples/fleet.toml"
SMALL = """
nodes = [{name = "n1", memory = "10GB"}]
models = {m = {memory = "1GB", load = 4, slots = 1, decode = {alone = 10}, prefill = 100}}
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fleet_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return path


def test_the_example_is_simulated_to_the_last_job_and_again_the_same() -> None:
    first, again = (run("simulate", EXAMPLE, "--json") for _ in range(2))

    found = json.loads(first.stdout)
    assert found["jobs"] == found["succeeded"] > 400
    assert set(found["by_model"]) == {"tiny-1b", "chat-8b", "code-14b"}
    assert again.stdout == first.stdout
    assert run("simulate", EXAMPLE, "--json", "--seed", 2).stdout != first.stdout


def test_people_see_waits_by_lane_model_and_user_and_how_full_each_node_was() -> None:
    shown = run("simulate", EXAMPLE).stdout

    assert "lane interactive" in shown
    assert "model code-14b" in shown
    assert "user archive" in shown
    assert "mini-1" in shown
    assert "evictions" in shown


def test_people_see_what_takes_turns_and_what_never_fits() -> None:
    shown = run("plan", EXAMPLE).stdout

    assert "takes turns with chat-8b" in shown
    assert "giant-70b: 'giant-70b' needs 42915 MiB" in shown


def test_a_plan_needs_no_rates_and_says_that_speeds_are_not_known(tmp_path: Path) -> None:
    path = fleet_file(tmp_path, 'nodes = [{name = "n1", memory = "10GB"}]\nmodels = {m = {memory = "1GB"}}\n')

    assert "not known" in run("plan", path).stdout
    assert json.loads(run("plan", path, "--json").stdout)["models"][0]["places"][0]["pace"]["alone"] is None


def test_a_trace_is_read_beside_its_fleet_file(tmp_path: Path) -> None:
    lines = [{"at": at, "model": "m", "prompt": 100, "output": 50} for at in (0, 0, 1)]
    (tmp_path / "trace.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")

    found = json.loads(run("simulate", fleet_file(tmp_path, 'trace = "trace.jsonl"' + SMALL), "--json").stdout)

    assert (found["jobs"], found["makespan"]) == (3, 4 + 3 * 6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"at": 0, "model": "m", "prompt": 1}', "line 2: output: is missing; add it"),
        ('{"at": 0, "model": "k", "prompt": 1, "output": 1}', "line 2: model = 'k': is none of [models]; use one of m"),
        ('{"at": -1, "model": "m", "prompt": 1, "output": 1}', "line 2: at = -1: Input should be greater than"),
        ('{"at": 1, "model": "m", "prompt": 1, "output": 1}', "line 2: at = 1: is before the line above, 2; sort"),
        ("{", "line 2: Invalid JSON"),
    ],
)
def test_a_wrong_line_of_a_trace_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"at": 2, "model": "m", "prompt": 1, "output": 1}\n' + line)

    error = run("simulate", fleet_file(tmp_path, 'trace = "t.jsonl"' + SMALL)).exception

    assert isinstance(error, InvalidParameter)
    assert message in str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes = [", "is not TOML"),
        ("models = {}", "nodes: is missing; add it"),
        (SMALL + "node = 1", "node: unknown key; remove it, or correct its name"),
        (SMALL.replace("10GB", "10 apples"), "nodes.0.memory = '10 apples': '10 apples' is not a size; write"),
        (SMALL.replace("load = 4", 'load = "soon"'), "models.m.load = 'soon': 'soon' is not a duration; give seconds"),
        (SMALL.replace("slots = 1", "slots = 0"), "models.m.slots = 0: Input should be greater than or equal to 1"),
        (SMALL.replace("m = {", "M = {"), "models.M = 'M': String should match pattern"),
        (SMALL + '[[jobs]]\nmodels = "m"', "jobs.0 = {'models': 'm'}: it has no end; give `count`, or `rate`"),
        (SMALL + '[[jobs]]\nmodels = "k"\ncount = 1', "jobs.0 ask for the model 'k', which is none of [models]; use"),
        (SMALL + '[[jobs]]\nmodels = "m"\ncount = 1\nprompt = "long"', "jobs.0.prompt = 'long': give a number, {"),
        (SMALL + '[[jobs]]\nmodels = "m"\ncount = 1\nprompt = {uniform = [9, 1]}', "the first number is above"),
        (SMALL + '[[jobs]]\nmodels = {m = 0}\ncount = 1', "jobs.0.models = {'m': 0}: give at least one"),
        (SMALL.replace("}]", '}, {name = "n1", memory = "1GB"}]'), "two nodes are called 'n1'; give each its own name"),
        (SMALL.replace("10GB\"", '10GB", count = 10000}, {name = "x", memory = "1GB"'), "it has 10001 nodes, at most"),
        (SMALL.replace("10GB\"", '10GB", models = ["k"]'), "node 'n1' has the model 'k', which is none of [models]"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_fleet_file_names_key_value_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = fleet_file(tmp_path, text)

    error = run("plan", path).exception

    assert isinstance(error, InvalidParameter)
    assert str(error).startswith(str(path))
    assert message in str(error)


def test_a_fleet_without_jobs_is_not_simulated(tmp_path: Path) -> None:
    error = run("simulate", fleet_file(tmp_path, SMALL)).exception

    assert isinstance(error, InvalidParameter)
    assert "it has no jobs, so nothing would happen; add [[jobs]] or a trace" in str(error)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    error = run("plan", tmp_path / "none.toml").exception

    assert isinstance(error, InvalidParameter)
    assert "none.toml cannot be read (No such file or directory)" in str(error)
