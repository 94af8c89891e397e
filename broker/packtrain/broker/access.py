"""Who may do what in the broker: its users, by commands and by keys. ACL files, docs and tests are made of this table.

Redis checks every command of a script against the user who runs it, so these rules hold inside our Lua, too. They are
about keys, never about fields: who may write job records may write those of others. What that leaves to each user is
told in docs/security.md.

Values only: `users.py` writes them to files and servers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, TypeAlias

from packtrain.broker.ids import NodeId

#: The first that tells reading from writing; before it, a key that may be read may be written, too.
SPLIT_VERSION: Final = (7, 0)

Reach: TypeAlias = Literal["r", "w", "rw"]


class Role(Enum):
    """A kind of user. The value is the user's name; a machine that joined has `node-<its id>`."""

    ADMIN = "default"  # the name that every client without a user's name has: the only one of older fleets
    COORDINATOR = "coordinator"
    GATEWAY = "gateway"
    NODE = "node"
    CLIENT = "client"
    FLOWER = "flower"
    READER = "reader"


@dataclass(frozen=True, slots=True)
class KeyGroup:
    """Keys that are about the same thing. `{node}` in a pattern stands for the id of the user's own node."""

    holds: str
    patterns: Sequence[str]


def _queue(name: str) -> tuple[str, ...]:
    """A queue of Celery's: the list, and who is bound to it."""
    return (name, f"_kombu.binding.{name}", f"_kombu.binding_permanent.{name}")


GROUPS: Final[Mapping[str, KeyGroup]] = {
    "jobs": KeyGroup("prompts, options, answers", ("pt:job:*", "pt:out:*")),
    "media": KeyGroup("images and sounds of jobs, by their hashes", ("pt:blob:*", "pt:blobs", "pt:blobs:bytes")),
    "queue": KeyGroup(
        "which jobs wait, in which order",
        (
            "pt:ready:*", "pt:waiting", "pt:deadlines", "pt:meant", "pt:prefixes", "pt:begun", "pt:movable:*",
            "pt:recent", "pt:fair:*", "pt:queued:*", "pt:order",
        ),
    ),
    "leases": KeyGroup("which instance runs a job", ("pt:leases", "pt:held:*")),
    "rates": KeyGroup("how fast jobs are served", ("pt:rate:*", "pt:firsts")),
    "counters": KeyGroup(
        "what is counted for `/metrics`", ("pt:tally:*", "pt:used:*", "pt:deeds", "pt:deeds:told")
    ),
    "ends": KeyGroup("ends of jobs that are to be counted", ("pt:ends",)),
    "models": KeyGroup("what can be asked for", ("pt:model:*", "pt:models")),
    "nodes": KeyGroup("nodes and instances, as they say themselves", ("pt:nodes", "pt:inst:*", "pt:instances")),
    "beats": KeyGroup("what one node says of itself", ("pt:node:{node}", "pt:offers:{node}")),
    "pulls": KeyGroup("how far downloads are", ("pt:pull:*",)),
    "wanted": KeyGroup("models that operators want loaded", ("pt:desired",)),
    "wishes": KeyGroup("what operators want of nodes", ("pt:nodes:wishes",)),
    "plans": KeyGroup(
        "what was planned and why, and the curves of the last day",
        ("pt:waits", "pt:journal", "pt:snapshots", "pt:history", "pt:faults"),
    ),
    "lead": KeyGroup("who leads", ("pt:leader", "pt:term")),
    "processes": KeyGroup("which versions run", ("pt:process:*", "pt:processes")),
    "schema": KeyGroup("version of the keys", ("pt:schema",)),
    "file secret": KeyGroup("what tokens for model files are signed with", ("pt:secret",)),
    "API keys": KeyGroup("hashes of API keys, what each may", ("pt:apikeys",)),
    "API use": KeyGroup("requests and tokens of API keys", ("pt:apikey:*",)),
    "joining": KeyGroup("invitations with their secrets", ("pt:invite", "pt:invite:*", "pt:pairing")),
    "bells": KeyGroup("Celery's queues of models", _queue("model.*")),
    "commands": KeyGroup("Celery's queue of one node", _queue("node.{node}")),
    "Celery": KeyGroup(
        "what Celery keeps besides",
        (
            "unacked", "unacked_index", "unacked_mutex", "_kombu.binding_deadlines", *_queue("packtrain.default"),
            *_queue("*celery.pidbox"), *_queue("celeryev*"),
        ),
    ),
}  # fmt: skip


#: Channels of Celery: remote control and events. Who subscribes to a pattern must have the very same pattern here.
_CELERY_CHANNELS: Final = ("/{db}.celery.pidbox", "/{db}.celeryev/*")

#: All that reads or writes named keys, and what keeps a connection. Nothing that concerns the server, other users, the
#: whole keyspace, or another database.
_BASE: Final = (
    "-@all", "+@connection", "+@read", "+@write", "+@transaction", "+time", "-@scripting", "-@admin", "-@dangerous",
    "-scan", "-randomkey", "-dbsize", "-move",
)  # fmt: skip
_SCRIPTS: Final = ("+evalsha", "+script|load", "+script|exists")
_CELERY: Final = (*_SCRIPTS, "+publish", "+subscribe", "+psubscribe", "+unsubscribe", "+punsubscribe")


