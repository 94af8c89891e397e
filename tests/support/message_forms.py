"""The forms (JSON schemas) of all messages between processes, and what of a change to them another version cannot read.

    python -m tests.support.message_forms > tests/support/messages-0.2.json

records those of the version that is checked out, when it is released: the next one is compared with them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from packtrain.broker import (
    api_keys,
    beats,
    explain,
    history,
    invites,
    job_spec,
    journal,
    model_info,
    node_wishes,
    orders,
    outcome,
    pulls,
)
from packtrain.client import native_wire
from packtrain.client.joining import messages
from packtrain.workers import instance_messages

#: Of the version before.
BEFORE = Path(__file__).with_name("messages-0.1.json")

MESSAGES: tuple[type[BaseModel], ...] = (
    job_spec.JobSpec, outcome.Outcome, outcome.JobStatus, outcome.Cause, beats.NodeBeat, beats.InstanceBeat,
    model_info.ModelInfo, orders.NodeCommand, orders.Desired, node_wishes.NodeWish, node_wishes.NodeChange,
    pulls.PullRequest, pulls.PullStatus, invites.PairingPlace, explain.Explanation, history.Sample, history.Fault,
    history.Series, journal.Entry, api_keys.ApiKey, instance_messages.InstanceConfig,
    instance_messages.InstanceOrder, instance_messages.InstanceReport, messages.Hello, messages.Welcome,
    messages.Confirm, messages.Admitted, messages.Guest, messages.BrokerPlace, native_wire.Submission,
    native_wire.Lookup, native_wire.EventsBody, native_wire.DesiredBody, native_wire.LoadBody, native_wire.PullBody,
    native_wire.PullAsked, native_wire.Cancelled, native_wire.Jobs, native_wire.Found, native_wire.Events,
    native_wire.Models, native_wire.Nodes, native_wire.Instances, native_wire.Waiting,
)  # fmt: skip


@cache
def forms() -> dict[str, Any]:
    """Of this version, by name."""
    return {each.__name__: _bare(each.model_json_schema()) for each in MESSAGES}


def changes(old: Mapping[str, Any], new: Mapping[str, Any], *, strict: bool = False) -> list[str]:
    """What of a message's new form the version of the old form cannot read, or the new version not of the old form.

    Args:
        strict: Unknown fields are refused, and all are always written.
    """
    return list(_changes("", old, old, new, new, strict))


def _changes(
    where: str, old: Mapping[str, Any], old_root: Mapping[str, Any], new: Mapping[str, Any],
    new_root: Mapping[str, Any], strict: bool,
) -> Iterator[str]:  # fmt: skip
    old, new = _resolved(old, old_root), _resolved(new, new_root)
    if added := sorted(map(str, _values(new) - _values(old))):
        yield f"{where or 'it'} has values that the older version cannot read: {', '.join(added)}"
    if gone := sorted(map(str, _values(old) - _values(new))):
        yield f"{where or 'it'} no longer reads {', '.join(gone)}"
    if _type(old) != _type(new):
        yield f"{where or 'it'} was {_type(old)} and is {_type(new)}"
        return
    before, now = old.get("properties", {}), new.get("properties", {})
    for name in sorted(before.keys() | now.keys()):
        path = f"{where}.{name}" if where else name
        if name not in before:
            if name in new.get("required", ()):
                yield f"{path} is new and has no default: older versions do not send it"
            elif strict:
                yield f"{path} is new, and the older version refuses what it does not know"
        elif name not in now:
            if name in old.get("required", ()):
                yield f"{path} is gone, and the older version needs it"
        else:
            yield from _changes(path, before[name], old_root, now[name], new_root, strict)
    for key in ("items", "additionalProperties"):
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            yield from _changes(f"{where}[]", old[key], old_root, new[key], new_root, strict)
    for one, other in zip(_branches(old, old_root), _branches(new, new_root), strict=False):
        yield from _changes(where, one, old_root, other, new_root, strict)


def _bare(form: Any) -> Any:
    """Without what is for people; a field may be called `title`, which then is a record."""
    if isinstance(form, dict):
        said = ("title", "description")
        return {key: _bare(value) for key, value in form.items() if key not in said or isinstance(value, dict)}
    return [_bare(each) for each in form] if isinstance(form, list) else form


def _resolved(form: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in form:
        form = root["$defs"][form["$ref"].rpartition("/")[2]]
    return form


def _values(form: Mapping[str, Any]) -> set[Any]:
    return {*form.get("enum", ()), *([form["const"]] if "const" in form else [])}


def _branches(form: Mapping[str, Any], root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [_resolved(each, root) for each in (*form.get("anyOf", ()), *form.get("oneOf", ()))]


def _type(form: Mapping[str, Any]) -> str:
    branches = [*form.get("anyOf", ()), *form.get("oneOf", ())]
    if branches:
        return " or ".join(sorted("a record" if "$ref" in each else _type(each) for each in branches))
    return str(form.get("type", "any"))


if __name__ == "__main__":
    lines = [f'"{name}":{json.dumps(form, sort_keys=True, separators=(",", ":"))}' for name, form in forms().items()]
    sys.stdout.write("{" + ",\n".join(lines) + "}\n")
