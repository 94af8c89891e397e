"""Fleets that do not exist: what fits together, and how jobs fare, by the real planner on a virtual clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.ids import ModelId
from packtrain.broker.simulation.fitting import fit
from packtrain.broker.simulation.fleet import SimFleet, SimJob, arrivals
from packtrain.broker.simulation.report import SimResult
from packtrain.broker.simulation.world import World
from packtrain.client.cli.fleet_file import read_fleet, to_snapshot
from packtrain.client.cli.main import app

pytestmark = pytest.mark.unit

NODE = '[nodes.desk]\nmemory = "1000MB"\n'
TWO = NODE.replace("desk]", "desk]\ncount = 2")


def model(name: str, memory: str = "600MB", more: str = "") -> str:
    """A model of two slots that is loaded in 5 s and makes 10 tokens a second in each."""
    rates = "slots = 2\nload = 5\ntokens_per_s = 20\nprefill_per_s = 1000000000"
    return f'[models.{name}]\nmemory = "{memory}"\n{rates}\n{more}\n'


def fleet(folder: Path, text: str) -> SimFleet:
    path = folder / "fleet.toml"
    path.write_text(text)
    return read_fleet(path)


def run(fleet: SimFleet, jobs: list[SimJob]) -> SimResult:
    return World(fleet, max_wait_ms=60_000, min_residency_ms=10_000).run(jobs).result


def job(name: str, at_s: float = 0, output: int = 10, user: str = "u", lane: str = "interactive") -> SimJob:
    return SimJob(at_s * 1000, ModelId(name), 1, output, user, lane)


def test_models_that_fit_together_are_told_from_those_that_take_turns_or_never_fit(tmp_path: Path) -> None:
    text = NODE + model("a", "500MB") + model("b", "400MB") + model("c", "700MB") + model("d", "2GB")

    found = fit(to_snapshot(fleet(tmp_path, text)))

    assert {load.model for load in found.loads} == {"a", "b"}
    assert set(found.turns) == {"c"}
    assert set(found.never) == {"d"}


def test_a_job_waits_for_its_load_and_runs_as_long_as_its_tokens_take(tmp_path: Path) -> None:
    result = run(fleet(tmp_path, NODE + model("a")), [job("a", at_s=0.5, output=30)])

    # Seen at the tick of 1 s, loaded at 6 s, 30 tokens in 3 s.
    assert result.waits.longest == pytest.approx(5.5)
    assert result.seconds == pytest.approx(9)
    assert (result.jobs, result.loads, result.left) == (1, 1, 0)


def test_jobs_by_turns_run_model_by_model(tmp_path: Path) -> None:
    three = fleet(tmp_path, NODE + model("a") + model("b") + model("c"))

    result = run(three, [job(name) for _ in range(20) for name in "abc"])

    assert (result.jobs, result.loads, result.unloads_for_room) == (60, 3, 2)


def test_users_take_turns_and_interactive_jobs_go_first(tmp_path: Path) -> None:
    crowd = [job("a", user="many", lane="bulk") for _ in range(40)]
    few = [job("a", at_s=6, user="few", lane="bulk"), job("a", at_s=6)]
    run(fleet(tmp_path, NODE + model("a")), [*crowd, *few])

    order = sorted([*crowd, *few], key=lambda j: j.begun_ms)
    assert order.index(few[1]) < 5, "the interactive one takes the next free slot"
    assert order.index(few[0]) < 8, "the other user's turn comes long before the 40 are through"


def test_jobs_of_a_model_that_fits_nowhere_fail_and_those_that_never_get_room_are_left(tmp_path: Path) -> None:
    text = NODE + model("kept", more="pinned = true\nmin_replicas = 1") + model("other") + model("huge", "9GB")
    result = run(fleet(tmp_path, text), [job("kept"), job("other", at_s=10), job("huge", at_s=10)])

    assert [why.partition(":")[0] for why in result.rejected] == ["model_too_large"]
    assert (result.jobs, result.left) == (1, 1)


def test_jobs_come_at_the_rates_of_the_file_and_the_same_seed_gives_the_same(tmp_path: Path) -> None:
    text = NODE + model("a", more="jobs_per_min = 30") + model("b", more="jobs_per_min = 10\nbulk = 1.0")
    made = fleet(tmp_path, text)
    jobs = list(arrivals(made, 4000, 1))

    assert jobs[-1].at_ms / 60_000 == pytest.approx(100, rel=0.1)
    assert sum(j.model == "a" for j in jobs) == pytest.approx(3000, rel=0.1)
    assert {j.lane for j in jobs if j.model == "b"} == {"bulk"}
    assert run(made, list(arrivals(made, 300, 7))) == run(made, list(arrivals(made, 300, 7)))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[nodes.x]\nmemory = 1\n", "models: Field required"),
        (NODE + "[models.a]\nmemory = '1 ton'\n", "models.a.memory: Value error, '1 ton' is not a size"),
        (NODE + "[models.a]\nmemory = '1GB'\nslots = 0\n", "models.a.slots"),
        (NODE + "[models.a]\nmemory = '1GB'\nsolts = 1\n", "models.a.solts: Extra inputs"),
        ("[nodes.x\n", "is not TOML"),
        (
            NODE.replace("desk]", "desk]\ncount = 10000") + "[nodes.y]\nmemory = 1\n[models.a]\nmemory = 1\n",
            "10001 nodes",
        ),
    ],
)
def test_a_mistake_in_a_fleet_file_is_refused_with_its_place(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(InvalidParameter, match=r"fleet\.toml") as caught:
        fleet(tmp_path, text)

    assert part in str(caught.value)


def test_a_fleet_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"nowhere\.toml cannot be read"):
        read_fleet(tmp_path / "nowhere.toml")


def test_the_command_line_plans_and_simulates_a_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(TWO + model("a", more="jobs_per_min = 2") + model("b", "2GB"))

    planned = CliRunner().invoke(app, ["plan", str(path)]).output
    simulated = json.loads(CliRunner().invoke(app, ["simulate", str(path), "--jobs", "50", "--json"]).output)

    assert "b never fits" in planned
    assert "desk-2" in planned
    assert (simulated["jobs"], simulated["models"][0]["loads"]) == (50, 1)
    assert "50 jobs in" in CliRunner().invoke(app, ["simulate", str(path), "--jobs", "50"]).output


def test_the_fleet_file_of_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "fleet-file.md").read_text()

    made = fleet(tmp_path, text.partition("```toml\n")[2].partition("```")[0])

    assert [node.beat.node for node in made.nodes] == ["desk-1", "desk-2", "desk-3"]
    assert set(made.models) == {"chat", "code"}
