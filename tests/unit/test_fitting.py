"""What fits together, for fleets on paper and for live ones."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packtrain.broker.ids import Route
from packtrain.broker.simulation import Fit, FleetFile, ModelFit, as_it_is, fit, on_paper
from packtrain.broker.states import InstanceState
from tests.support.factories import MIB, instance_beat, model_info, node_beat
from tests.support.paper_fleets import GB, burst, model, node, paper_fleet

pytestmark = pytest.mark.unit


def fitted(fleet: FleetFile) -> tuple[Fit, dict[str, ModelFit]]:
    found = fit(*on_paper(fleet))
    return found, {one.model: one for one in found.models}


def test_models_that_fit_beside_each_other_stay() -> None:
    found, models = fitted(paper_fleet(models={"a": model(6), "b": model(4)}))

    assert {name: one.fate for name, one in models.items()} == {"a": "stays", "b": "stays"}
    assert [(n.node, n.free_bytes, sorted(n.models)) for n in found.nodes] == [("n1", 0, ["a", "b"])]


def test_of_two_that_fit_one_at_a_time_each_takes_turns_with_the_other() -> None:
    _, models = fitted(paper_fleet(models={"a": model(6), "b": model(6), "small": model(1)}))

    assert {name: (one.fate, one.swaps_with) for name, one in models.items()} == {
        "a": ("takes turns", ("b",)), "b": ("takes turns", ("a",)), "small": ("stays", ()),
    }  # fmt: skip


def test_what_is_asked_for_most_is_placed_first() -> None:
    models = {"a": model(6), "b": model(6)}

    assert fitted(paper_fleet(burst({"a": 1, "b": 3}, 100), models=models))[0].nodes[0].models == ("b",)
    assert fitted(paper_fleet(burst({"a": 3, "b": 1}, 100), models=models))[0].nodes[0].models == ("a",)


def test_what_fits_nowhere_says_the_shortfall_and_the_smallest_change() -> None:
    _, models = fitted(paper_fleet(models={"huge": model(20)}))

    assert (models["huge"].fate, models["huge"].could_run_on, models["huge"].places) == ("never", 0, ())
    assert "9537 less; use a smaller quantisation or a node with more memory" in models["huge"].reason


def test_what_no_node_may_load_says_which_labels_it_needs() -> None:
    _, models = fitted(paper_fleet(models={"a": model(nodes={"gpu": "yes"})}))

    assert models["a"].fate == "never"
    assert "the labels gpu=yes" in models["a"].reason


def test_what_waits_for_one_that_never_leaves_is_blocked() -> None:
    _, models = fitted(paper_fleet(models={"a": model(6, pinned=True), "b": model(6)}))

    assert (models["a"].fate, models["b"].fate) == ("stays", "blocked")
    assert "nothing idle to unload" in models["b"].reason


def test_a_file_that_must_be_fetched_counts_to_the_load() -> None:
    nodes = [node("n1", 3, models=["a", "b"]), node("n2", 10, models=[], network=GB)]
    _, models = fitted(paper_fleet(models={"a": model(2), "b": model(2)}, nodes=nodes))

    assert {one.places[0].node: one.places[0].pace.load_s for one in models.values()} == {"n1": 4, "n2": 4 + 2}


def test_speeds_are_what_the_file_says_times_the_speed_of_the_node_and_nothing_when_it_says_nothing() -> None:
    said = {"a": model(1, decode={"alone": 10, "full": 40}), "b": {"memory": "1GB"}}
    _, models = fitted(paper_fleet(models=said, nodes=[node(speed=2)]))

    a, b = models["a"].places[0].pace, models["b"].places[0].pace
    assert (a.alone, a.full, a.source) == (20, 80, "as the file says")
    assert (b.alone, b.full, b.source) == (None, None, "unknown")


def test_a_live_fleet_is_fitted_as_if_nothing_were_loaded_with_what_was_measured() -> None:
    nodes = [node_beat("n1", models=("a", "b"), memory_free=700 * MIB, memory_budget=1000 * MIB)]
    infos = [model_info("a", required_bytes=600 * MIB), model_info("b", required_bytes=600 * MIB)]
    loaded = instance_beat(
        "a-1", model="a", resident_bytes=600 * MIB, requested_ms=1000, ready_ms=8000, tokens_per_s=33, slots_used=3
    )
    gone = loaded.model_copy(update={"instance": "b-1", "model": "b", "state": InstanceState.STOPPED})

    found = fit(*as_it_is(10_000_000, nodes, [loaded, gone], infos, {}, {Route("a"): 5}))

    a, b = found.models
    assert (a.fate, b.fate) == ("takes turns", "takes turns")
    assert found.nodes[0].models == ("a",)
    assert (a.places[0].pace.load_s, a.places[0].pace.full, a.places[0].pace.jobs_at_once) == (7, 33, 3)
    assert (b.places[0].pace.load_s, b.places[0].pace.source) == (None, "unknown")


def test_a_node_that_takes_nothing_is_named_with_its_reason() -> None:
    nodes = [
        node_beat("n1", models=("a",), quarantine="3 instances died"),
        node_beat("n2", models=("a",), draining=True),
    ]

    found = fit(*as_it_is(10_000_000, nodes, [], [model_info("a")], {}, {}))

    assert [n.closed for n in found.nodes] == ["3 instances died", "it drains"]
    assert found.models[0].fate == "never"
    assert "quarantine" in found.models[0].reason


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    budgets=st.lists(st.integers(1, 14), min_size=1, max_size=4),
)
def test_no_budget_is_exceeded_and_every_model_has_a_fate_that_is_true(sizes: list[int], budgets: list[int]) -> None:
    models: dict[str, Any] = {f"m{n}": model(gb) for n, gb in enumerate(sizes)}
    found, fates = fitted(paper_fleet(models=models, nodes=[node(f"n{n}", gb) for n, gb in enumerate(budgets)]))

    need = {f"m{n}": gb * GB for n, gb in enumerate(sizes)}
    for one in found.nodes:
        assert one.free_bytes == one.budget_bytes - sum(need[name] for name in one.models) >= 0
    assert {name for name, one in fates.items() if one.fate == "never"} == {
        name for name, size in need.items() if size > max(budgets) * GB
    }
    held = {name for one in found.nodes for name in one.models}
    assert {name for name, one in fates.items() if one.fate == "stays"} <= held
    for name, fate in fates.items():
        assert bool(fate.swaps_with) == (fate.fate == "takes turns")
        assert all(name in fates[other].swaps_with for other in fate.swaps_with)
