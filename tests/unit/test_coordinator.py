"""One tick at a time: what the coordinator mends, on in-memory twins."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest

from packtrain.broker import keys
from packtrain.broker.beats import NodeLink
from packtrain.broker.chunks import Chunk
from packtrain.broker.coordinator import MAX_RERING, Coordinator
from packtrain.broker.ids import InstanceId, JobId, NodeId, Route
from packtrain.broker.journal import MemoryJournal, replay
from packtrain.broker.memory_jobs import MemoryJobs
from packtrain.broker.orders import Desired, NodeCommand
from packtrain.broker.outcome import Outcome
from packtrain.broker.placement import MAX_LOAD_FAILURES, MIB, OFFER_WAIT_MS
from packtrain.broker.registry import MemoryRegistry
from packtrain.broker.states import InstanceState, JobState
from tests.support.clock import FakeClock
from tests.support.factories import (
    DETERMINISTIC,
    INSTANCE,
    MODEL,
    NODE,
    ROUTE,
    ROUTES,
    instance_beat,
    model_info,
    node_beat,
    spec,
)

pytestmark = pytest.mark.unit

TERM = 7


class RecordingBells:
    """`Bells` that remember, and note what was reserved when a command went out."""

    def __init__(self, registry: MemoryRegistry) -> None:
        self.rings: list[Route] = []
        self.commands: list[tuple[NodeId, NodeCommand]] = []
        self.reserved_at_command: list[int] = []
        self._registry = registry

    def ring(self, route: Route, count: int = 1) -> None:
        self.rings += [route] * count

    def command(self, node: NodeId, command: NodeCommand) -> None:
        self.commands.append((node, command))
        self.reserved_at_command.append(sum(i.reserved_bytes for i in self._registry.instances()))


class Fleet:
    """A coordinator with one node and one model on it."""

    def __init__(self, **node: Any) -> None:
        self.clock = FakeClock()
        self.jobs = MemoryJobs(self.clock, {MODEL: MODEL, "little": MODEL})
        self.registry = MemoryRegistry(self.clock)
        self.registry.put_node(node_beat(**node))
        self.registry.put_models([model_info(), model_info("little", alias_of=MODEL)])
        self.bells = RecordingBells(self.registry)
        self.bells_waiting = 0
        self.journal = MemoryJournal()
        numbers = itertools.count(1)
        self.coordinator = Coordinator(
            self.jobs,
            self.registry,
            self.bells,
            lambda model: self.bells_waiting,
            lambda model: InstanceId(f"{model}-{next(numbers)}"),
            journal=self.journal,
        )

    def submit(self, count: int = 1, model: str = MODEL) -> list[JobId]:
        ids = [JobId(f"job{number}") for number in range(count)]
        for job_id in ids:
            self.jobs.submit(job_id, spec(model=model), max_waiting=1000)
        return ids

    def tick(self, count: int = 1, **options: bool) -> None:
        for _ in range(count):
            self.coordinator.tick(TERM, **options)

    @property
    def verbs(self) -> list[tuple[str, str]]:
        return [(command.verb, command.instance) for _, command in self.bells.commands]


def test_a_waiting_job_has_its_model_loaded() -> None:
    fleet = Fleet()
    fleet.submit()
    fleet.tick()

    ((node, command),) = fleet.bells.commands
    assert (node, command.verb, command.model, command.term) == (NODE, "load", MODEL, TERM)
    assert (command.n_slots, command.n_ctx, command.reserved_bytes) == (4, 512, 100 * MIB)


def test_a_job_for_an_alias_loads_the_model_behind_it() -> None:
    fleet = Fleet()
    fleet.submit(model="little")
    fleet.tick()

    assert [command.model for _, command in fleet.bells.commands] == [MODEL]


def test_memory_is_reserved_before_the_command_goes_out() -> None:
    fleet = Fleet()
    fleet.submit()
    fleet.tick()

    assert fleet.bells.reserved_at_command == [100 * MIB]
    (instance,) = fleet.registry.instances()
    assert (instance.state, instance.requested_ms) == (InstanceState.REQUESTED, fleet.clock())


def test_a_model_on_its_way_is_not_commanded_again() -> None:
    fleet = Fleet()
    fleet.submit()
    fleet.tick(3)

    assert fleet.verbs == [("load", "tiny-1")]


def test_a_load_whose_command_was_lost_is_planned_anew() -> None:
    fleet = Fleet()
    fleet.submit()
    fleet.tick()
    fleet.clock.advance(15_000)
    fleet.registry.put_node(node_beat())
    fleet.tick()

    assert fleet.verbs == [("load", "tiny-1"), ("load", "tiny-2")]


def test_a_model_of_a_node_that_reports_no_more_is_lost_and_loaded_elsewhere() -> None:
    fleet = Fleet()
    fleet.registry.put_instance(instance_beat("old"))
    fleet.submit()
    fleet.clock.advance(keys.NODE_TTL_MS - 1)
    fleet.registry.put_instance(instance_beat("old"))  # its beat outlives that of its node
    fleet.clock.advance(1)
    fleet.registry.put_node(node_beat("n2"))

    fleet.tick()

    assert [(node, command.verb) for node, command in fleet.bells.commands] == [("n2", "load")]
    lost = {i.instance: i for i in fleet.registry.instances()}["old"]
    assert (lost.state, lost.reason) == (InstanceState.LOST, "its node n1 reports no more")


def test_nothing_is_lost_while_the_broker_has_just_come_back() -> None:
    fleet = Fleet()
    fleet.clock.advance(keys.NODE_TTL_MS)
    fleet.registry.put_instance(instance_beat())

    fleet.tick(reap=False)

    assert [i.state for i in fleet.registry.instances()] == [InstanceState.READY]


def test_nothing_is_loaded_for_nobody() -> None:
    fleet = Fleet()
    fleet.tick()

    assert fleet.bells.commands == []


def test_an_operators_wish_is_carried_out() -> None:
    fleet = Fleet()
    fleet.registry.set_desired(MODEL, Desired(replicas=1))
    fleet.tick()

    assert fleet.verbs == [("load", "tiny-1")]


def test_an_idle_instance_is_unloaded() -> None:
    fleet = Fleet()
    fleet.registry.put_models([model_info(keep_alive_s=60)])
    fleet.registry.put_instance(instance_beat(ready_ms=fleet.clock() - 70_000))
    fleet.tick()

    ((node, command),) = fleet.bells.commands
    assert (node, command.verb, command.instance, command.term) == (NODE, "unload", INSTANCE, TERM)
    assert "idle" in command.reason


def test_jobs_that_outnumber_their_bells_are_rung_for_only_on_the_second_tick() -> None:
    fleet = Fleet()
    fleet.submit(3)
    fleet.bells_waiting = 1
    fleet.tick()
    assert fleet.bells.rings == []

    fleet.tick()
    assert fleet.bells.rings == [ROUTE, ROUTE]


def test_bells_that_were_only_on_their_way_are_not_rung_again() -> None:
    fleet = Fleet()
    fleet.submit(3)
    fleet.tick()
    fleet.bells_waiting = 3
    fleet.tick()
    fleet.bells_waiting = 2
    fleet.tick()

    assert fleet.bells.rings == []


def test_only_what_was_short_on_both_ticks_is_rung_for() -> None:
    fleet = Fleet()
    fleet.submit(3)
    fleet.bells_waiting = 2
    fleet.tick()
    fleet.bells_waiting = 0
    fleet.tick()

    assert fleet.bells.rings == [ROUTE]


def test_more_bells_than_jobs_are_left_alone() -> None:
    fleet = Fleet()
    fleet.submit(1)
    fleet.bells_waiting = 5
    fleet.tick(2)

    assert fleet.bells.rings == []


def test_one_tick_rings_only_so_often() -> None:
    fleet = Fleet()
    fleet.submit(MAX_RERING + 50)
    fleet.tick(2)

    assert len(fleet.bells.rings) == MAX_RERING


def test_a_job_whose_lease_lapsed_waits_again_and_is_rung_for() -> None:
    fleet = Fleet()
    fleet.registry.put_instance(instance_beat())
    (job_id,) = fleet.submit()
    fleet.jobs.claim(ROUTES, INSTANCE, NODE, lease_ms=1000)
    fleet.clock.advance(1001)
    fleet.tick()

    status = fleet.jobs.status(job_id)
    assert status is not None
    assert (status.state, status.attempts) == (JobState.QUEUED, 1)
    assert fleet.bells.rings == [ROUTE]


def test_after_the_broker_was_away_nobody_is_reaped() -> None:
    fleet = Fleet()
    (job_id,) = fleet.submit()
    fleet.jobs.claim(ROUTES, INSTANCE, NODE, lease_ms=1000)
    fleet.clock.advance(1001)
    fleet.tick(reap=False)

    status = fleet.jobs.status(job_id)
    assert status is not None
    assert status.state is JobState.RUNNING


def test_a_job_past_its_deadline_expires_without_a_bell() -> None:
    fleet = Fleet(models=())
    fleet.jobs.submit(JobId("late"), spec(expires_in_ms=500), max_waiting=10)
    fleet.clock.advance(501)
    fleet.tick()

    status = fleet.jobs.status(JobId("late"))
    assert status is not None
    assert status.state is JobState.EXPIRED
    assert fleet.bells.rings == []


def test_jobs_for_a_model_that_cannot_be_loaded_fail_with_the_cause() -> None:
    fleet = Fleet()
    for number in range(MAX_LOAD_FAILURES):
        fleet.registry.put_instance(
            instance_beat(f"tiny-{number}", state=InstanceState.FAILED, reason="the disk is full")
        )
    (job_id,) = fleet.submit()
    fleet.tick()

    status = fleet.jobs.status(job_id)
    assert status is not None
    assert status.outcome is not None
    assert status.outcome.error is not None
    assert status.outcome.error["code"] == "model_load_failed"
    assert "the disk is full" in status.outcome.error["message"]
    assert fleet.bells.commands == []


def test_jobs_for_a_model_too_large_fail_at_once() -> None:
    fleet = Fleet(memory_budget=50 * MIB)
    (job_id,) = fleet.submit()
    fleet.tick()

    status = fleet.jobs.status(job_id)
    assert status is not None
    assert status.outcome is not None
    assert status.outcome.error is not None
    assert status.outcome.error["code"] == "model_too_large"


def test_jobs_for_a_model_that_no_node_offers_fail_after_a_while_and_later_ones_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet = Fleet(models=())
    (job_id,) = fleet.submit()
    fleet.tick(3)
    waiting = fleet.jobs.status(job_id)
    fleet.clock.advance(OFFER_WAIT_MS)
    fleet.tick()
    failed = fleet.jobs.status(job_id)
    fleet.jobs.submit(JobId("late"), spec(), max_waiting=10)
    fleet.tick()
    late = fleet.jobs.status(JobId("late"))

    assert waiting is not None
    assert waiting.state is JobState.QUEUED
    for status in (failed, late):
        assert status is not None
        assert status.outcome is not None
        assert status.outcome.error is not None
        assert status.outcome.error["code"] == "model_gone"
    assert [getattr(record, "event", "") for record in caplog.records].count("model.missing") == 1


def test_a_new_leadership_gives_nodes_their_time_again() -> None:
    fleet = Fleet(models=())
    (job_id,) = fleet.submit()
    fleet.tick()
    fleet.clock.advance(OFFER_WAIT_MS)
    fleet.coordinator.tick(TERM + 2)

    status = fleet.jobs.status(job_id)
    assert status is not None
    assert status.state is JobState.QUEUED


def test_a_rejection_that_meets_no_job_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet(memory_budget=50 * MIB)
    fleet.registry.set_desired(MODEL, Desired(replicas=1))
    with caplog.at_level(logging.INFO):
        fleet.tick(3)

    assert [record for record in caplog.records if getattr(record, "event", "") == "jobs.rejected"] == []


def test_a_job_meant_for_an_instance_that_is_gone_fails_and_holds_nothing_up() -> None:
    fleet = Fleet()
    fleet.registry.put_instance(instance_beat())
    for name in ("gone-1", "n9", INSTANCE, NODE):
        fleet.jobs.submit(JobId(name), spec(meant_for=name), max_waiting=10)
    fleet.coordinator.tick(TERM, reap=False)
    assert fleet.jobs.waiting() == {ROUTE: 4}  # after an outage all get a chance to come back first

    fleet.coordinator.tick(TERM)

    states = {
        name: status.state for name in ("gone-1", "n9", INSTANCE, NODE) if (status := fleet.jobs.status(JobId(name)))
    }
    assert states == {
        "gone-1": JobState.FAILED, "n9": JobState.FAILED, INSTANCE: JobState.QUEUED, NODE: JobState.QUEUED,
    }  # fmt: skip


def begun(fleet: Fleet, numerics_class: str) -> JobId:
    """A deterministic job that waits with a token of this class."""
    job_id = JobId("begun")
    fleet.jobs.submit(job_id, spec(deterministic=True), max_waiting=10)
    fleet.jobs.claim((DETERMINISTIC,), INSTANCE, NODE, lease_ms=1000, numerics_class=numerics_class)
    fleet.jobs.emit([(job_id, 1, Chunk(0, "he", (1,)))])
    fleet.jobs.release(job_id, 1)
    return job_id


def test_a_job_begins_anew_and_is_rung_for_when_its_numerics_class_is_gone() -> None:
    fleet = Fleet()
    fleet.bells_waiting = 1
    job_id = begun(fleet, "a")
    fleet.registry.put_instance(instance_beat(numerics="deterministic", numerics_class="b"))
    fleet.coordinator.tick(TERM, reap=False)
    assert fleet.jobs.events({job_id: "0"})

    fleet.tick()

    assert not fleet.jobs.events({job_id: "0"})
    assert fleet.bells.rings == [DETERMINISTIC]


@pytest.mark.parametrize(
    "others",
    [
        [],  # it will be loaded
        [{"numerics_class": "a"}],
        [{"numerics_class": "b"}, {"instance": "tiny-2", "state": InstanceState.LOADING}],
    ],
)
def test_a_job_keeps_its_tokens_while_its_numerics_class_is_there_or_may_come(others: list[dict[str, Any]]) -> None:
    fleet = Fleet()
    job_id = begun(fleet, "a")
    for other in others:
        fleet.registry.put_instance(instance_beat(**{"numerics": "deterministic", **other}))

    fleet.tick()

    assert fleet.jobs.events({job_id: "0"})


def test_an_instance_that_drains_will_not_go_on_with_a_job() -> None:
    fleet = Fleet()
    job_id = begun(fleet, "a")
    fleet.registry.put_instance(instance_beat(numerics="deterministic", numerics_class="b"))
    fleet.registry.put_instance(
        instance_beat("tiny-2", numerics="deterministic", numerics_class="a", state=InstanceState.DRAINING)
    )

    fleet.tick()

    assert not fleet.jobs.events({job_id: "0"})


def test_a_job_meant_for_a_node_waits_while_its_model_is_loaded_nowhere() -> None:
    fleet = Fleet()
    fleet.jobs.submit(JobId("early"), spec(meant_for=NODE), max_waiting=10)

    fleet.coordinator.tick(TERM)

    assert fleet.jobs.waiting() == {ROUTE: 1}
    assert [command.verb for _, command in fleet.bells.commands] == ["load"]


def test_what_was_decided_stands_in_the_journal_with_what_it_was_planned_from() -> None:
    fleet = Fleet()
    fleet.submit()
    fleet.tick(3)

    (entry,) = fleet.journal.read(10, with_snapshots=True)
    (decision,) = entry.decisions
    assert (entry.term, decision.verb, decision.instance, decision.node) == (TERM, "load", "tiny-1", NODE)
    assert "1 jobs wait" in decision.reason
    assert replay(entry) == ([], [])


def a_group(**fields: Any) -> Fleet:
    """Two nodes of which neither could hold the model."""
    fleet = Fleet()
    for node, other in (("n1", "n2"), ("n2", "n1")):
        link = NodeLink(bytes_per_s=1e8, round_trip_s=0.001, at_ms=fleet.clock())
        models = (MODEL,) if node == "n1" else ()
        fleet.registry.put_node(
            node_beat(
                node, models=models, split=True, build="b", certificate=f"PEM of {node}", links={other: link},
                weights_per_s=1e9,
            )
        )  # fmt: skip
    layers = {"n_layer": 4, "layer_bytes": (200 * MIB,) * 4, "weights_bytes": 800 * MIB}
    fleet.registry.put_models([model_info(required_bytes=1100 * MIB, **{**layers, **fields})])
    return fleet


def test_a_group_is_reserved_as_a_whole_and_its_shards_are_ordered_first() -> None:
    fleet = a_group()
    fleet.submit()
    fleet.tick()

    (on_shard, shard), (on_head, head) = fleet.bells.commands
    assert (on_shard, shard.verb, shard.instance, shard.group) == ("n2", "shard", "tiny-2", "tiny-1")
    assert (on_head, head.verb, head.instance, head.group) == ("n1", "load", "tiny-1", "")
    assert (shard.peer, len(shard.cache_key), shard.shards) == ("PEM of n1", 64, ())
    (order,) = head.shards
    assert (order.instance, order.node, order.certificate) == ("tiny-2", "n2", "PEM of n2")
    assert (order.layers, head.layers) == (shard.layers, 4 - shard.layers)
    assert (head.n_slots, head.n_ctx, shard.n_ctx) == (4, 512, 512)
    assert head.forecast_tokens_per_s > 0

    beats = {beat.instance: beat for beat in fleet.registry.instances()}
    assert {beat.state for beat in beats.values()} == {InstanceState.REQUESTED}
    assert (beats["tiny-1"].is_head, beats["tiny-2"].is_shard) == (True, True)
    assert [beats[c.instance].layers for c in (head, shard)] == [head.layers, shard.layers]
    assert [beats[c.instance].reserved_bytes for c in (head, shard)] == [head.reserved_bytes, shard.reserved_bytes]
    assert beats["tiny-1"].forecast_tokens_per_s == head.forecast_tokens_per_s
    assert fleet.bells.reserved_at_command == [head.reserved_bytes + shard.reserved_bytes] * 2
    fleet.tick(2)
    assert len(fleet.bells.commands) == 2


def test_equal_files_have_equal_keys_for_what_shards_keep_on_disk_and_others_have_not() -> None:
    def key(**fields: Any) -> str:
        fleet = a_group(**fields)
        fleet.submit()
        fleet.tick()
        return fleet.bells.commands[0][1].cache_key

    assert key() == key(n_slots=2)
    assert key() != key(layer_bytes=(201 * MIB, 199 * MIB, 200 * MIB, 200 * MIB))
    assert key(file_bytes=1) != key(file_bytes=2)


def test_a_group_stands_in_the_journal_with_all_its_members_and_is_planned_again_as_it_was() -> None:
    fleet = a_group()
    fleet.submit()
    fleet.tick()

    (entry,) = fleet.journal.read(10, with_snapshots=True)
    (decision,) = entry.decisions
    assert (decision.instance, decision.node, decision.layers) == ("tiny-1", "n1", 2)
    assert [(shard.node, shard.layers) for shard in decision.shards] == [("n2", 2)]
    assert "over 2 nodes: 2 layers on n1, 2 layers on n2; forecast" in decision.reason
    assert replay(entry) == ([], [])


def test_to_unload_a_group_its_head_is_told() -> None:
    fleet = a_group()
    fleet.submit()
    fleet.tick()
    for beat in fleet.registry.instances():
        state = InstanceState.HOLDING if beat.is_shard else InstanceState.READY
        fleet.registry.put_instance(beat.model_copy(update={"state": state}))
    fleet.bells.commands.clear()
    fleet.clock.advance(1000)
    fleet.registry.set_desired(MODEL, Desired(unload_before_ms=fleet.clock()))
    fleet.tick()

    assert [(node, c.verb, c.instance) for node, c in fleet.bells.commands] == [("n1", "unload", "tiny-1")]


def test_jobs_that_were_told_an_error_stand_in_the_journal_with_their_number() -> None:
    fleet = Fleet(memory_budget=50 * MIB)
    fleet.submit(3)
    fleet.tick(3)

    (entry,) = fleet.journal.read(10, with_snapshots=True)
    (decision,) = entry.decisions
    assert (decision.verb, decision.code, decision.jobs) == ("reject", "model_too_large", 3)
    assert replay(entry) == ([], [])


def test_a_load_takes_what_its_own_node_says_of_the_model() -> None:
    fleet = Fleet()
    fleet.registry.put_offers(NODE, [model_info(n_slots=16, n_ctx=64, required_bytes=7 * MIB)])
    fleet.submit()
    fleet.tick()

    ((_, command),) = fleet.bells.commands
    assert (command.n_slots, command.n_ctx, command.reserved_bytes) == (16, 64, 7 * MIB)
    assert fleet.bells.reserved_at_command == [7 * MIB]


ANY = model_info("any", alias_of=MODEL, targets=(MODEL, "far"), spill_after_s=20)
FAR = Route("far")


class TwoTargets(Fleet):
    """A fleet whose name `any` means its model, else the remote model `far`."""

    def __init__(self, **node: Any) -> None:
        super().__init__(**{"models": (MODEL, "far"), **node})
        self.jobs = MemoryJobs(self.clock, {MODEL: MODEL, "far": "far", "any": MODEL}, [ANY])
        self.registry.put_models([model_info("far", remote="api.example.com big", max_replicas=1), ANY])
        self.coordinator = Coordinator(
            self.jobs,
            self.registry,
            self.bells,
            lambda model: self.bells_waiting,
            lambda model: InstanceId(f"{model}-1"),
        )


def test_jobs_that_would_wait_too_long_are_moved_rung_for_and_their_model_loaded() -> None:
    fleet = TwoTargets()
    fleet.registry.put_instance(instance_beat(slots_used=4))
    fleet.jobs.submit(JobId("direct"), spec(), max_waiting=9)
    for _ in range(2):  # two jobs of 15 s each
        fleet.jobs.submit(JobId(f"old{_}"), spec(), max_waiting=9)
        claim = fleet.jobs.claim(ROUTES, INSTANCE, NODE, lease_ms=99_000)
        assert claim
        fleet.clock.advance(15_000)
        fleet.jobs.finish(claim.job_id, claim.epoch, Outcome(state=JobState.SUCCEEDED))
    fleet.registry.put_node(node_beat(models=(MODEL, "far")))
    fleet.registry.put_instance(instance_beat(slots_used=4))
    fleet.submit(3, model="any")
    fleet.tick()

    assert fleet.jobs.waiting() == {ROUTE: 1, FAR: 3}
    assert fleet.bells.rings.count(FAR) == 3
    assert [command.model for _, command in fleet.bells.commands] == ["far"]


def test_jobs_of_a_model_that_nobody_offers_go_on_and_others_wait() -> None:
    fleet = TwoTargets(models=("far",))
    fleet.jobs.submit(JobId("direct"), spec(), max_waiting=9)
    fleet.submit(2, model="any")
    fleet.tick()

    assert fleet.jobs.waiting() == {ROUTE: 1, FAR: 2}


def test_jobs_of_a_model_that_never_fits_go_on_and_others_hear_so() -> None:
    fleet = TwoTargets(memory_budget=150 * MIB)
    fleet.registry.put_models([model_info(required_bytes=200 * MIB)])
    fleet.jobs.submit(JobId("direct"), spec(), max_waiting=9)
    (job_id,) = fleet.submit(1, model="any")
    fleet.tick()

    assert fleet.jobs.waiting() == {FAR: 1}
    status, direct = fleet.jobs.status(job_id), fleet.jobs.status(JobId("direct"))
    assert status
    assert status.cause
    assert "the largest node" in status.cause.reason
    assert direct
    assert direct.state is JobState.FAILED
