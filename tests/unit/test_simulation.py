"""Fleets on paper: sums that can be done by hand, and what the policy promises."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.simulation import FleetFile, Outcome, Simulation, TraceLine
from tests.support.paper_fleets import burst, model, node, paper_fleet

pytestmark = pytest.mark.unit


def outcome(fleet: FleetFile, *trace: TraceLine, seed: int = 1) -> Outcome:
    return Simulation(fleet, seed, trace).run()


def history(fleet: FleetFile, trace: Iterable[TraceLine] = ()) -> list[tuple[float, str, str]]:
    simulation = Simulation(fleet, 1, trace)
    simulation.run()
    return [(at, verb, name) for at, verb, name, _ in simulation.history]


def job(at: float, name: str, user: str = "default", **fields: Any) -> TraceLine:
    return TraceLine.model_validate({"at": at, "model": name, "user": user, "prompt": 100, "output": 50, **fields})


def test_jobs_of_one_slot_run_one_after_the_other_behind_one_load() -> None:
    found = outcome(paper_fleet(burst("m", 3), models={"m": model()}))

    # Loaded from 0 to 4 s; then three times 100 / 100 + 50 / 10 = 6 s.
    assert found.loads == 1
    assert found.makespan == pytest.approx(4 + 3 * 6)
    assert (found.waits.p50, found.waits.longest, found.waits.mean) == (10, 16, 10)
    assert found.tokens_per_s == pytest.approx(150 / 22, abs=0.001)
    assert found.slots == 1  # from the moment that it is ready
    assert found.nodes[0].memory == pytest.approx(0.1)
    assert found.longest_unserved == {"m": 4}


def test_a_batch_takes_the_steps_of_its_rates() -> None:
    # One alone steps in 0.1 s, four together make 20 tokens/s: a step of 0.2 s, so each of three more adds 1/30 s.
    fleet = paper_fleet(
        burst("m", 2, prompt=0, output=30), models={"m": model(slots=4, decode={"alone": 10, "full": 20})}
    )

    assert outcome(fleet).makespan == pytest.approx(4 + 30 * (0.1 + 1 / 30), abs=0.001)


def test_one_that_joins_a_batch_stops_it_for_its_prompt_and_slows_it_afterwards() -> None:
    fleet = paper_fleet(models={"m": model(slots=2, load=0, decode={"alone": 10, "full": 10})})
    simulation = Simulation(fleet, 1, [job(0, "m", prompt=0), job(1, "m", prompt=100, output=10)])

    # The first has 10 tokens after 1 s, waits 1 s for the other's prompt; both get 10 more in steps of 0.2 s; then it
    # has 30 left, alone again.
    found = simulation.run()
    assert found.makespan == pytest.approx(1 + 1 + 10 * 0.2 + 30 * 0.1)


def test_instances_at_work_on_one_node_share_it() -> None:
    fleet = paper_fleet(burst("a"), burst("b"), models={"a": model(), "b": model()}, nodes=[node(speed=2)])

    # Alone each takes 6 s / 2; together each has half of the node.
    assert outcome(fleet).makespan == pytest.approx(4 + 6)


def test_a_burst_of_a_hundred_jobs_loads_its_model_once() -> None:
    nodes = [node("n1"), node("n2"), node("n3")]

    fleet = paper_fleet(burst("m", 100, prompt=10, output=1), models={"m": model(slots=8, load=30)}, nodes=nodes)
    found = outcome(fleet)

    assert (found.loads, found.succeeded) == (1, 100)


def test_a_backlog_that_outlasts_loads_by_far_gets_more_replicas() -> None:
    nodes = [node("n1"), node("n2"), node("n3")]

    found = outcome(paper_fleet(burst("m", 100), models={"m": model()}, nodes=nodes))

    assert found.loads == 3
    assert found.makespan < 100 * 6 / 2


def test_models_that_fit_one_at_a_time_take_turns_and_not_with_every_job() -> None:
    three = {name: model(6) for name in "abc"}
    stream = [job(n * 0.01, "abc"[n % 3], prompt=10, output=10) for n in range(30)]

    assert [name for _, verb, name in history(paper_fleet(models=three), stream) if verb == "load"] == ["a", "b", "c"]


@settings(max_examples=12, deadline=None)
@given(
    load=st.sampled_from([0, 4, 25]),
    wait=st.sampled_from([5, 30]),
    stay=st.sampled_from([8, 10]),
    drain=st.sampled_from([0, 5, 20]),
    output=st.sampled_from([1, 9, 200]),
)
def test_endless_work_of_two_models_for_one_place_lets_neither_wait_beyond_its_bound(
    load: float, wait: float, stay: float, drain: float, output: int
) -> None:
    models = {name: model(6, load=load) for name in "ab"}
    stream = burst({"a": 1, "b": 1}, 1200 // (output + 1), output=output, prompt=10)

    found = outcome(paper_fleet(stream, models=models, max_wait=wait, min_residency=stay, drain=drain))

    # It waits until it has waited too long and the other one has stayed long enough; then the other one's jobs have
    # `drain` to end, and it is loaded. Each of these begins at a tick.
    longest = max(wait, drain + load + stay) + drain + load
    assert max(found.longest_unserved.values()) <= longest + 4
    assert found.succeeded == found.jobs


def test_jobs_that_no_stay_is_long_enough_for_end_the_run_with_the_reason() -> None:
    models = {name: model(6, load=25) for name in "ab"}
    fleet = paper_fleet(burst({"a": 1, "b": 1}, 4, output=3000), models=models, max_wait=5, min_residency=1, drain=0)

    found = outcome(fleet)

    assert found.never_served == found.jobs - found.succeeded > 0
    assert any("given back 100 times before its end" in reason for reason in found.reasons.values())


def test_two_models_whose_prompts_take_longer_than_a_stay_are_both_served() -> None:
    models = {name: model(6, load=25) for name in "ab"}
    stream = burst({"a": 1, "b": 1}, 6, prompt=1000, output=20)  # 10 s of prefill

    found = outcome(paper_fleet(stream, models=models, max_wait=20, min_residency=5, drain=3))

    assert found.succeeded == found.jobs == 6
    assert found.loads <= found.jobs


def test_a_job_that_is_given_back_keeps_its_tokens_and_goes_on_elsewhere() -> None:
    fleet = paper_fleet(models={"a": model(6), "b": model(6)}, max_wait=10, min_residency=1, drain=3)
    found = outcome(fleet, job(0, "a", output=1000), job(1, "b", output=10))

    # `a` is loaded at 4 s, driven out at 11 and gives its job back at 14 s, with 90 tokens of 1000. `b` is loaded at
    # the next tick, runs from 19 to 21 s, leaves at 22 and its room is seen at 23 s: `a` is ready again at 27 s, with
    # 910 tokens to go and 190 to prefill.
    assert (found.moved, found.driven_out, found.succeeded, found.waits.jobs) == (1, 1, 2, 2)
    assert found.tokens_per_s * found.makespan == pytest.approx(1010, rel=0.001)
    assert found.makespan == pytest.approx(27 + 1.9 + 91)


def test_users_take_turns_however_many_jobs_each_has() -> None:
    many = [job(0, "m", "many") for _ in range(50)]
    few = [job(0.5, "m", "few") for _ in range(3)]

    found = outcome(paper_fleet(models={"m": model(load=1)}), *many, *few)

    assert found.by_user["few"].longest <= 1 + 2 * 3 * 6
    assert found.by_user["many"].longest == pytest.approx(1 + 52 * 6)


def test_interactive_jobs_go_first_and_have_slots_that_bulk_jobs_leave_to_them() -> None:
    bulk = [job(0, "m", lane="bulk", prompt=0) for _ in range(8)]
    fleet = paper_fleet(models={"m": model(slots=4, load=0, decode={"alone": 10, "full": 40})})

    found = outcome(fleet, *bulk, job(1, "m", prompt=0))

    assert found.by_lane["interactive"].longest == 0
    assert found.by_lane["bulk"].longest == pytest.approx(10, abs=0.1)  # 3 at a time: eight in three rounds of 5 s


def test_a_node_without_the_file_fetches_it_when_the_others_have_no_room() -> None:
    nodes = [node("n1", 3, models=["a", "b"], network=10**9), node("n2", 10, models=[], network=10**9)]
    fleet = paper_fleet(burst("a"), burst("b"), models={"a": model(2), "b": model(2)}, nodes=nodes)

    simulation = Simulation(fleet, 1)
    found = simulation.run()

    # 2 GB at 1 GB/s, then 4 s of load.
    assert [(verb, name, where) for _, verb, name, where in simulation.history] == [
        ("load", "a", "n1"), ("load", "b", "n2"),
    ]  # fmt: skip
    assert found.by_model["b"].longest == pytest.approx(2 + 4)


def test_what_fits_nowhere_is_refused_with_the_shortfall_and_the_rest_goes_on() -> None:
    found = outcome(paper_fleet(burst({"m": 1, "huge": 1}, 40), models={"m": model(), "huge": model(20)}))

    assert found.succeeded + found.rejected == 40
    assert found.rejected > 0
    assert "9536 MiB, 9537 less" in found.reasons["huge"]


def test_what_can_never_be_loaded_beside_what_never_leaves_is_counted_and_ends_the_run() -> None:
    models = {"kept": model(6, pinned=True, replicas={"min": 1}), "m": model(6)}

    found = outcome(paper_fleet(burst("m", 2, start=10), models=models))

    assert (found.never_served, found.succeeded) == (2, 0)
    assert "nothing idle to unload" in found.reasons["m"]


def test_idle_models_leave_after_their_keep_alive_and_replicas_before() -> None:
    fleet = paper_fleet(
        burst("m", 60), burst("m", start=1000), models={"m": model(keep_alive=200)}, nodes=[node("n1"), node("n2")]
    )

    simulation = Simulation(fleet, 1)
    simulation.run()

    gone = [at for at, verb, _, _ in simulation.history if verb == "unload"]
    end = 4 + 60 * 6
    assert len(gone) == 2
    assert gone[0] < end / 2 + 80
    assert gone[1] > gone[0] + 100


def test_a_model_without_rates_is_refused_by_its_key() -> None:
    with pytest.raises(InvalidParameter, match=r"models\.m has no decode or prefill rate.*; add decode = "):
        Simulation(paper_fleet(burst("m"), models={"m": {"memory": "1GB"}}), 1)


def test_a_trace_and_streams_are_served_in_the_order_of_their_times() -> None:
    fleet = paper_fleet(burst("m", start=3), models={"m": model(load=0)})

    found = outcome(fleet, job(0, "m"), job(10, "m"))

    assert found.jobs == 3
    assert found.makespan == pytest.approx(6 * 3)


FLEETS = st.fixed_dictionaries(
    {
        "nodes": st.lists(
            st.fixed_dictionaries({"gb": st.integers(2, 12), "speed": st.sampled_from([0.5, 1, 3])}),
            min_size=1, max_size=3,
        ),
        "models": st.lists(
            st.fixed_dictionaries(
                {
                    "gb": st.integers(1, 9), "slots": st.integers(1, 5), "load": st.sampled_from([0, 2.5, 20]),
                    "keep_alive": st.sampled_from([0, 7, 90]),
                }
            ),
            min_size=1, max_size=3,
        ),
        "jobs": st.lists(
            st.tuples(
                st.floats(0, 99), st.integers(0, 2), st.sampled_from("xy"), st.sampled_from(["interactive", "bulk"]),
                st.integers(0, 300), st.integers(0, 100),
            ),
            min_size=1, max_size=20,
        ),
    }
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(drawn=FLEETS)
def test_each_job_ends_once_again_the_same_way_and_no_plan_is_left_out_that_matters(drawn: dict[str, Any]) -> None:
    names = [f"m{n}" for n in range(len(drawn["models"]))]
    models = {
        name: model(m["gb"], slots=m["slots"], load=m["load"], keep_alive=m["keep_alive"])
        for name, m in zip(names, drawn["models"], strict=True)
    }
    nodes = [node(f"n{k}", n["gb"], speed=n["speed"]) for k, n in enumerate(drawn["nodes"])]
    fleet = paper_fleet(models=models, nodes=nodes, max_wait=20, min_residency=5, drain=3)
    trace = [
        job(at, names[which % len(names)], user, lane=lane, prompt=prompt, output=output)
        for at, which, user, lane, prompt, output in sorted(drawn["jobs"])
    ]

    first = Simulation(fleet, 1, trace)
    found = first.run()
    every = Simulation(fleet, 1, trace, every_tick=True)
    lazy = found.model_copy(update={"plans": 0})

    assert found.jobs == len(trace) == found.succeeded + found.rejected + found.never_served
    assert found.waits.jobs == found.succeeded
    assert Simulation(fleet, 1, trace).run() == found
    assert every.run().model_copy(update={"plans": 0}) == lazy
    assert every.history == first.history
    assert not found.never_served
    assert max((use.memory for use in found.nodes), default=0) <= 1


def test_another_seed_draws_other_jobs_and_the_same_seed_the_same() -> None:
    stream = {"models": {"m": 1, "k": 3}, "users": ["x", "y"], "rate": 2, "lasts": "1m", "output": {"median": 20}}
    fleet = paper_fleet(stream, models={"m": model(), "k": model()})

    assert outcome(fleet, seed=3) == outcome(fleet, seed=3)
    assert outcome(fleet, seed=3) != outcome(fleet, seed=4)
