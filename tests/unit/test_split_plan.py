"""The plan of a split: who takes part, with how many layers, how fast, and what is missing where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packtrain.broker.beats import InstanceBeat, NodeBeat, NodeLink
from packtrain.broker.errors import UnknownModel
from packtrain.broker.ids import ModelId, NodeId
from packtrain.broker.model_info import BufferMemory, ModelInfo, ModelMemory
from packtrain.broker.placement.snapshot import Snapshot
from packtrain.broker.placement.split import Link, Links, Member, NoSplit, SplitModel, SplitPlan, deal, plan_split
from packtrain.broker.placement.split_fleet import LINK_LIFE_MS, SHARD_BYTES, SplitFit, fit_split, split_model
from packtrain.broker.placement.split_speed import (
    HAND_OFF_S,
    HANDLED_BYTES_PER_S,
    HEAD_START_S,
    LOAD_ROUND_TRIPS,
    STEP_BYTES,
    forecast,
)
from packtrain.broker.states import InstanceState
from packtrain.client.cli.split_view import show_split
from packtrain.workers.step_speed import StepSpeed
from tests.support.factories import MIB, instance_beat, node_beat

pytestmark = pytest.mark.unit

MODEL = SplitModel(layers=(10 * MIB,) * 10, head_bytes=20 * MIB, shard_bytes=5 * MIB)
GIGABIT = Link(118e6, 0.0004)


def member(node: str, free_mib: int = 100, *, has_file: bool = True, build: str = "b1") -> Member:
    """A node with so much free."""
    return Member(NodeId(node), free_mib * MIB, has_file, build)


def linked(*pairs: str, **special: Link) -> Links:
    """Links between nodes of one letter; those that are named have their own."""
    return {(NodeId(p[0]), NodeId(p[1])): special.get(p, GIGABIT) for p in (*pairs, *special)}


def planned(plan: SplitPlan | NoSplit) -> SplitPlan:
    """It is one."""
    assert isinstance(plan, SplitPlan)
    return plan


def dealt(plan: SplitPlan | NoSplit) -> dict[str, int]:
    """Layers by node, the head first."""
    return {share.node: share.count for share in planned(plan).shares}


def test_layers_are_dealt_by_what_each_member_can_give() -> None:
    plan = plan_split(MODEL, [member("a", 100), member("b", 127, has_file=False)], linked("ab"))

    assert dealt(plan) == {"a": 4, "b": 6}  # 75 MiB less the head's 20, 95 less the shard's 5
    head, shard = planned(plan).shares
    assert (head.size, head.usable) == (60 * MIB, 75 * MIB)
    assert (shard.first, shard.size, shard.link) == (4, 65 * MIB, GIGABIT)


def test_two_nodes_are_preferred_to_three_and_the_wider_link_to_the_shorter() -> None:
    nodes = [member("a", 120), *(member(name, 120, has_file=False) for name in "bcd")]
    wide, short = Link(500e6, 0.002), Link(118e6, 0.0001)

    assert dealt(plan_split(MODEL, nodes, linked("ab", ac=wide, ad=short))).keys() == {"a", "c"}


def test_links_of_about_one_width_are_told_apart_by_their_round_trips() -> None:
    nodes = [member("a", 120), *(member(name, 120, has_file=False) for name in "bc")]
    links = linked(ab=Link(118e6, 0.002), ac=Link(109e6, 0.0002))

    assert dealt(plan_split(MODEL, nodes, links)).keys() == {"a", "c"}


def test_a_third_node_comes_in_where_two_are_too_small() -> None:
    nodes = [member("a", 80), member("b", 80, has_file=False), member("c", 80, has_file=False)]

    assert dealt(plan_split(MODEL, nodes, linked("ab", "ac"))) == {"a": 3, "b": 3, "c": 4}


def test_only_the_links_of_the_head_count() -> None:
    nodes = [member("a", 80, has_file=False), member("b", 80), member("c", 80, has_file=False)]

    assert dealt(plan_split(MODEL, nodes, linked("ab", "bc"))).keys() == {"a", "b", "c"}
    assert isinstance(plan_split(MODEL, nodes, linked("ab", "ac")), NoSplit)


@pytest.mark.parametrize(
    ("nodes", "pairs", "reason"),
    [
        ([member("a")], "", "needs two nodes that take instances, there is one"),
        ([member("a", has_file=False), member("b", has_file=False)], "ab", "packtrain pull"),
        ([member("a", 20), member("b", has_file=False)], "ab", "a head needs 20 MiB besides its layers"),
        ([member("a"), member("b", build="b2")], "ab", "b has another llama.cpp (b2) than a (b1)"),
        ([member("a"), member("b", build="")], "ab", "b has not told yet which llama.cpp"),
        ([member("a"), member("b")], "", "the link between a and b is not measured"),
        ([member("a", 60), member("b", 60)], "ab", "36 MiB too little"),
        ([member("a", 900), member("b", 5)], "ab", "a shard needs 5 MiB besides its layers, and b can give no more"),
    ],
)
def test_where_there_is_no_split_the_node_and_the_remedy_are_named(
    nodes: list[Member], pairs: str, reason: str
) -> None:
    plan = plan_split(MODEL, nodes, linked(*[pairs] if pairs else []))

    assert isinstance(plan, NoSplit)
    assert any(reason in each for each in plan.reasons), plan.reasons


def test_layers_that_are_too_large_for_the_rooms_though_their_sum_would_fit_are_told_as_such() -> None:
    two_large = SplitModel((50 * MIB, 50 * MIB), 20 * MIB, 5 * MIB)
    plan = plan_split(two_large, [member("a", 90), member("b", 90)], linked("ab"))

    assert isinstance(plan, NoSplit)
    assert "its 2 layers do not divide among a and 1 more; add a node with more than 55 MiB" in plan.reasons[0]


@given(layers=st.lists(st.integers(1, 50), min_size=1, max_size=40), rooms=st.lists(st.integers(0, 400), min_size=1))
def test_dealing_gives_every_layer_to_one_member_that_has_room_for_it(layers: list[int], rooms: list[int]) -> None:
    counts = deal(layers, rooms)

    if counts is None:
        # Neighbours cannot always be dealt though the sum would fit, but never for want of more than a layer each.
        assert sum(layers) > sum(rooms) - max(layers) * len(rooms)
        return
    assert sum(counts) == len(layers)
    first = 0
    for count, room in zip(counts, rooms, strict=True):
        assert sum(layers[first : first + count]) <= room
        first += count


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Member], Links]:
    names = [NodeId(f"n{number}") for number in range(draw(st.integers(1, 6)))]
    nodes = [
        Member(name, draw(st.integers(0, 40)), draw(st.booleans()), draw(st.sampled_from(["b1", "b1", "b2", ""])))
        for name in names
    ]
    widths = st.sampled_from([1e6, 1e7, 1e8])
    trips = st.sampled_from([0.0001, 0.001, 0.02])
    links = {pair: Link(draw(widths), draw(trips)) for pair in combinations(names, 2) if draw(st.booleans())}
    return nodes, links


@settings(deadline=None)
@given(fleet=fleets(), num_layers=st.integers(2, 60), head=st.integers(0, 8), shard=st.integers(0, 4))
def test_a_plan_keeps_its_promises_in_any_fleet(
    fleet: tuple[list[Member], Links], num_layers: int, head: int, shard: int
) -> None:
    """Layers of one byte, so that whatever is large enough in sum can be dealt: then a search by hand must agree."""
    nodes, links = fleet
    by_name = {node.node: node for node in nodes}
    plan = plan_split(SplitModel((1,) * num_layers, head, shard), nodes, links)

    def reach(leader: Member, others: tuple[Member, ...]) -> int | None:
        """The width of the narrowest link; None: they cannot."""
        found = [links.get((min(leader.node, o.node), max(leader.node, o.node))) for o in others]
        room = leader.usable - head + sum(o.usable - shard for o in others)
        alike = all(o.build == leader.build and o.usable > shard for o in others)
        able = leader.has_file and leader.build and leader.usable >= head and alike and all(found)
        return min(link.width for link in found if link) if able and room >= num_layers else None

    best = [
        (len(others), -width)
        for leader in nodes
        for count in range(1, len(nodes))
        for others in combinations([node for node in nodes if node is not leader], count)
        if num_layers >= count and (width := reach(leader, others)) is not None
    ]
    if isinstance(plan, NoSplit):
        assert plan.reasons
        assert not best
        return
    assert sum(share.count for share in plan.shares) == num_layers
    assert [share.first for share in plan.shards] == [
        sum(before.count for before in plan.shares[: place + 1]) for place in range(len(plan.shards))
    ]
    assert by_name[plan.head.node].has_file
    for share in plan.shards:
        assert share.count >= 1
        assert by_name[share.node].build == by_name[plan.head.node].build != ""
    for share in plan.shares:
        assert share.size <= share.usable <= by_name[share.node].free * 3 / 4
    narrowest = min(share.link.width for share in plan.shards if share.link)
    assert (len(plan.shards), -narrowest) == min(best)


def test_a_forecast_adds_what_members_read_and_what_links_take() -> None:
    plan = planned(plan_split(MODEL, [member("a", 100), member("b", 127)], linked(ab=Link(100e6, 0.002))))
    weights = {NodeId("a"): 40_000_000, NodeId("b"): 60_000_000}
    rates = {NodeId("a"): 4e9, NodeId("b"): 6e9}

    said = forecast(plan, weights, rates, n_embd=1000)

    network = 0.002 + (12_000 + STEP_BYTES) / 100e6 + HAND_OFF_S
    assert said.network_s == pytest.approx(network)
    assert said.compute_s == pytest.approx(0.02)
    assert said.tokens_per_s == pytest.approx(1 / (0.02 + network))
    shard = plan.shards[0].node
    sent_s = weights[shard] / 100e6 + weights[shard] / HANDLED_BYTES_PER_S
    assert said.load_s == pytest.approx(HEAD_START_S + sent_s + LOAD_ROUND_TRIPS * 0.002)


def test_each_shard_costs_a_round_trip_and_its_hand_offs() -> None:
    members = [member("a", 60), member("b", 60, has_file=False), member("c", 60, has_file=False)]
    slow = Link(118e6, 0.02)
    plan = planned(plan_split(MODEL, members, linked(ab=slow, ac=slow)))
    rates = dict.fromkeys((share.node for share in plan.shares), 1e12)

    said = forecast(plan, dict.fromkeys(rates, 1), rates, n_embd=1000)

    assert len(plan.shards) == 2
    assert 1 / (said.tokens_per_s or 0) == pytest.approx(2 * (0.02 + HAND_OFF_S), rel=0.01)


def test_a_node_that_has_computed_nothing_makes_the_speed_unknown() -> None:
    plan = planned(plan_split(MODEL, [member("a", 100), member("b", 127)], linked("ab")))

    said = forecast(plan, {NodeId("a"): 1, NodeId("b"): 1}, {plan.head.node: 1e9}, n_embd=1000)

    assert (said.tokens_per_s, said.unmeasured) == (None, (plan.shards[0].node,))
    assert said.network_s >= HAND_OFF_S  # which is known all the same


def test_a_speed_is_that_of_the_fastest_time_in_which_one_job_decoded_alone() -> None:
    speed = StepSpeed()

    speed.note("m-1", 0.0, steps=10, tokens=10, step_bytes=100)
    speed.note("m-1", 1.0, steps=40, tokens=40, step_bytes=100)  # too soon to tell
    assert speed.bytes_per_s == 0
    speed.note("m-1", 2.0, steps=50, tokens=50, step_bytes=100)  # 20 a second
    speed.note("m-1", 4.0, steps=100, tokens=400, step_bytes=100)  # several jobs
    speed.note("m-1", 6.0, steps=110, tokens=410, step_bytes=100)  # a pause
    speed.note("m-1", 8.0, steps=112, tokens=412, step_bytes=100)  # too few
    assert speed.bytes_per_s == 2000
    speed.forget("m-1")
    speed.note("m-1", 10.0, steps=999, tokens=999, step_bytes=100)
    assert speed.bytes_per_s == 2000


# --- a fleet as its nodes describe themselves


INFO = ModelInfo(
    id="big",
    n_layer=4,
    n_embd=1000,
    n_ctx=100,
    n_slots=2,
    weights_bytes=500 * MIB,
    layer_bytes=(100 * MIB,) * 4,
    output_bytes=60 * MIB,
    required_bytes=900 * MIB,
    memory=ModelMemory(
        process_bytes=70 * MIB,
        logits_bytes=2 * MIB,
        buffers=(BufferMemory(weights=500 * MIB, cache=40 * MIB, compute=20 * MIB),),
    ),
)


def fleet_of(*nodes: NodeBeat, now_ms: int = 1_000_000, info: ModelInfo = INFO) -> SplitFit:
    """What is said of the model over these nodes."""
    offers = {ModelId(info.id): {NodeId(n.node): info for n in nodes if info.id in n.models}}
    return fit_split(
        ModelId(info.id), Snapshot(now_ms, nodes=nodes, models={ModelId(info.id): info}, offers=offers)
    )  # fmt: skip


def big_node(node: str, free_mib: int, **fields: Any) -> NodeBeat:
    """One that takes part, with a link to all others."""
    links = {other: NodeLink(bytes_per_s=1e8, round_trip_s=0.001, at_ms=990_000) for other in "ab" if other != node}
    defaults = {"memory_free": free_mib * MIB, "models": ("big",), "build": "b", "split": True, "links": links}
    defaults["certificate"] = f"PEM of {node}"
    return node_beat(node, **{**defaults, **fields})


def test_the_parts_of_a_model_are_told_from_its_file_and_its_estimate() -> None:
    split = split_model(INFO)

    assert split.layers == (110 * MIB,) * 4  # weights, and a fourth of the cache
    assert split.head_bytes == (70 + 100 + 20 + 2) * MIB  # process, input and output, scratch space, logits
    assert split.shard_bytes == SHARD_BYTES + 120 * MIB


def test_a_model_that_fits_nowhere_alone_is_planned_over_two_nodes() -> None:
    said = fleet_of(big_node("a", 600, weights_per_s=1e9), big_node("b", 700, models=(), weights_per_s=2e9))

    assert said.fits_on == ()
    assert [(share.node, share.is_head, share.layers) for share in said.shares] == [("a", True, 2), ("b", False, 2)]
    computing = (260 * MIB) / 1e9 + (200 * MIB) / 2e9
    assert said.compute_s == pytest.approx(computing)
    assert said.tokens_per_s == pytest.approx(1 / (computing + said.network_s))


def test_a_model_that_fits_alone_says_where() -> None:
    assert fleet_of(big_node("a", 950), big_node("b", 100)).fits_on == ("a",)


def test_nodes_that_take_no_part_and_links_that_were_measured_long_ago_are_named() -> None:
    said = fleet_of(big_node("a", 600), big_node("b", 700, split=False))
    late = fleet_of(big_node("a", 600), big_node("b", 700), now_ms=990_000 + LINK_LIFE_MS + 1)

    assert said.missing[0] == "b does not take part in splits; set PACKTRAIN_SPLIT=1 for the agent there"
    assert "the link between b and a is not measured" in late.missing[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"embeds_only": True}, "it only embeds"),
        ({"remote": "x/y"}, "another server answers for it"),
        ({"layer_bytes": ()}, "does not say what each of its layers takes"),
    ],
)
def test_models_that_are_never_split_say_why(change: dict[str, object], reason: str) -> None:
    said = fleet_of(big_node("a", 600), big_node("b", 700), info=INFO.model_copy(update=change))

    assert not said.shares
    assert reason in said.missing[0]


def shown(capsys: pytest.CaptureFixture[str], *nodes: NodeBeat, loaded: Sequence[InstanceBeat] = ()) -> str:
    """What a person sees of the plan."""
    model = ModelId("big")
    offers = {model: {NodeId(n.node): INFO for n in nodes if "big" in n.models}}
    show_split(Snapshot(1_000_000, nodes=nodes, models={model: INFO}, offers=offers), "big", loaded, as_json=False)
    return capsys.readouterr().out


def test_a_person_sees_who_holds_what_and_how_fast_it_would_be(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, big_node("a", 600, weights_per_s=1e9), big_node("b", 700, models=(), weights_per_s=2e9))

    assert "a     head: input, output  2 (0 to 1)" in said
    assert "b     shard                2 (2 to 3)" in said
    assert "forecast for one job alone: 2.6 tokens/s" in said


def test_a_person_sees_where_it_lies_and_how_fast_it_is_beside_what_was_forecast(
    capsys: pytest.CaptureFixture[str],
) -> None:
    head = instance_beat("big-1", model="big", node="a", group="big-1", layers=3, forecast_tokens_per_s=2.5)
    shard = head.model_copy(
        update={"instance": "big-2", "node": "b", "layers": 1, "state": InstanceState.HOLDING}
    )  # fmt: skip
    fast = [head.model_copy(update={"alone_tokens_per_s": 2.25}), shard]
    gone = [i.model_copy(update={"state": InstanceState.STOPPED}) for i in fast]
    nodes = (big_node("a", 600), big_node("b", 700))

    where = "READY as big-1: 3 layers on a, 1 layer on b; "
    assert f"{where}one job alone gets 2.2 tokens/s, 2.5 were forecast" in shown(capsys, *nodes, loaded=fast)
    assert f"{where}no job has run there alone yet, 2.5 tokens/s were forecast for one" in shown(
        capsys, *nodes, loaded=[head, shard]
    )
    assert "big-1" not in shown(capsys, *nodes, loaded=gone)


def test_a_model_that_packtrain_toml_splits_says_over_what_and_who_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pinned = INFO.model_copy(update={"split_over": ("a", "b", "c")})

    said = fleet_of(big_node("a", 2000), big_node("b", 2000), info=pinned)
    assert (said.split_over, said.shares) == (("a", "b", "c"), ())
    assert said.missing == (
        "packtrain.toml splits it over a, b, c, and of these c does not take part; start what is missing",
    )
    both = fleet_of(
        big_node("a", 2000), big_node("b", 2000), info=INFO.model_copy(update={"split_over": ("a", "b")})
    )  # fmt: skip
    assert [share.node for share in both.shares] == ["a", "b"]


def test_a_person_sees_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, big_node("a", 600), big_node("b", 700, split=False))

    assert "it cannot be split now:" in said
    assert "b does not take part in splits" in said
    with pytest.raises(UnknownModel, match="no node offers the model 'small'; offered: big"):
        show_split(Snapshot(1, models={ModelId("big"): INFO}), "small", as_json=False)
