"""What the journal promises, shown on the in-memory twin and on a real server."""

from __future__ import annotations

import pytest
from redis import Redis

from packtrain.broker import keys
from packtrain.broker.journal import Decision, Entry, Journal, MemoryJournal, RedisJournal, decisions_of, replay
from packtrain.broker.placement import Snapshot, plan
from tests.support.factories import MODEL, ROUTE, instance_beat, model_info, node_beat

pytestmark = pytest.mark.contract


def snapshot(waiting: int = 1) -> Snapshot:
    """A job waits, and a node has room."""
    return Snapshot(now_ms=1000, nodes=[node_beat()], models={MODEL: model_info()}, waiting={ROUTE: waiting})


def entry(number: int = 1) -> Entry:
    """What is planned of it."""
    return Entry(at_ms=number, term=7, decisions=tuple(decisions_of(plan(snapshot()))), waits={"x": "no room"})


class JournalContract:
    """Inherited by one class for each journal."""

    def test_entries_are_read_back_oldest_first(self, journal: Journal) -> None:
        for number in (1, 2, 3):
            journal.write(entry(number), snapshot())

        assert [e.model_copy(update={"id": ""}) for e in journal.read(2)] == [entry(2), entry(3)]
        assert len({e.id for e in journal.read(10)}) == 3

    def test_an_entry_is_planned_again_from_its_snapshot(self, journal: Journal) -> None:
        journal.write(entry(), snapshot())

        (kept,) = journal.read(1, with_snapshots=True)

        assert replay(kept) == ([], [])

    def test_a_decision_that_would_be_another_now_is_told(self, journal: Journal) -> None:
        other = entry().decisions[0].model_copy(update={"node": "n9"})
        journal.write(entry().model_copy(update={"decisions": (other,)}), snapshot())

        (kept,) = journal.read(1, with_snapshots=True)
        gone, new = replay(kept)

        assert [d.node for d in gone] == ["n9"]
        assert [d.node for d in new] == ["n1"]

    def test_snapshots_are_read_only_when_asked_for(self, journal: Journal) -> None:
        journal.write(entry(), snapshot())

        assert journal.read(1)[0].snapshot is None

    def test_a_snapshot_that_is_too_large_is_not_kept(self, journal: Journal) -> None:
        crowd = [instance_beat(f"i-{n * 7919 % 999_983}-{n}", pid=n * 104_729 % 999_983) for n in range(20_000)]
        large = Snapshot(now_ms=1000, nodes=[node_beat()], instances=crowd, models={MODEL: model_info()})
        journal.write(entry(), large)

        (kept,) = journal.read(1, with_snapshots=True)

        assert (kept.snapshot, kept.decisions) == (None, entry().decisions)


class TestMemoryJournal(JournalContract):
    @pytest.fixture
    def journal(self) -> Journal:
        return MemoryJournal()


class TestRedisJournal(JournalContract):
    @pytest.fixture
    def journal(self, redis: Redis) -> Journal:
        return RedisJournal(redis)

    def test_it_does_not_live_for_ever(self, journal: Journal, redis: Redis) -> None:
        journal.write(entry(), snapshot())

        assert 0 < redis.pttl(keys.JOURNAL) <= keys.JOURNAL_TTL_MS
        assert 0 < redis.pttl(keys.SNAPSHOTS) <= keys.SNAPSHOTS_TTL_MS

    def test_older_snapshots_go_and_their_entries_stay(self, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(keys, "SNAPSHOTS_MAX", 2)
        for number in (1, 2, 3):
            journal.write(entry(number), snapshot())

        assert [bool(e.snapshot) for e in journal.read(10, with_snapshots=True)] == [False, True, True]

    def test_an_entry_of_another_version_hides_no_other(self, journal: Journal, redis: Redis) -> None:
        redis.xadd(keys.JOURNAL, {"entry": '{"v": 9}'})
        journal.write(entry(), snapshot())

        assert [e.decisions for e in journal.read(10)] == [entry().decisions]


def test_words_and_names_of_new_instances_make_no_decision_another_one() -> None:
    load = Decision(verb="load", model="m", node="n1", instance="m-1", reason="3 jobs wait")

    assert load.same_as(load.model_copy(update={"instance": "", "reason": "4 jobs wait"}))
    assert not load.same_as(load.model_copy(update={"reserved_bytes": 1}))
