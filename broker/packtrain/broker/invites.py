"""Invitations: what lets another machine into the fleet, and the service that answers it.

An invitation has a short code for people and a long token for where the code's way does not reach. It ends with its
time, its uses or its tries: each attempt takes a try before it learns anything, so that a code of nine digits is as
good as a long one. Only the newest invitation has its code asked for; tokens name theirs.

It lies in the broker, for whoever may write there owns the fleet anyway.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import cast

from redis import Redis

from packtrain.broker import keys
from packtrain.broker.fields import Report
from packtrain.broker.scripts import Call, Scripts

#: Attempts for each machine that may join: for typing errors, not for guessing.
TRIES_PER_USE = 5
CODE_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Invite:
    """What must be proven to be known."""

    id: str
    code: str  # digits
    secret: str  # of its token, 128 bits

    def shared_secret(self, *, by_code: bool) -> str:
        """What both sides know."""
        return self.code if by_code else self.secret


class PairingPlace(Report):
    """Where other machines reach the pairing service."""

    name: str
    addresses: tuple[str, ...]
    port: int
    pid: int = 0


class Invites:
    """Of one fleet. Every call may raise `redis.RedisError`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)

    def create(self, *, uses: int, lives_s: int) -> Invite:
        """A new invitation, whose code is asked for from now on; the code of an earlier one is void."""
        invite = Invite(
            id=secrets.token_hex(4),
            code=f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}}",
            secret=secrets.token_hex(16),
        )
        fields = {"code": invite.code, "secret": invite.secret, "uses": uses, "tries": uses * TRIES_PER_USE}
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.invite(invite.id), mapping=fields)  # type: ignore[arg-type]
            pipe.expire(keys.invite(invite.id), lives_s)
            pipe.set(keys.INVITE, invite.id, ex=lives_s)
            pipe.execute()
        return invite

    def find(self, invite_id: str) -> Invite | None:
        """An invitation that is open; of the empty id the one whose code is asked for."""
        invite_id = invite_id or cast("str | None", self._redis.get(keys.INVITE)) or ""
        code, secret = cast("list[str | None]", self._redis.hmget(keys.invite(invite_id), ["code", "secret"]))
        return Invite(invite_id, code, secret) if code and secret else None

    def take_try(self, invite: Invite) -> bool:
        """True when one more attempt may be made; it is counted."""
        return self._scripts.run(Call("take", (keys.invite(invite.id),), ("tries",), bool))

    def take_use(self, invite: Invite) -> bool:
        """True when one more machine may join; it is counted, and the last one ends the invitation."""
        return self._scripts.run(Call("take", (keys.invite(invite.id),), ("uses",), bool))

    def announce(self, place: PairingPlace) -> None:
        """Say where the pairing service is; lives `keys.PAIRING_TTL_MS`."""
        self._redis.set(keys.PAIRING, place.model_dump_json(), px=keys.PAIRING_TTL_MS)

    def place(self) -> PairingPlace | None:
        """Where it is; None: there is none."""
        row = cast("str | None", self._redis.get(keys.PAIRING))
        return PairingPlace.model_validate_json(row) if row else None
