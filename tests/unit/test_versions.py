"""Versions in one fleet: what may change in a message, who may be among whom, and in which order they are replaced."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.compatibility import ProcessBeat, Verdict, clash, judge
from packtrain.broker.fields import Report, load_hash
from packtrain.broker.ids import NodeId
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.orders import NodeCommand
from packtrain.broker.processes import speaks
from packtrain.broker.versions import BEFORE, MESSAGES, Speaks, Spoken
from packtrain.workers.instance_messages import InstanceConfig, InstanceReport
from packtrain.workers.runner import unreadable
from tests.support import message_forms

pytestmark = pytest.mark.unit

#: What refuses unknown fields, and is always written whole.
STRICT: set[str] = set()
#: What changed so that the version before cannot read it, and why that is no matter. Name of a message → beginnings.
_HOLDING = "state has values that the older version cannot read: HOLDING"
NO_MATTER: dict[str, dict[str, str]] = {
    "InstanceBeat": {_HOLDING: "of shards, which older coordinators and gateways leave out and never wait for"},
    "InstanceReport": {_HOLDING: "no instance reports it of itself: it is told of shards by their agents"},
    "Instances": {f"instances[].{_HOLDING}": "only while a group is loaded, for which nodes of this version opted in"},
    "NodeCommand": {"verb has values that the older version cannot read: shard": "for nodes that show a certificate"},
}

FORMS = json.loads(message_forms.BEFORE.read_text())


# --- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", message_forms.MESSAGES, ids=lambda message: message.__name__)
def test_the_version_before_and_this_one_read_each_others_messages(message: type[BaseModel]) -> None:
    name = message.__name__
    new = message_forms.forms()[name]
    found = message_forms.changes(FORMS.get(name, new), new, strict=name in STRICT)

    assert [change for change in found if not change.startswith(tuple(NO_MATTER.get(name, {})))] == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"a": {"type": "string"}}, {"a": {"type": "string"}, "b": {"type": "string", "default": ""}}, ""),
        ({"a": {"enum": ["x"]}}, {"a": {"enum": ["x", "y"]}}, "a has values that the older version cannot read: y"),
        ({"a": {"enum": ["x", "y"]}}, {"a": {"enum": ["x"]}}, "a no longer reads y"),
        ({"a": {"type": "string"}}, {"a": {"type": "integer"}}, "a was string and is integer"),
        (
            {"a": {"type": "array", "items": {"enum": [1]}}},
            {"a": {"type": "array", "items": {"enum": [1, 2]}}},
            "a[] has",
        ),
    ],
)
def test_a_change_that_cannot_be_read_is_found(old: dict[str, Any], new: dict[str, Any], found: str) -> None:
    said = message_forms.changes({"type": "object", "properties": old}, {"type": "object", "properties": new})

    assert said == [] if not found else said[0].startswith(found)


def test_a_field_without_a_default_and_one_that_is_missed_are_found() -> None:
    one = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    none = {"type": "object", "properties": {}}

    assert message_forms.changes(none, one) == ["a is new and has no default: older versions do not send it"]
    assert message_forms.changes(one, none) == ["a is gone, and the older version needs it"]
    assert len(message_forms.changes(none, {**one, "required": []}, strict=True)) == 1


@pytest.mark.parametrize(
    "message", [each for each in message_forms.MESSAGES if "v" in each.model_fields], ids=lambda each: each.__name__
)
def test_the_number_in_a_message_is_the_one_that_is_told(message: type[BaseModel]) -> None:
    told: dict[str, str | None] = {
        "JobSpec": "job", "Outcome": "outcome", "NodeBeat": "node", "InstanceBeat": "instance", "ModelInfo": "model",
        "NodeCommand": "command", "Entry": None,
    }  # fmt: skip
    name = told[message.__name__]

    assert name is None or message.model_fields["v"].default == MESSAGES[name].writes


def test_a_report_of_a_newer_version_is_read_and_what_it_adds_is_ignored() -> None:
    beat = NodeBeat(node=NodeId("n1"), version="0.3.0")
    newer = {name: json.dumps(value) for name, value in beat.model_dump(mode="json").items()} | {"dreams": '["sheep"]'}

    assert load_hash(NodeBeat, newer) == beat
    assert NodeCommand.model_validate(
        {"id": "load-m", "term": 1, "verb": "load", "instance": "m-1", "model": "m", "gently": True}
    ).n_slots == 0  # fmt: skip
    assert InstanceReport.model_validate({"state": "READY", "mood": "good"}).slots_used == 0


def test_a_report_of_the_version_before_lacks_fields_and_is_read() -> None:
    for cls, fields in (
        (InstanceBeat, {"instance": "m-1", "model": "m", "node": "n1", "state": "READY"}),
        (NodeBeat, {"node": "n1"}),
        (ProcessBeat, {}),
    ):
        cls.model_validate(fields)


def test_an_instance_reads_the_configuration_that_an_agent_of_the_version_before_gives_it() -> None:
    """Packtrain was upgraded under a running agent, which starts instances of the new version."""
    told: dict[str, Any] = {"instance": "m-1", "model": "m", "path": "/m.gguf", "backend": "scripted", "remote": None,
            "worker_name": "m.0@n1", "n_slots": 4, "reserved_slots": 0, "n_ctx": 512, "n_threads": 1, "report_fd": 3,
            "options": {}, "adapters": []}  # fmt: skip

    assert set(told) == set(FORMS["InstanceConfig"]["properties"])
    assert InstanceConfig.model_validate(told).n_slots == 4


def test_a_job_with_an_option_of_a_newer_version_says_which_node_to_upgrade() -> None:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({"model": "m", "prompt": "x", "kind": "complete", "params": {"telepathy": 3}})

    error = unreadable(caught.value, NodeId("attic"))

    assert "node attic does not know `params.telepathy`" in str(error)
    assert "upgrade that node" in str(error)


# --- who may be among whom -----------------------------------------------------------------------------------------


def process(kind: str, node: str, version: str = "0.2.0", **fields: Any) -> ProcessBeat:
    return ProcessBeat(kind=kind, id=f"{node}-{kind}", node=node, version=version, **fields)


HERE = Speaks(version="0.2.0", messages=dict(MESSAGES))
OLD_FLEET = [process(kind, "head", "0.1.0") for kind in ("agent", "coordinator", "gateway")] + [
    process("agent", "attic", "0.1.0"), process("instance", "attic", "0.1.0"), process("gateway", "door", "0.1.0"),
]  # fmt: skip


def nodes_of(verdict: Verdict) -> list[str]:
    return [step.split(":")[0].split(" (")[0] for step in verdict.steps]


def test_an_older_fleet_is_upgraded_against_the_way_of_jobs() -> None:
    verdict = judge(HERE, "1", OLD_FLEET)

    assert (verdict.state, verdict.safe) == ("ready", True)
    assert nodes_of(verdict) == ["node attic", "head head", "gateway at door", "clients"]


def test_what_is_left_of_an_upgrade_is_told() -> None:
    verdict = judge(HERE, "1", [process("agent", "attic"), process("instance", "attic"), *OLD_FLEET[:3]])

    assert (verdict.state, verdict.safe) == ("mixed", True)
    assert nodes_of(verdict) == ["head head", "clients"]
    assert {each.standing for each in verdict.processes} == {"same", "older"}


def test_where_all_is_as_here_nothing_is_to_be_done() -> None:
    verdict = judge(HERE, "1", [process("agent", "n1"), process("coordinator", "n1")])

    assert (verdict.state, verdict.steps) == ("current", ())
    assert judge(HERE, "", []).state == "empty"


def test_the_way_back_goes_the_other_way() -> None:
    verdict = judge(Speaks(version="0.1.0"), "1", [process("agent", "attic"), process("coordinator", "head")])

    assert (verdict.state, verdict.safe) == ("back", True)
    assert nodes_of(verdict) == ["clients", "head head", "node attic"]
    assert "such jobs that wait would fail" in verdict.steps[0]


def test_a_development_version_is_older_than_its_release() -> None:
    versions = ["0.1.0", "0.2.0.dev0", "0.2.0.dev1", "0.2.0", "0.2.1"]

    for older, newer in pairwise(versions):
        assert judge(Speaks(version=newer), "1", [process("agent", "n", older)]).state == "ready", (older, newer)
        assert judge(Speaks(version=older), "1", [process("agent", "n", newer)]).state == "back", (older, newer)


def test_two_minor_versions_apart_is_refused_with_the_one_between() -> None:
    verdict = judge(Speaks(version="0.3.0"), "1", [process("agent", "attic", "0.1.0")])

    assert (verdict.state, verdict.safe) == ("blocked", False)
    assert "more than one minor version apart" in verdict.problems[0]
    assert verdict.steps == ("upgrade the fleet to 0.2 first, process by process, and from there on",)


def test_data_of_another_schema_is_refused() -> None:
    verdict = judge(HERE, "2", [])

    assert not verdict.safe
    assert "schema '2'" in verdict.problems[0]
    assert "stop every process" in verdict.steps[0]


@pytest.mark.parametrize(
    ("mine", "theirs", "reason"),
    [
        (Spoken(), Spoken(reads_to=2), ""),
        (Spoken(), Spoken(writes=2, reads_to=2), "it writes 'command' messages of version 2, which"),
        (Spoken(writes=2, reads_to=2), Spoken(), "it cannot read 'command' messages of version 2, which"),
    ],
)
def test_who_writes_what_the_other_cannot_read_is_alien(mine: Spoken, theirs: Spoken, reason: str) -> None:
    found = clash(
        Speaks(messages={"command": mine}), Speaks(messages={"command": theirs, "telepathy": Spoken(writes=9)})
    )

    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_this_version_goes_with_the_one_before() -> None:
    ours = speaks()

    assert clash(ours, Speaks(version="0.1.0", messages=dict(BEFORE))) == ""
    assert isinstance(ours, Report)
