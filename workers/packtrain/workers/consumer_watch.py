"""Whether commands still reach an agent: a heartbeat through the very queue that they come by.

An agent whose Celery consumer hangs goes on beating from its own loop, green but deaf, and whatever is planned onto it
never happens. So its beat counts only with two proofs: the consumer's own loop turns (`HubBeat`), and a small message
that the agent sends to itself through queue node.<id> comes back. The second covers every way to stop consuming in
silence, the unknown ones too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

#: A message that takes a third of the time for a stall to come back, or a consumer loop that stands still for so long,
#: makes it deaf: 20 s of 60. Deaf for a whole stall, it begins anew. A message goes out twice in that third.
DEAF_PER_STALL, ECHO_PER_STALL = 1 / 3, 1 / 6


class ConsumerWatch:
    """Of one agent; times are monotonic seconds. `heard` may be called from any thread, the rest belongs to one.

    Args:
        send: Sends this number to itself, through its queue.
        hub_age_s: How long ago the consumer's loop turned.
        stall_s: Silence for so long is a defect (`PACKTRAIN_STALL_S`).
    """

    def __init__(self, send: Callable[[int], None], hub_age_s: Callable[[], float], stall_s: float) -> None:
        self._send = send
        self._hub_age_s = hub_age_s
        self._echo_s, self._deaf_s = stall_s * ECHO_PER_STALL, stall_s * DEAF_PER_STALL
        self._lock = threading.Lock()
        self._number = self._void = 0  # the last that was sent, and that proves nothing any more
        self._unheard_since: float | None = None
        self._next = 0.0
        self._deaf_since: float | None = None

    def heard(self, number: int) -> None:
        """A message to itself came back. One from before the broker was last away, or from before a sleep, is void."""
        with self._lock:
            if number > self._void:
                self._unheard_since = None

    def look(self, now_s: float, *, broker_reachable_s: float) -> str:
        """Why commands do not arrive; empty: they do, or nobody can know since the broker is away.

        Sends the next message when it is time.

        Args:
            broker_reachable_s: For how long the broker has answered, since waking at most; 0: it is away.
        """
        unheard_since = self._unheard_since
        if unheard_since is not None and unheard_since < now_s - broker_reachable_s:
            with self._lock:
                self._unheard_since, self._void, self._next = None, self._number, now_s
        if broker_reachable_s > 0 and now_s >= self._next:
            with self._lock:
                self._number += 1
                self._unheard_since = self._unheard_since or now_s
                self._next = now_s + self._echo_s
            self._send(self._number)
        reason = self._reason(now_s) if broker_reachable_s > self._deaf_s else ""
        if not reason:
            self._deaf_since = None
        elif self._deaf_since is None:
            self._deaf_since = now_s
        return reason

    def deaf_s(self, now_s: float) -> float:
        """For how long it has been deaf, as far as `look` has seen."""
        return 0.0 if self._deaf_since is None else now_s - self._deaf_since

    def _reason(self, now_s: float) -> str:
        if self._hub_age_s() > self._deaf_s:
            return f"takes no commands: its consumer loop has not turned for {self._hub_age_s():.0f} s"
        since = self._unheard_since
        if since is not None and now_s - since > self._deaf_s:
            return f"takes no commands: a message to itself is {now_s - since:.0f} s on its way"
        return ""
