"""The journal: every placement decision with its reason and the nodes it was chosen among, kept for a week.

Beside the latest entries lies the snapshot that they were planned from. Since a plan is a pure function of it, `replay`
plans again, on any machine, and says whether the same comes out: of yesterday's decisions with today's planner, too.

Bounds: 10,000 entries of about 1 KB; 300 snapshots of at most 128 KB. Larger ones, of some 200 nodes with 200 models,
are not kept.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal, Protocol, cast

from pydantic import Field
from redis import Redis

from packtrain.broker import keys
from packtrain.broker.fields import Report
from packtrain.broker.ids import Route
from packtrain.broker.placement import Candidate, Load, Plan, Snapshot, Unload, plan
from packtrain.broker.placement.packing import pack, unpack

logger = logging.getLogger(__name__)

MAX_SNAPSHOT_CHARS = 128 * 1024
#: Offers in a snapshot that are packed at all: 200,000 take half a second, and would not be kept.
MAX_OFFERS = 50_000


class Seen(Report):
    """A node that a decision looked at."""

    node: str
    free_bytes: int
    need_bytes: int
    verdict: str


class SeenShard(Report):
    """A part of a model that is loaded over several nodes."""

    node: str
    layers: int
    reserved_bytes: int = 0


class Decision(Report):
    """A load, an unload, or jobs that were told that their model cannot be loaded."""

    verb: Literal["load", "unload", "reject"]
    model: str = ""
    route: str = ""
    node: str = ""
    instance: str = ""
    numerics: str = ""
    reserved_bytes: int = 0
    n_slots: int = 0
    n_ctx: int = 0
    fetch_from: str = ""
    layers: int = Field(0, description="of the head of a group")
    shards: tuple[SeenShard, ...] = Field((), description="what other nodes hold for it")
    code: str = Field("", description="of the error that jobs were told")
    jobs: int = Field(0, description="that were told it")
    cost: float | None = Field(None, description="seconds, that made an instance the one to leave")
    reason: str = ""
    candidates: tuple[Seen, ...] = ()

    def same_as(self, other: Decision) -> bool:
        """True when both do the same; words, scores and names of new instances do not count."""
        ignored = {"reason", "candidates", "cost", "jobs"} | ({"instance"} if self.verb == "load" else set())
        return self.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)


class Entry(Report):
    """What one plan decided."""

    v: Literal[1] = 1
    id: str = Field("", description="in the journal: its time in ms, and a number")
    at_ms: int = 0
    term: int = 0
    decisions: tuple[Decision, ...] = ()
    waits: dict[str, str] = Field(default_factory=dict, description="routes that had to wait then, and why")
    snapshot: str | None = Field(None, description="packed; null: not asked for, or not kept")


class Journal(Protocol):
    """Implemented by `RedisJournal` and, for tests, `MemoryJournal`; one contract suite runs on both."""

    def write(self, entry: Entry, snapshot: Snapshot) -> None:
        """Add an entry."""
        ...

    def read(self, count: int, *, with_snapshots: bool = False) -> list[Entry]:
        """The latest entries, oldest first."""
        ...


class RedisJournal:
    """A `Journal` on Redis or Valkey. Every call may raise `redis.RedisError`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def write(self, entry: Entry, snapshot: Snapshot) -> None:
        entry_id = cast(
            str,
            self._redis.xadd(
                keys.JOURNAL, {"entry": _dump(entry)}, maxlen=keys.JOURNAL_MAX, approximate=True
            ),
        )  # fmt: skip
        pipe = self._redis.pipeline(transaction=False)
        pipe.pexpire(keys.JOURNAL, keys.JOURNAL_TTL_MS)
        if text := _packed(snapshot):
            pipe.xadd(keys.SNAPSHOTS, {"snapshot": text}, id=entry_id, maxlen=keys.SNAPSHOTS_MAX, approximate=False)
            pipe.pexpire(keys.SNAPSHOTS, keys.SNAPSHOTS_TTL_MS)
        pipe.execute()

    def read(self, count: int, *, with_snapshots: bool = False) -> list[Entry]:
        rows = cast(list[tuple[str, dict[str, str]]], self._redis.xrevrange(keys.JOURNAL, count=count))
        entries = [entry for entry_id, fields in reversed(rows) if (entry := _load(entry_id, fields["entry"]))]
        if not with_snapshots or not entries:
            return entries
        kept = cast(list[tuple[str, dict[str, str]]], self._redis.xrange(keys.SNAPSHOTS, min=entries[0].id))
        texts = {entry_id: fields["snapshot"] for entry_id, fields in kept}
        return [entry.model_copy(update={"snapshot": texts.get(entry.id)}) for entry in entries]


