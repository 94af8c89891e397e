"""What the registry promises, shown on the in-memory twin and on a real server."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from redis import Redis

from packtrain.broker import keys
from packtrain.broker.election import Election
from packtrain.broker.ids import InstanceId, NodeId, Route
from packtrain.broker.node_wishes import NodeChange, NodeWish
from packtrain.broker.offer_book import DIGEST
from packtrain.broker.orders import Desired
from packtrain.broker.pulls import RUNNING_TTL_MS, PullStatus
from packtrain.broker.registry import MemoryRegistry, RedisRegistry, Registry
from packtrain.broker.states import InstanceState
from tests.support.clock import FakeClock
from tests.support.factories import MODEL, NODE, instance_beat, model_info, node_beat

pytestmark = pytest.mark.contract


class RegistryContract:
    """Inherited by one class for each registry."""

    def test_a_beat_is_read_back_as_it_was_written(self, registry: Registry) -> None:
        node, instance, model = node_beat(models=("a", "b")), instance_beat(tokens_per_s=1.5), model_info(pinned=True)

        registry.put_node(node)
        registry.put_instance(instance)
        registry.put_models([model])

        assert registry.nodes() == [node]
        assert registry.instances() == [instance]
        assert registry.models() == [model]

    def test_a_later_beat_replaces_an_earlier_one(self, registry: Registry) -> None:
        registry.put_instance(instance_beat(state=InstanceState.LOADING))
        registry.put_instance(instance_beat(state=InstanceState.READY))

        assert [i.state for i in registry.instances()] == [InstanceState.READY]

    def test_several_are_written_at_once_and_some_are_read_by_name(self, registry: Registry) -> None:
        registry.put_instances([instance_beat(name) for name in ("a", "b", "c")])

        assert [i.instance for i in registry.instances()] == ["a", "b", "c"]
        assert [i.instance for i in registry.instances_named([InstanceId("a"), InstanceId("c")])] == ["a", "c"]
        assert registry.instances_named([InstanceId("gone")]) == []
        assert registry.instances_named([]) == []

    def test_a_node_that_leaves_is_gone(self, registry: Registry) -> None:
        registry.put_node(node_beat())

        registry.drop_node(NODE)

        assert registry.nodes() == []

    def test_one_node_is_read_alone(self, registry: Registry) -> None:
        registry.put_node(node_beat("n1"))
        registry.put_node(node_beat("n2", files_url="http://127.0.0.1:1"))

        assert registry.node(NodeId("n2")) == node_beat("n2", files_url="http://127.0.0.1:1")
        assert registry.node(NodeId("n3")) is None

    def test_all_who_ask_for_the_secret_get_the_same(self, registry: Registry) -> None:
        assert registry.secret() == registry.secret()
        assert len(registry.secret()) == 64

    def test_a_pull_is_read_back_and_one_that_nobody_spoke_of_is_none(self, registry: Registry) -> None:
        status = PullStatus(node="n1", file="a.gguf", done=1, total=2)

        registry.put_pull("a" * 32, status)

        assert registry.pull("a" * 32) == status
        assert registry.pull("b" * 32) is None

    def test_each_node_has_its_own_word_about_a_model(self, registry: Registry) -> None:
        registry.put_node(node_beat())
        registry.put_node(node_beat("n2"))
        registry.put_offers(NODE, [model_info(n_slots=4), model_info("other", min_replicas=1)])
        registry.put_offers(NodeId("n2"), [model_info(n_slots=16)])

        offers = registry.offers()

        assert {model: set(nodes) for model, nodes in offers.items()} == {MODEL: {NODE, "n2"}, "other": {NODE}}
        assert [offers[MODEL][NodeId(node)].n_slots for node in (NODE, "n2")] == [4, 16]

    def test_an_offer_that_changed_is_seen_and_one_that_is_gone_is_not(self, registry: Registry) -> None:
        registry.put_node(node_beat())
        registry.put_offers(NODE, [model_info(n_slots=4), model_info("other")])
        assert set(registry.offers()) == {MODEL, "other"}

        registry.put_offers(NODE, [model_info(n_slots=5)])

        assert {model: nodes[NODE].n_slots for model, nodes in registry.offers().items()} == {MODEL: 5}

    def test_nodes_that_say_the_same_share_one_object(self, registry: Registry) -> None:
        for node in (NODE, NodeId("n2")):
            registry.put_node(node_beat(node))
            registry.put_offers(node, [model_info()])

        offers = registry.offers()[MODEL]

        assert offers[NODE] is offers[NodeId("n2")]

    def test_a_node_that_leaves_offers_nothing(self, registry: Registry) -> None:
        registry.put_node(node_beat())
        registry.put_offers(NODE, [model_info()])
        assert registry.offers()

        registry.drop_node(NODE)

        assert registry.offers() == {}

    def test_desired_is_kept(self, registry: Registry) -> None:
        registry.set_desired(MODEL, Desired(replicas=1))

        assert registry.desired() == {MODEL: Desired(replicas=1)}

    def test_wishes_for_a_node_add_up_and_are_kept(self, registry: Registry) -> None:
        registry.change_node(NODE, NodeChange(memory=2 * 1024**3, labels={"room": "attic", "gpu": "yes"}))
        registry.change_node(NODE, NodeChange(cores=2, labels={"gpu": None}))
        after = registry.change_node(NODE, NodeChange(draining=True))

        assert after == NodeWish(memory=2 * 1024**3, cores=2, labels={"room": "attic", "gpu": None}, draining=True)
        assert registry.node_wish(NODE) == after

    def test_of_a_node_nothing_is_wanted_at_first(self, registry: Registry) -> None:
        assert registry.node_wish(NODE) == NodeWish()

    def test_the_moment_of_a_resume_is_the_registrys(self, registry: Registry) -> None:
        before = registry.now_ms()

        wish = registry.change_node(NODE, NodeChange(resume=True, draining=False))

        assert before <= wish.resumed_ms <= registry.now_ms()

    def test_why_routes_wait_is_that_of_the_last_plan(self, registry: Registry) -> None:
        assert registry.waits() is None

        registry.put_waits({Route("a"): "needs memory", Route("b"): "its load failed"})
        registry.put_waits({Route("b"): "it comes up"})
        assert registry.waits() == {"b": "it comes up"}

        registry.put_waits({})
        assert registry.waits() == {}

    def test_pruning_keeps_the_living(self, registry: Registry) -> None:
        registry.put_node(node_beat())
        registry.put_instance(instance_beat())

        registry.prune()

        assert len(registry.nodes()) == len(registry.instances()) == 1

    def test_the_term_is_that_of_the_latest_leadership(self, registry: Registry, elect: Callable[[], object]) -> None:
        assert registry.term() == 0

        elect()

        assert registry.term() == 1


class TestMemoryRegistry(RegistryContract):
    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def leaders(self) -> list[str]:
        return []

    @pytest.fixture
    def elect(self, leaders: list[str]) -> Callable[[], object]:
        return lambda: leaders.append("me")

    @pytest.fixture
    def registry(self, clock: FakeClock, leaders: list[str]) -> Registry:
        return MemoryRegistry(clock, leaders.__len__)

    def test_a_silent_node_vanishes(self, registry: Registry, clock: FakeClock) -> None:
        registry.put_node(node_beat())

        registry.put_offers(NODE, [model_info()])
        clock.advance(keys.NODE_TTL_MS)

        assert registry.nodes() == []
        assert registry.offers() == {}

    def test_a_silent_pull_vanishes_and_one_that_has_ended_stays(self, registry: Registry, clock: FakeClock) -> None:
        registry.put_pull("a" * 32, PullStatus())
        registry.put_pull("b" * 32, PullStatus(state="done"))

        clock.advance(RUNNING_TTL_MS)

        assert registry.pull("a" * 32) is None
        assert registry.pull("b" * 32) == PullStatus(state="done")


class TestRedisRegistry(RegistryContract):
    @pytest.fixture
    def elect(self, redis: Redis) -> Callable[[], object]:
        return Election(redis, "me").lead

    @pytest.fixture
    def registry(self, redis: Redis) -> Registry:
        return RedisRegistry(redis)

    def test_a_silent_node_vanishes_and_is_pruned(self, registry: Registry, redis: Redis) -> None:
        registry.put_node(node_beat())
        registry.put_offers(NODE, [model_info()])
        for key in (keys.node(NODE), keys.offers(NODE)):
            assert 0 < redis.pttl(key) <= keys.NODE_TTL_MS
            redis.pexpire(key, 1)
        time.sleep(0.01)

        assert registry.nodes() == []
        assert registry.offers() == {}
        registry.prune()
        assert redis.zcard(keys.NODES) == 0

    def test_one_unreadable_report_hides_no_other(self, registry: Registry, redis: Redis) -> None:
        registry.put_instance(instance_beat("good"))
        registry.put_instance(instance_beat("odd"))
        redis.hset("pt:inst:odd", "state", '"LEVITATING"')

        assert [i.instance for i in registry.instances()] == ["good"]

    def test_unreadable_offers_hide_those_of_no_other_node(self, registry: Registry, redis: Redis) -> None:
        for node in (NODE, NodeId("n2")):
            registry.put_node(node_beat(node))
            registry.put_offers(node, [model_info()])
        redis.hset(keys.offers(NODE), mapping={MODEL: '{"id": 7}', DIGEST: "odd"})

        assert {model: list(nodes) for model, nodes in registry.offers().items()} == {MODEL: ["n2"]}

    def test_an_ended_instance_is_remembered_longer_than_a_silent_one(self, registry: Registry, redis: Redis) -> None:
        registry.put_instance(instance_beat("alive"))
        registry.put_instance(instance_beat("failed", state=InstanceState.FAILED))

        lives = [redis.pttl(f"pt:inst:{name}") for name in ("alive", "failed")]

        assert lives[0] <= keys.INSTANCE_TTL_MS < lives[1] <= keys.INSTANCE_ENDED_TTL_MS