@dataclass(frozen=True, slots=True)
class Rights:
    """What a role may do: commands as ACL words, what it may do to each group of keys, channels."""

    summary: str
    commands: Sequence[str]
    keys: Mapping[str, Reach]
    other_nodes: Reach | None = None  # what it may do to keys of nodes that are not its own
    channels: Sequence[str] = ()


_LOOKING: Final[Mapping[str, Reach]] = {
    "queue": "r", "leases": "r", "rates": "r", "models": "r", "nodes": "r", "beats": "r", "pulls": "r", "wanted": "r",
    "wishes": "r", "plans": "r", "lead": "r", "processes": "r", "schema": "r",
}  # fmt: skip
_ASKING: Final[Mapping[str, Reach]] = {
    **_LOOKING, "jobs": "rw", "media": "rw", "queue": "rw", "bells": "rw", "ends": "w",
}  # fmt: skip

RIGHTS: Final[Mapping[Role, Rights]] = {
    Role.COORDINATOR: Rights(
        "plans, reaps, rings again",
        (*_BASE, *_SCRIPTS, "+info"),
        {
            **_LOOKING, "jobs": "rw", "queue": "rw", "leases": "rw", "rates": "rw", "counters": "rw", "ends": "rw",
            "models": "rw", "nodes": "rw", "beats": "rw", "wanted": "rw", "plans": "rw", "lead": "rw",
            "processes": "rw", "schema": "rw", "bells": "rw", "commands": "rw",
        },
    ),
    Role.GATEWAY: Rights(
        "turns requests into jobs; shows the fleet; operators act through it",
        (*_BASE, *_SCRIPTS),
        {
            **_ASKING, "counters": "rw", "ends": "rw", "wanted": "rw", "wishes": "rw", "file secret": "rw",
            "API keys": "r", "API use": "rw", "commands": "rw", "processes": "rw",
        },
    ),
    Role.NODE: Rights(
        "runs jobs and reports; command line of a machine that joined",
        (*_BASE, *_CELERY),
        {
            **_ASKING, "leases": "rw", "rates": "rw", "counters": "rw", "ends": "rw", "models": "rw",
            "nodes": "rw", "beats": "rw", "pulls": "rw", "file secret": "rw", "commands": "rw", "Celery": "rw",
            "processes": "rw",
        },
        other_nodes="r",
        channels=_CELERY_CHANNELS,
    ),
    Role.CLIENT: Rights(
        "submits, follows and cancels jobs; looks", (*_BASE, *_SCRIPTS), _ASKING
    ),
    Role.FLOWER: Rights(
        "looks, and asks Celery's workers",
        (*_BASE, *_CELERY),
        {**_LOOKING, "bells": "r", "commands": "r", "Celery": "rw"},
        channels=_CELERY_CHANNELS,
    ),
    Role.READER: Rights(
        "looks; sees no prompt and no answer",
        (*_BASE, "-@write"),
        {**_LOOKING, "bells": "r", "commands": "r", "counters": "r", "API use": "r"},
    ),
}  # fmt: skip


def user_of(node: NodeId) -> str:
    """The user of a machine that joined."""
    return f"{Role.NODE.value}-{node}"


def rules(role: Role, *, node: NodeId | None = None, db: int = 0, can_split: bool = True) -> list[str]:
    """What a user of this role may do, as words of an ACL.

    Args:
        node: Whose keys are its own; None: those of every node.
        db: Database that the fleet is in; names of channels hold it.
        can_split: The server tells reading from writing (`SPLIT_VERSION`).
    """
    if role is Role.ADMIN:
        return ["~*", "&*", "+@all"]
    rights = RIGHTS[role]
    words = ["resetchannels", *(f"&{channel.format(db=db)}" for channel in rights.channels), "resetkeys"]
    for name, group in GROUPS.items():  # in this order they are tried: what is used most comes first
        if (reach := rights.keys.get(name)) is None:
            continue
        for pattern in group.patterns:
            words.append(_key(pattern.format(node=node or "*"), reach, can_split=can_split))
            if node and rights.other_nodes and "{node}" in pattern and pattern.startswith("pt:"):
                words.append(_key(pattern.format(node="*"), rights.other_nodes, can_split=can_split))
    return [*words, *rights.commands]


def line(user: str, password_hash: str, words: Sequence[str]) -> str:
    """One line of an ACL file."""
    return " ".join(("user", user, "on", f"#{password_hash}", *words))


def hashed(password: str) -> str:
    """A password as ACL files keep it. Ours are of 192 random bits: a plain hash cannot be tried out."""
    return hashlib.sha256(password.encode()).hexdigest()


def table() -> str:
    """What each role may do to each group of keys, in Markdown; docs/security.md shows it."""
    roles = list(RIGHTS)
    head = ["keys", "hold", *(role.value for role in roles)]
    rows = [head, ["---"] * len(head)]
    for name, group in GROUPS.items():
        rows.append([name, group.holds, *(_cell(RIGHTS[role], name) for role in roles)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(rights: Rights, group: str) -> str:
    reach = {"r": "reads", "w": "writes", "rw": "reads, writes", None: ""}[rights.keys.get(group)]
    return f"{reach} (own)" if rights.other_nodes and any("{node}" in p for p in GROUPS[group].patterns) else reach


def _key(pattern: str, reach: Reach, *, can_split: bool) -> str:
    return f"~{pattern}" if reach == "rw" or not can_split else f"%{reach.upper()}~{pattern}"
