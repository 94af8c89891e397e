"""Compatibility: whether processes of several versions may share a fleet, and what is to be done next. Pure.

Nodes are upgraded first, then coordinators, then gateways, clients last: against the way of jobs and commands, so that
who reads a message knows at least what its writer knows. A job with a new option comes from a gateway or a client, and
an instance that does not know the option can only fail it; a gateway that does not know it refuses it before it is a
job. What flows the other way are facts (beats), and one that is not understood costs nothing: it is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from packtrain.broker.fields import Report
from packtrain.broker.versions import Speaks, minor_of

Kind = Literal["agent", "instance", "coordinator", "gateway"]
#: `older` and `newer` than what is installed here; `alien`: it cannot be in one fleet with that.
Standing = Literal["same", "older", "newer", "alien"]
State = Literal["empty", "current", "ready", "mixed", "back", "blocked"]


class ProcessBeat(Speaks):
    """A process of the fleet: what it is, and what it speaks."""

    kind: str = "agent"
    id: str = ""
    node: str = ""
    pid: int = 0


class Judged(ProcessBeat):
    """A process beside what is installed here."""

    standing: Standing = "same"
    reason: str = Field("", description="why it is alien")


class Verdict(Report):
    """What `packtrain upgrade-check` finds."""

    installed: Speaks
    schema_found: str = Field("", description="of the data in the broker; empty: there is none yet")
    state: State = "empty"
    safe: bool = Field(True, description="what is installed here may run in this fleet, process by process")
    processes: tuple[Judged, ...] = ()
    problems: tuple[str, ...] = ()
    steps: tuple[str, ...] = Field((), description="what is to be done next, in order")


def clash(one: Speaks, other: Speaks) -> str:
    """Why these two cannot be in one fleet; empty: they can.

    >>> clash(Speaks(version="0.2.0"), Speaks(version="0.1.0"))
    ''
    """
    if one.schema_version != other.schema_version:
        return f"its keys in the broker have schema {other.schema_version!r}, not {one.schema_version!r}"
    for name in sorted(one.messages.keys() & other.messages.keys()):
        mine, theirs = one.messages[name], other.messages[name]
        if not mine.reads(theirs):
            return f"it writes {name!r} messages of version {theirs.writes}, which {_name(one)} cannot read"
        if not theirs.reads(mine):
            return f"it cannot read {name!r} messages of version {mine.writes}, which {_name(one)} writes"
    here, there = minor_of(one.version), minor_of(other.version)
    if here and there and (here[0] != there[0] or abs(here[1] - there[1]) > 1):
        return f"{other.version} and {one.version} are more than one minor version apart, which nobody has tried"
    return ""


def judge(installed: Speaks, schema_found: str, found: Sequence[ProcessBeat]) -> Verdict:
    """What is mixed, whether that is safe, and what comes next.

    Args:
        installed: What would be started from here.
        schema_found: Of the data in the broker; empty: there is none yet.
        found: Processes that live, in any order.
    """
    judged = tuple(_judged(installed, each) for each in sorted(found, key=_order))
    problems = [f"{_what(each)}: {each.reason}" for each in judged if each.standing == "alien"]
    if schema_found not in ("", installed.schema_version):
        problems.insert(
            0,
            f"the data in the broker has schema {schema_found!r}, and {_name(installed)} reads "
            f"{installed.schema_version!r} only",
        )
    standings = {each.standing for each in judged}
    verdict = Verdict(installed=installed, schema_found=schema_found, processes=judged, problems=tuple(problems))
    if problems:
        return verdict.model_copy(update={"state": "blocked", "safe": False, "steps": _way_round(installed, judged)})
    if not judged:
        return verdict.model_copy(update={"state": "empty"})
    if standings == {"same"}:
        return verdict.model_copy(update={"state": "current"})
    if "older" in standings:
        state = "ready" if standings == {"older"} else "mixed"
        return verdict.model_copy(update={"state": state, "steps": _steps(judged, installed.version)})
    return verdict.model_copy(update={"state": "back", "steps": _way_back(judged, installed.version)})


def _judged(installed: Speaks, each: ProcessBeat) -> Judged:
    reason = clash(installed, each)
    standing: Standing = "same" if each.version == installed.version else _age(installed, each)
    return Judged(**each.model_dump(), standing="alien" if reason else standing, reason=reason)


def _age(installed: Speaks, each: ProcessBeat) -> Standing:
    return "newer" if _key(each.version) > _key(installed.version) else "older"


def _key(version: str) -> tuple[int, ...]:
    """In the order of releases: 0.2.0.dev0 before 0.2.0 before 0.2.1."""
    release, _, rest = version.partition(".dev")
    numbers = [int(part) if part.isdigit() else 0 for part in release.split(".")[:3]]
    return (*numbers, *[0] * (3 - len(numbers)), int(rest) if rest.isdigit() else 0 if rest else 1 << 30)


def _order(each: ProcessBeat) -> tuple[int, str, str]:
    kinds = ("agent", "instance", "coordinator", "gateway")
    return (kinds.index(each.kind) if each.kind in kinds else len(kinds), each.node, each.id)


def _steps(judged: Sequence[Judged], version: str) -> tuple[str, ...]:
    """The processes that are not what is installed, node by node, the ones with a coordinator after the others."""
    old = [each for each in judged if each.standing != "same"]
    led = {each.node for each in judged if each.kind == "coordinator"}
    old_nodes = sorted({each.node for each in old if each.kind in ("agent", "instance")})
    steps = [
        f"node {node}: install {version} there, end `packtrain node` (it drains, and what does not end in time goes on "
        "elsewhere), start it again"
        for node in old_nodes
        if node not in led
    ]
    for node in sorted({each.node for each in old if each.node in led}):
        kinds = sorted({"node" if e.kind in ("agent", "instance") else e.kind for e in old if e.node == node})
        steps.append(
            f"head {node} ({', '.join(kinds)}): install {version} there; `packtrain down` and `packtrain up`, or, "
            "where they run by themselves, start the node anew, then the coordinator, then the gateway"
        )
    others = sorted({each.node for each in old if each.kind == "gateway" and each.node not in led})
    steps += [f"gateway at {node}: install {version} there, end `packtrain serve`, start it again" for node in others]
    if not steps:
        return ()
    return (*steps, "clients (the Python library and the command line elsewhere): last, and at leisure")


def _way_back(judged: Sequence[Judged], version: str) -> tuple[str, ...]:
    """To an older version the other way round: who writes a message is never newer than who reads it."""
    *steps, _ = _steps(judged, version) or ("",)
    return (
        f"clients: {version} again, and nothing asked any more that it does not know; such jobs that wait would fail",
        *reversed(steps),
    )


def _way_round(installed: Speaks, judged: Sequence[Judged]) -> tuple[str, ...]:
    found = sorted({each.version for each in judged if each.standing == "alien" and each.version})
    here, there = minor_of(installed.version), minor_of(found[-1]) if found else None
    if here and there and here[0] == there[0] and here > there and here[1] - there[1] > 1:
        between = f"{here[0]}.{there[1] + 1}"
        return (f"upgrade the fleet to {between} first, process by process, and from there on",)
    return (
        "let all jobs end, stop every process of the fleet (`packtrain down` on the head, `packtrain node` elsewhere)",
        "start it from the version that you want, with a `--home` (or a broker) of its own, or go back to the version "
        "that wrote the data",
    )


def _name(speaks: Speaks) -> str:
    return f"Packtrain {speaks.version}" if speaks.version else "this Packtrain"


def _what(each: ProcessBeat) -> str:
    return f"{each.kind} {each.id or each.node}"
