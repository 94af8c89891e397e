"""Election: at most one coordinator leads, and every command says under which term.

Redis decides who leads: a key that expires after 5 s unless renewed. A leader that was frozen may wake up and act for a
moment beside its successor; its *term* is lower by then, and agents refuse lower terms. So the key keeps the peace in
the common case, the term keeps it in every case.
"""

from __future__ import annotations

from redis import Redis

from packtrain.broker import keys
from packtrain.broker.scripts import Call, Scripts


class Election:
    """One coordinator's part in the election.

    Args:
        redis: Sync client.
        candidate: Id of this coordinator, unique per process.
    """

    def __init__(self, redis: Redis, candidate: str) -> None:
        self._scripts = Scripts(redis)
        self._candidate = candidate

    def lead(self) -> int | None:
        """Take or renew the leadership. The term, or None when another coordinator leads."""
        call = Call("lead", (keys.LEADER, keys.TERM), (self._candidate, keys.LEADER_TTL_MS), int)
        return self._scripts.run(call) or None

    def resign(self) -> bool:
        """Give the leadership up. False when it was not held."""
        return self._scripts.run(Call("resign", (keys.LEADER,), (self._candidate,), bool))