class MemoryJournal:
    """The in-memory twin."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str | None]] = []

    def write(self, entry: Entry, snapshot: Snapshot) -> None:
        self._rows.append((f"{entry.at_ms}-{len(self._rows)}", _dump(entry), _packed(snapshot)))

    def read(self, count: int, *, with_snapshots: bool = False) -> list[Entry]:
        return [
            entry.model_copy(update={"snapshot": packed if with_snapshots else None})
            for entry_id, text, packed in self._rows[-count:]
            if (entry := _load(entry_id, text))
        ]


def decisions_of(made: Plan) -> list[Decision]:
    """What a plan decides, in its order."""
    loads = [_of_load(load) for load in made.loads]
    unloads = [_of_unload(unload) for unload in made.unloads]
    return loads + unloads + [of_reject(r.route, r.error.code, str(r.error)) for r in made.rejects]


def of_reject(route: Route, code: str, reason: str, jobs: int = 0) -> Decision:
    """That the jobs of a route were told an error."""
    return Decision(verb="reject", route=route, code=code, reason=reason, jobs=jobs)


def replay(entry: Entry) -> tuple[list[Decision], list[Decision]]:
    """Plan again from an entry's snapshot.

    Returns:
        Decisions of then that do not come out now, and those that come out now and were not made then: two empty lists
        when it is the same plan.

    Raises:
        ValueError: Its snapshot cannot be read.
    """
    now = decisions_of(plan(unpack(entry.snapshot or "")))
    gone = [old for old in entry.decisions if not any(old.same_as(new) for new in now)]
    new = [new for new in now if not any(new.same_as(old) for old in entry.decisions)]
    return gone, new


def _of_load(load: Load) -> Decision:
    return Decision(
        verb="load", model=load.model, node=load.node, numerics=load.numerics, reserved_bytes=load.reserved_bytes,
        n_slots=load.n_slots, n_ctx=load.n_ctx, fetch_from=load.fetch_from, reason=load.reason,
        candidates=_seen(load.candidates), layers=load.layers,
        shards=tuple(SeenShard(**asdict(shard)) for shard in load.shards),
    )  # fmt: skip


def _of_unload(unload: Unload) -> Decision:
    return Decision(
        verb="unload", model=unload.model, node=unload.node, instance=unload.instance, cost=unload.cost,
        reason=unload.reason, candidates=_seen(unload.candidates),
    )  # fmt: skip


def _seen(candidates: Sequence[Candidate]) -> tuple[Seen, ...]:
    return tuple(Seen(**asdict(candidate)) for candidate in candidates)


def _dump(entry: Entry) -> str:
    return entry.model_dump_json(exclude={"id", "snapshot"}, exclude_defaults=True)


def _load(entry_id: str, text: str) -> Entry | None:
    try:
        return Entry.model_validate_json(text).model_copy(update={"id": entry_id})
    except ValueError as error:  # of another version
        logger.warning("Cannot read entry %s: %s", entry_id, error, extra={"event": "journal.unreadable"})
        return None


def _packed(snapshot: Snapshot) -> str | None:
    if sum(map(len, snapshot.offers.values())) > MAX_OFFERS:
        return None
    text = pack(snapshot)
    return text if len(text) <= MAX_SNAPSHOT_CHARS else None
