"""The pairing service of the head: proves that a machine knows the code, and then tells it the way to the broker.

Two requests of plain HTTP, for nothing that crosses is of use to who listens:

    POST /hello    {"invite": "" or id, "element": hex}     → {"session": hex, "element": hex}
    POST /confirm  {"session": hex, "sealed": hex}          → {"sealed": hex}

Each attempt is counted in the broker before it is answered.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from pydantic import ValidationError

from packtrain.broker.ids import NodeId
from packtrain.broker.invites import Invite, Invites
from packtrain.client.joining.exchange import Exchange, Key, WrongSecret
from packtrain.client.joining.messages import Admitted, BrokerPlace, Confirm, Guest, Hello, Welcome

logger = logging.getLogger(__name__)

MAX_SESSIONS = 32
SESSION_S = 30.0


class Refused(Exception):
    """A request that gets an error as its answer."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Session:
    invite: Invite
    key: Key
    until: float


class Pairing:
    """What the service decides, without the network. Safe to call from several threads.

    Args:
        place_for: What to tell a node that knows the secret. May raise `redis.RedisError`.
        clock: Monotonic seconds.
    """

    def __init__(
        self, invites: Invites, place_for: Callable[[NodeId], BrokerPlace], clock: Callable[[], float]
    ) -> None:
        self._invites = invites
        self._place_for = place_for
        self._clock = clock
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()

    def hello(self, hello: Hello) -> Welcome:
        """Begin an exchange.

        Raises:
            Refused
        """
        invite = self._invites.find(hello.invite)
        if invite is None:
            raise Refused(HTTPStatus.NOT_FOUND, "no invitation is open; run `packtrain invite` on the head")
        if not self._invites.take_try(invite):
            raise Refused(
                HTTPStatus.FORBIDDEN, "the invitation saw too many wrong codes; run `packtrain invite` on the head"
            )
        exchange = Exchange("head", invite.shared_secret(by_code=not hello.invite), hello.invite)
        try:
            key = exchange.key(bytes.fromhex(hello.element))
        except WrongSecret:
            raise Refused(HTTPStatus.BAD_REQUEST, "that is no exchange of Packtrain's") from None
        now, session = self._clock(), secrets.token_hex(16)
        with self._lock:
            self._sessions = {name: s for name, s in self._sessions.items() if s.until > now}
            if len(self._sessions) >= MAX_SESSIONS:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many machines join at once; try again in a minute")
            self._sessions[session] = _Session(invite, key, now + SESSION_S)
        return Welcome(session=session, element=exchange.element.hex())

    def confirm(self, confirm: Confirm) -> Admitted:
        """End an exchange: the way to the broker for who knew the secret. A session is good for one try.

        Raises:
            Refused
        """
        with self._lock:
            session = self._sessions.pop(confirm.session, None)
        if session is None or session.until <= self._clock():
            raise Refused(HTTPStatus.GONE, "that took too long; try again")
        try:
            guest = Guest.model_validate_json(session.key.open("guest", bytes.fromhex(confirm.sealed)))
        except (WrongSecret, ValidationError):
            logger.warning("A machine tried to join with a wrong code", extra={"event": "join.refused"})
            raise Refused(HTTPStatus.FORBIDDEN, "the code is wrong") from None
        if not self._invites.take_use(session.invite):
            raise Refused(HTTPStatus.GONE, "the invitation is used up or over; run `packtrain invite` on the head")
        logger.info("Node %s may join", guest.node, extra={"event": "join.admitted", "node": guest.node})
        place = self._place_for(NodeId(guest.node))
        return Admitted(sealed=session.key.seal("head", place.model_dump_json().encode()).hex())
