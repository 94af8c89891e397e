"""What this Packtrain speaks: its own version, and that of each kind of message between processes.

A fleet is upgraded one process after another, so processes of two versions read each other's messages for a while. What
makes that work, and is checked by `tests/unit/test_versions.py` against the messages of the version before:

* A field is only ever added, with a default that says what its absence meant. Reports ignore fields they do not know.
* A new value of an enum is read for one minor version before anybody writes it: who does not know it can read nothing
  of its message.
* Where that will not do, the message gets another number (`v`), in two steps of the same kind: first everybody reads
  both, one minor version later the new one is written.
* Scripts of both versions run on the same keys. A script may add a field to a key, and takes one that is absent for
  what it meant; where the meaning of a key itself changes, `keys.SCHEMA_VERSION` does, and the fleet has to stop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

from pydantic import Field

from packtrain.broker.fields import Report


class Spoken(Report):
    """Versions of one kind of message."""

    writes: int = 1
    reads_from: int = 1
    reads_to: int = 1

    def reads(self, other: Spoken) -> bool:
        """Whether who speaks this can read what the other writes."""
        return self.reads_from <= other.writes <= self.reads_to


#: Of each kind of message, what this version writes and reads.
MESSAGES: Final[Mapping[str, Spoken]] = {
    "job": Spoken(),  # JobSpec: clients and gateways to instances
    "outcome": Spoken(),  # instances to clients
    "node": Spoken(),  # NodeBeat: agents to coordinators and doors
    "instance": Spoken(),  # InstanceBeat: the same
    "model": Spoken(),  # ModelInfo: what agents offer
    "command": Spoken(),  # NodeCommand: coordinators to agents
    "process": Spoken(),  # configuration, orders and reports: an agent and its instances
    "join": Spoken(),  # a machine that joins, and the pairing service
    "http": Spoken(),  # /packtrain/v1: clients and gateways
}
#: 0.1 did not say what it speaks: all of this, which is all there was.
BEFORE: Final[Mapping[str, Spoken]] = dict.fromkeys(MESSAGES, Spoken())


class Speaks(Report):
    """What a process says of itself."""

    version: str = ""
    schema_version: str = Field("1", description="of the keys in the broker")
    messages: dict[str, Spoken] = Field(default_factory=lambda: dict(BEFORE))


def installed_version() -> str:
    """Of Packtrain, as it is installed where this process began."""
    return version("packtrain")


def minor_of(text: str) -> tuple[int, int] | None:
    """The part of a version by which compatibility is promised; None: it is none.

    >>> minor_of("0.2.0.dev0"), minor_of("12.3.4"), minor_of("")
    ((0, 2), (12, 3), None)
    """
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None
