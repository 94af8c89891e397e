"""Feeds: connections over which a gateway sends the events of some jobs as they happen.

A poll costs a request for each bit of an answer, a feed costs one for all of them; but a feed is of certain jobs, and
who waits for many begins a new one whenever another has ended. So jobs are polled until each of them has said
something, and followed from then on, as long as the reader comes back for the same ones just where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import httpx2

from packtrain.broker.chunks import Event
from packtrain.broker.ids import JobId
from packtrain.client.native_wire import BEAT, BEAT_S, read_event
from packtrain.client.reading import Cursors

#: A reader that does not come back for so long, seconds, has gone elsewhere.
MAX_IDLE_S = 10.0

R = TypeVar("R")
C = TypeVar("C")


def pays(after: Mapping[JobId, str], block_s: float) -> bool:
    """True when a feed is better than a poll. One tells only every `BEAT_S` that nothing came."""
    return block_s >= BEAT_S and all(cursor != "0" for cursor in after.values())


class Parser:
    """Server-sent events of a feed from the pieces in which they arrive."""

    def __init__(self) -> None:
        self._rest = b""
        self.has_heard = False  # anything at all
        self.has_failed = False  # the gateway cannot go on; a poll will say why

    def take(self, piece: bytes) -> list[Event] | None:
        """Events whose last byte came with this piece; none: only a sign of life; None: no whole message."""
        self.has_heard = True
        *messages, self._rest = (self._rest + piece).split(b"\n\n")
        events, is_alive = [], False
        for message in messages:
            if message.startswith(b"data: "):
                events.append(read_event(message.removeprefix(b"data: ")))
            elif message.startswith(b"event: error"):
                self.has_failed = True
            elif message == b": " + BEAT.encode():
                is_alive = True
        return events if events or is_alive or self.has_failed else None


@dataclass(slots=True)
class Feed(Generic[R, C]):
    """One such connection, and how far it has been read."""

    response: R
    pieces: C
    cursors: Cursors
    parser: Parser = field(default_factory=Parser)
    idle_since: float = 0.0

    def took(self, events: list[Event]) -> bool:
        """Note what came. True when it has more to say."""
        for event in events:
            self.cursors.advance(event)
        return bool(self.cursors.after) and not self.parser.has_failed


class Feeds(Generic[R, C]):
    """Feeds that wait for their readers to come back. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrive = True  # not so behind a proxy that collects an answer before it passes it on
        self._idle: dict[frozenset[tuple[JobId, str]], Feed[R, C]] = {}  # the longest idle first

    def pay(self, after: Mapping[JobId, str], block_s: float) -> bool:
        """True when a feed is better than a poll here."""
        return self._arrive and pays(after, block_s)

    def failed(self, feed: Feed[R, C], error: BaseException) -> None:
        """A feed broke off. One that stayed silent from its beginning on will do so again."""
        if isinstance(error, httpx2.ReadTimeout) and not feed.parser.has_heard:
            self._arrive = False

    def take(self, after: Mapping[JobId, str]) -> Feed[R, C] | None:
        """The feed that has given just this, if there is one."""
        with self._lock:
            return self._idle.pop(frozenset(after.items()), None)

    def put(self, feed: Feed[R, C], now: float) -> Feed[R, C] | None:
        """Keep a feed for its reader. Another one that is in its place is to be closed."""
        feed.idle_since = now
        place = frozenset(feed.cursors.after.items())
        with self._lock:
            other = self._idle.pop(place, None)
            self._idle[place] = feed
        return other

    def take_stale(self, now: float) -> list[Feed[R, C]]:
        """Those that nobody came back for, to be closed."""
        with self._lock:
            stale = [place for place, feed in self._idle.items() if now - feed.idle_since > MAX_IDLE_S]
            return [self._idle.pop(place) for place in stale]

    def take_all(self) -> list[Feed[R, C]]:
        """All of them, to be closed."""
        with self._lock:
            feeds = list(self._idle.values())
            self._idle.clear()
        return feeds


def feed_cursors(after: Mapping[JobId, str]) -> Cursors:
    """Where a new feed begins."""
    cursors = Cursors()
    cursors.after = dict(after)
    return cursors
